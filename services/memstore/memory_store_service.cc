#include "services/memstore/memory_store_service.h"

#include <deque>
#include <memory>
#include <string>
#include <utility>

#include "infllm/v1/memory_store.grpc.pb.h"
#include "kernels/core/status_macros.h"
#include "services/memstore/byte_buffer.h"
#include "services/memstore/call_handlers.h"
#include "services/memstore/call_interceptor.h"
#include "services/memstore/raw_call.h"
#include "services/memstore/request.h"
#include "services/memstore/tenant_store.h"

namespace infllm::services {
namespace {

namespace pb = infllm::v1;
using Messages = std::deque<grpc::ByteBuffer>;

// Messages are bytes here, so that what arrives is looked at before it is unpacked, and blocks
// leave without a copy.
template <typename S>
using RawUnary = pb::MemoryStore::WithRawCallbackMethod_Create<
    pb::MemoryStore::WithRawCallbackMethod_Describe<pb::MemoryStore::WithRawCallbackMethod_Append<
        pb::MemoryStore::WithRawCallbackMethod_Publish<
            pb::MemoryStore::WithRawCallbackMethod_Fork<pb::MemoryStore::WithRawCallbackMethod_Drop<
                pb::MemoryStore::WithRawCallbackMethod_Commit<
                    pb::MemoryStore::WithRawCallbackMethod_FindCommitted<
                        pb::MemoryStore::WithRawCallbackMethod_FindPrefix<
                            pb::MemoryStore::WithRawCallbackMethod_ReadCheckpoint<
                                pb::MemoryStore::WithRawCallbackMethod_Stats<S>>>>>>>>>>>;
template <typename S>
using RawStreams = pb::MemoryStore::WithRawCallbackMethod_Lease<
    pb::MemoryStore::WithRawCallbackMethod_Select<pb::MemoryStore::WithRawCallbackMethod_Fetch<
        pb::MemoryStore::WithRawCallbackMethod_ListCommitted<S>>>>;
using RawService = RawUnary<RawStreams<pb::MemoryStore::Service>>;

class MemoryStoreService final : public LeasingService, public RawService {
  using Context = grpc::CallbackServerContext;
  using Bytes = grpc::ByteBuffer;
  using UnaryReactor = grpc::ServerUnaryReactor;
  using StreamReactor = grpc::ServerWriteReactor<grpc::ByteBuffer>;

 public:
  MemoryStoreService(memstore::MemoryStore& store, CallGate& gate, absl::Duration lease_grace,
                     std::unique_ptr<Authenticator> authenticator, ServerEvents* events)
      : store_(store),
        authenticator_(std::move(authenticator)),
        handlers_(store, lease_grace, events),
        threads_(kMaxThreads, kMaxWaiting),
        host_{.gate = gate, .threads = threads_} {}

  grpc::Service& service() override { return *this; }
  void EndLeases() override { handlers_.leases().EndAll(); }
  int64_t leases() const override { return handlers_.leases().table().size(); }
  bool CanServe() const override {
    return handlers_.writes().CanWrite() && threads_.LongestWait() < kLongWait;
  }

  UnaryReactor* Create(Context* context, const Bytes* request, Bytes* response) override {
    return Unary(context, request, response, &CallHandlers::Create);
  }
  UnaryReactor* Describe(Context* context, const Bytes* request, Bytes* response) override {
    return Unary(context, request, response, &CallHandlers::Describe);
  }
  UnaryReactor* Append(Context* context, const Bytes* request, Bytes* response) override {
    return Unary(context, request, response, &CallHandlers::Append);
  }
  UnaryReactor* Publish(Context* context, const Bytes* request, Bytes* response) override {
    return Unary(context, request, response, &CallHandlers::Publish);
  }
  UnaryReactor* Fork(Context* context, const Bytes* request, Bytes* response) override {
    return Unary(context, request, response, &CallHandlers::Fork);
  }
  UnaryReactor* Drop(Context* context, const Bytes* request, Bytes* response) override {
    return Unary(context, request, response, &CallHandlers::Drop);
  }
  UnaryReactor* Commit(Context* context, const Bytes* request, Bytes* response) override {
    return Unary(context, request, response, &CallHandlers::Commit);
  }
  UnaryReactor* FindCommitted(Context* context, const Bytes* request, Bytes* response) override {
    return Unary(context, request, response, &CallHandlers::FindCommitted);
  }
  UnaryReactor* FindPrefix(Context* context, const Bytes* request, Bytes* response) override {
    return Unary(context, request, response, &CallHandlers::FindPrefix);
  }
  UnaryReactor* ReadCheckpoint(Context* context, const Bytes* request, Bytes* response) override {
    return Unary(context, request, response, &CallHandlers::ReadCheckpoint);
  }
  UnaryReactor* Stats(Context* context, const Bytes* request, Bytes* response) override {
    return Unary(context, request, response, &CallHandlers::Stats);
  }
  StreamReactor* ListCommitted(Context* context, const Bytes* request) override {
    return StreamAll(context, request, &CallHandlers::ListCommitted);
  }
  StreamReactor* Select(Context* context, const Bytes* request) override {
    return StreamAll(context, request, &CallHandlers::Select);
  }
  StreamReactor* Fetch(Context* context, const Bytes* request) override {
    return Stream<pb::FetchRequest>(
        context, request,
        [this, done = size_t{0}](const HandledCall& call, const pb::FetchRequest& request) mutable {
          return handlers_.Fetch(call, request, done);
        });
  }
  StreamReactor* Lease(Context* context, const Bytes* bytes) override {
    const absl::StatusOr<Caller> caller = authenticator_->CallerOf(*context);
    pb::LeaseRequest request;
    Bytes taken = Take(bytes);
    const absl::Status parsed = caller.ok() ? ParseRequest(taken, request) : caller.status();
    return handlers_.leases().Begin(parsed, caller.ok() ? caller->tenant : "", request);
  }

 private:
  // Disks and waits for room keep threads busy; past these, calls wait, then fail.
  static constexpr int kMaxThreads = 256;
  static constexpr size_t kMaxWaiting = 4096;
  // All threads have been busy for so long: something is wrong.
  static constexpr absl::Duration kLongWait = absl::Seconds(2);

  // gRPC looks at a request no more once it has handed it over, but would keep it.
  static Bytes Take(const Bytes* request) {
    Bytes taken;
    taken.Swap(const_cast<Bytes*>(request));
    return taken;
  }

  // Every call comes through one of these: who makes it is known first, and it sees the store as
  // that tenant's only.
  template <typename Request, typename Response>
  UnaryReactor* Unary(Context* context, const Bytes* bytes, Bytes* response,
                      absl::Status (CallHandlers::*handler)(const HandledCall&, const Request&,
                                                            Response&)) {
    const absl::StatusOr<Caller> caller = authenticator_->CallerOf(*context);
    if (!caller.ok()) return AnswerUnary(host_, caller.status(), nullptr, response);
    return AnswerUnary(
        host_, absl::OkStatus(),
        [this, caller = *caller, request_id = RequestIdOf(*context), bytes = Take(bytes), handler](
            const Cancelled& cancelled, Bytes* answer) mutable {
          Request request;
          INFLLM_RETURN_IF_ERROR(ParseRequest(bytes, request));
          bytes.Clear();
          TenantStore store(store_, caller);
          Response message;
          INFLLM_RETURN_IF_ERROR(
              (handlers_.*handler)({store, caller, request_id, cancelled}, request, message));
          *answer = ToBytes(message);
          return absl::OkStatus();
        },
        response);
  }
  // `next` makes the next part of the answer.
  template <typename Request, typename Next>
  StreamReactor* Stream(Context* context, const Bytes* bytes, Next next) {
    const absl::StatusOr<Caller> caller = authenticator_->CallerOf(*context);
    if (!caller.ok()) return AnswerStream(host_, caller.status(), nullptr);
    return AnswerStream(host_, absl::OkStatus(),
                        [this, caller = *caller, request_id = RequestIdOf(*context),
                         bytes = Take(bytes), request = std::shared_ptr<Request>(),
                         next](const Cancelled& cancelled) mutable -> absl::StatusOr<StreamPart> {
                          if (request == nullptr) {
                            request = std::make_shared<Request>();
                            INFLLM_RETURN_IF_ERROR(ParseRequest(bytes, *request));
                            bytes.Clear();
                          }
                          TenantStore store(store_, caller);
                          return next(HandledCall{store, caller, request_id, cancelled}, *request);
                        });
  }
  // `handler` makes all parts at once.
  template <typename Request>
  StreamReactor* StreamAll(Context* context, const Bytes* bytes,
                           absl::StatusOr<Messages> (CallHandlers::*handler)(const HandledCall&,
                                                                             const Request&)) {
    return Stream<Request>(
        context, bytes,
        [this, handler, made = false, messages = Messages()](
            const HandledCall& call, const Request& request) mutable -> absl::StatusOr<StreamPart> {
          if (!std::exchange(made, true)) {
            INFLLM_ASSIGN_OR_RETURN(messages, (handlers_.*handler)(call, request));
          }
          StreamPart part;
          if (!messages.empty()) {
            part.message = std::move(messages.front());
            messages.pop_front();
          }
          part.last = messages.empty();
          return part;
        });
  }

  memstore::MemoryStore& store_;
  const std::unique_ptr<Authenticator> authenticator_;
  CallHandlers handlers_;
  CallThreads threads_;
  const CallHost host_;
};

}  // namespace

std::unique_ptr<LeasingService> NewMemoryStoreService(memstore::MemoryStore& store, CallGate& gate,
                                                      absl::Duration lease_grace,
                                                      std::unique_ptr<Authenticator> authenticator,
                                                      ServerEvents* events) {
  return std::make_unique<MemoryStoreService>(store, gate, lease_grace, std::move(authenticator),
                                              events);
}

}  // namespace infllm::services
