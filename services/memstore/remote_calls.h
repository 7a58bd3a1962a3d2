// How a client of infllm.v1.MemoryStore makes its calls: deadlines, cancellation, retries, and the
// words for what goes wrong.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "infllm/v1/memory_store.grpc.pb.h"
#include "services/common/errors.h"
#include "services/memstore/byte_buffer.h"
#include "services/memstore/cancellation.h"
#include "services/memstore/remote_store.h"
#include "services/memstore/request_id.h"
#include "services/memstore/retry.h"
#include "services/memstore/stream_call.h"
#include "services/memstore/unary_call.h"

namespace infllm::services {

// Thread-safe.
class RemoteCalls {
 public:
  RemoteCalls(std::string target, const RemoteStoreOptions& options,
              std::shared_ptr<grpc::Channel> channel);

  using Stub = infllm::v1::MemoryStore::Stub;
  template <typename Request, typename Response>
  using Method = std::unique_ptr<grpc::ClientAsyncResponseReader<Response>> (Stub::*)(
      grpc::ClientContext*, const Request&, grpc::CompletionQueue*);

  template <typename Request, typename Response>
  absl::Status Call(std::string_view name, Method<Request, Response> method, const Request& request,
                    Response* response) {
    return Settle(name, retrier_.Run([&] { return CallOnce(name, method, request, response); }));
  }

  // One attempt, under a request id of its own, which an error names.
  template <typename Request, typename Response>
  absl::Status CallOnce(std::string_view name, Method<Request, Response> method,
                        const Request& request, Response* response) {
    const std::string request_id = NewRequestId();
    const auto start = [&](grpc::ClientContext* context, grpc::CompletionQueue* queue) {
      context->AddMetadata(kRequestIdKey, request_id);
      return ((*stub_).*method)(context, request, queue);
    };
    return error::OfRequest(
        request_id,
        ToStatus(name, CallUnary(&cancellation_, absl::Now() + TimeoutOf(name), start, response)));
  }

  // A call that answers with a stream, of which every message is handed to `accept`; its error ends
  // the call. One attempt.
  template <typename Response, typename Request>
  absl::Status Stream(std::string_view name, const Request& request,
                      absl::FunctionRef<absl::Status(Response&)> accept,
                      const std::string& request_id = NewRequestId()) {
    grpc::ClientContext context;
    context.AddMetadata(kRequestIdKey, request_id);
    const Cancellation::Call in_flight(cancellation_, context);
    context.set_deadline(absl::ToChronoTime(absl::Now() + call_timeout_));
    Response response;
    absl::Status accepted;
    const grpc::Status status = CallStream(
        generic_stub_, PathOf(name), context, ToBytes(request), [&](grpc::ByteBuffer& bytes) {
          accepted = Counted(FromBytes(bytes, response) ? accept(response)
                                                        : error::DamagedMessage(target_, name));
          return accepted.ok();
        });
    return error::OfRequest(request_id, accepted.ok() ? ToStatus(name, status) : accepted);
  }

  absl::Status ToStatus(std::string_view call, const grpc::Status& status) const;
  // A commit may have to write a whole RAM tier, a fork to read all representatives.
  absl::Duration TimeoutOf(std::string_view call) const {
    return call == "Commit" || call == "Fork" ? 10 * call_timeout_ : call_timeout_;
  }
  // What the caller is told when nothing is tried any more.
  absl::Status Settle(std::string_view call, absl::Status status);

  // Counts answers that are refused.
  template <typename Result>
  Result Counted(Result result) {
    if (!result.ok()) refused_answers_.fetch_add(1, std::memory_order_relaxed);
    return result;
  }
  int64_t refused_answers() const { return refused_answers_.load(std::memory_order_relaxed); }

  const std::string& target() const { return target_; }
  Stub& stub() { return *stub_; }
  Cancellation& cancellation() { return cancellation_; }
  Retrier& retrier() { return retrier_; }
  const Retrier& retrier() const { return retrier_; }
  // The last call that ended found no daemon.
  bool gave_up() const { return gave_up_; }

 private:
  static std::string PathOf(std::string_view name);

  // The system's time; waits end when all is cancelled.
  class SystemClock final : public RetryClock {
   public:
    explicit SystemClock(Cancellation& cancellation) : cancellation_(cancellation) {}
    absl::Time Now() override { return absl::Now(); }
    bool Sleep(absl::Duration duration) override { return cancellation_.Sleep(duration); }

   private:
    Cancellation& cancellation_;
  };

  const std::string target_;
  const absl::Duration call_timeout_;
  const std::shared_ptr<grpc::Channel> channel_;  // shared with stub_ and gRPC's own threads
  const std::unique_ptr<Stub> stub_;
  grpc::GenericStub generic_stub_;
  Cancellation cancellation_;
  SystemClock clock_;
  Retrier retrier_;
  std::atomic<int64_t> refused_answers_{0};
  std::atomic<bool> gave_up_ = false;
};

}  // namespace infllm::services
