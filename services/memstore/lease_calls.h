#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <mutex>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/time/time.h"
#include "infllm/v1/memory_store.pb.h"
#include "memstore/memory_store.h"
#include "services/memstore/lease_table.h"
#include "services/memstore/server_events.h"

namespace infllm::services {

// The calls that hold leases. They wait for nothing, so they have no thread of the server; gRPC
// calls them back. All of them must be ended before the object goes. Thread-safe.
class LeaseCalls {
 public:
  // `store`, whose contexts are dropped, must outlive the object; so must `events`, if not null.
  LeaseCalls(absl::Duration grace, memstore::MemoryStore& store, ServerEvents* events);

  LeaseTable& table() { return table_; }
  const LeaseTable& table() const { return table_; }

  // Answers a call of the tenant, which then owns itself; with `refusal` unless that is OK.
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Begin(const absl::Status& refusal,
                                                    const std::string& tenant,
                                                    const infllm::v1::LeaseRequest& request);
  // Ends all, and those to come.
  void EndAll();

 private:
  class Call;

  LeaseTable table_;
  std::mutex mutex_;
  absl::flat_hash_set<Call*> calls_ ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace infllm::services
