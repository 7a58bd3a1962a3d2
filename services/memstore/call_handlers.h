#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "infllm/v1/memory_store.pb.h"
#include "memstore/memory_store.h"
#include "services/memstore/block_stream.h"
#include "services/memstore/identity.h"
#include "services/memstore/lease_calls.h"
#include "services/memstore/raw_call.h"
#include "services/memstore/server_events.h"
#include "services/memstore/tenant_store.h"
#include "services/memstore/wire.h"
#include "services/memstore/write_health.h"

namespace infllm::services {

// A call as its handler sees it.
struct HandledCall {
  TenantStore& store;  // all that the caller may see
  const Caller& caller;
  const std::string& request_id;
  const Cancelled& cancelled;
};

// What the calls of infllm.v1.MemoryStore do, each for the tenant whose store it is given.
// Thread-safe.
class CallHandlers {
 public:
  // `events` may be null.
  CallHandlers(memstore::MemoryStore& store, absl::Duration lease_grace, ServerEvents* events)
      : events_(events), leases_(lease_grace, store, events) {}

  LeaseCalls& leases() { return leases_; }
  const LeaseCalls& leases() const { return leases_; }
  const WriteHealth& writes() const { return writes_; }

  absl::Status Create(const HandledCall& call, const infllm::v1::CreateRequest& request,
                      infllm::v1::CreateResponse&);
  absl::Status Describe(const HandledCall& call, const infllm::v1::DescribeRequest& request,
                        infllm::v1::DescribeResponse& response);
  absl::Status Append(const HandledCall& call, const infllm::v1::AppendRequest& request,
                      infllm::v1::AppendResponse&);
  absl::Status Publish(const HandledCall& call, const infllm::v1::PublishRequest& request,
                       infllm::v1::PublishResponse&);
  absl::Status Fork(const HandledCall& call, const infllm::v1::ForkRequest& request,
                    infllm::v1::ForkResponse&);
  absl::Status Drop(const HandledCall& call, const infllm::v1::DropRequest& request,
                    infllm::v1::DropResponse&);
  absl::Status Commit(const HandledCall& call, const infllm::v1::CommitRequest& request,
                      infllm::v1::CommitResponse&);
  absl::Status FindCommitted(const HandledCall& call,
                             const infllm::v1::FindCommittedRequest& request,
                             infllm::v1::FindCommittedResponse& response);
  absl::Status FindPrefix(const HandledCall& call, const infllm::v1::FindPrefixRequest& request,
                          infllm::v1::FindPrefixResponse& response);
  absl::Status ReadCheckpoint(const HandledCall& call,
                              const infllm::v1::ReadCheckpointRequest& request,
                              infllm::v1::ReadCheckpointResponse& response);
  absl::Status Stats(const HandledCall& call, const infllm::v1::StatsRequest&,
                     infllm::v1::StatsResponse& response);
  // All messages of the answer.
  absl::StatusOr<std::deque<grpc::ByteBuffer>> ListCommitted(
      const HandledCall& call, const infllm::v1::ListCommittedRequest&);
  absl::StatusOr<std::deque<grpc::ByteBuffer>> Select(const HandledCall& call,
                                                      const infllm::v1::SelectRequest& request);
  // The next message of the answer, after that of the first `done` blocks: so no more of the RAM
  // tier is pinned than is on its way.
  absl::StatusOr<StreamPart> Fetch(const HandledCall& call, const infllm::v1::FetchRequest& request,
                                   size_t& done);

 private:
  // Makes a context of the lease; none if it is empty.
  template <typename Make>
  absl::Status UnderLease(const HandledCall& call, const memstore::ContextId& context,
                          const std::string& lease_bytes, Make make);
  // Whether `content`, `elements` in all, is whole blocks of `block_elements`, each as it was sent.
  absl::Status CheckBlocks(std::string_view field, const wire::BlockPlace& first,
                           std::span<const std::byte> content, size_t elements,
                           size_t block_elements, std::span<const uint32_t> checksums);
  // Content that arrived damaged; counted.
  absl::Status Damaged(std::string_view what);

  ServerEvents* const events_;  // may be null
  LeaseCalls leases_;
  WriteHealth writes_;
  const std::shared_ptr<PinsInFlight> pins_ = std::make_shared<PinsInFlight>();
  std::atomic<int64_t> damaged_arrivals_{0};
};

}  // namespace infllm::services
