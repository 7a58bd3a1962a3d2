#include "services/memstore/memory_store_service.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <deque>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "infllm/v1/memory_store.grpc.pb.h"
#include "kernels/core/status_macros.h"
#include "services/common/errors.h"
#include "services/memstore/block_stream.h"
#include "services/memstore/byte_buffer.h"
#include "services/memstore/call_interceptor.h"
#include "services/memstore/lease_calls.h"
#include "services/memstore/raw_call.h"
#include "services/memstore/request.h"
#include "services/memstore/tenant_store.h"
#include "services/memstore/wire.h"
#include "services/memstore/write_health.h"

namespace infllm::services {
namespace {

namespace pb = infllm::v1;
using memstore::ContextId;

// Whether the call, or a query of it, found no room in the RAM tier.
bool FoundNoRoom(const absl::Status& status) { return absl::IsResourceExhausted(status); }
template <typename T>
bool FoundNoRoom(const absl::StatusOr<T>& result) {
  return FoundNoRoom(result.status());
}
bool FoundNoRoom(const absl::StatusOr<std::vector<memstore::Selection>>& result) {
  if (!result.ok()) return FoundNoRoom(result.status());
  return std::ranges::any_of(
      *result, [](const memstore::Selection& one) { return FoundNoRoom(one.status); });
}

// How long a call waits for room in the RAM tier that payloads on their way take. Only clients that
// have stopped reading keep them longer.
constexpr std::chrono::seconds kPatience{10};

// Makes a call to the store that needs room in the RAM tier. If there is none, it is made again
// each time that others' payloads, on their way to clients, have freed some.
template <typename Call>
std::invoke_result_t<Call> WithRoom(PinsInFlight::Hold& hold, const Cancelled& cancelled,
                                    Call call) {
  const auto give_up = std::chrono::steady_clock::now() + kPatience;
  while (true) {
    const int64_t released = hold.pins().released();
    hold.Take();
    auto result = call();
    if (!FoundNoRoom(result)) return result;
    hold.Withdraw();
    if (cancelled || !hold.pins().AwaitRelease(released, give_up)) {
      if (result.ok()) hold.Take();  // some queries have got theirs
      return result;
    }
  }
}

using Messages = std::deque<grpc::ByteBuffer>;

// A call as its handler sees it.
struct Call {
  TenantStore& store;  // all that the caller may see
  const Caller& caller;
  const std::string& request_id;
  const Cancelled& cancelled;
};

// What the calls do.
class Handlers {
 public:
  // `events` may be null.
  Handlers(memstore::MemoryStore& store, absl::Duration lease_grace, ServerEvents* events)
      : events_(events), leases_(lease_grace, store, events) {}

  LeaseCalls& leases() { return leases_; }
  const LeaseCalls& leases() const { return leases_; }
  const WriteHealth& writes() const { return writes_; }

  absl::Status Create(const Call& call, const pb::CreateRequest& request, pb::CreateResponse&) {
    if (wire::Checksum(request) != request.crc32c()) return Damaged("a new context");
    if (!request.has_geometry()) return error::FieldMissing("geometry");
    INFLLM_ASSIGN_OR_RETURN(const ContextId id,
                            wire::ContextFromProto("context", request.context()));
    INFLLM_ASSIGN_OR_RETURN(const memstore::ContextOptions options,
                            wire::OptionsFromProto(request));
    return UnderLease(call, id, request.lease(), [&] { return call.store.Create(id, options); });
  }

  absl::Status Describe(const Call& call, const pb::DescribeRequest& request,
                        pb::DescribeResponse& response) {
    INFLLM_ASSIGN_OR_RETURN(const ContextId id,
                            wire::ContextFromProto("context", request.context()));
    INFLLM_ASSIGN_OR_RETURN(const memstore::ContextOptions options, call.store.Describe(id));
    wire::OptionsToProto(options, response);
    response.set_crc32c(wire::DescribeChecksum(id, response));
    return absl::OkStatus();
  }

  absl::Status Append(const Call& call, const pb::AppendRequest& request, pb::AppendResponse&) {
    INFLLM_ASSIGN_OR_RETURN(const ContextId id,
                            wire::ContextFromProto("context", request.context()));
    INFLLM_ASSIGN_OR_RETURN(const memstore::ContextOptions options, call.store.Describe(id));
    const size_t payload_bytes = options.geometry.payload_bytes();
    const auto bytes = std::as_bytes(wire::AsSpan(request.payloads()));
    INFLLM_RETURN_IF_ERROR(CheckBlocks("payloads", {id, request.layer(), request.first_block()},
                                       bytes, bytes.size(), payload_bytes,
                                       wire::AsSpan(request.crc32c())));
    std::vector<std::span<const std::byte>> payloads;
    for (size_t begin = 0; begin < bytes.size(); begin += payload_bytes) {
      payloads.push_back(bytes.subspan(begin, payload_bytes));
    }
    PinsInFlight::Hold hold(*pins_);
    return writes_.Note(WithRoom(hold, call.cancelled, [&] {
      return call.store.Append(id, request.layer(), request.first_block(), payloads);
    }));
  }

  absl::Status Publish(const Call& call, const pb::PublishRequest& request, pb::PublishResponse&) {
    INFLLM_ASSIGN_OR_RETURN(const ContextId id,
                            wire::ContextFromProto("context", request.context()));
    INFLLM_ASSIGN_OR_RETURN(const memstore::ContextOptions options, call.store.Describe(id));
    const auto representatives = wire::AsSpan(request.representatives());
    INFLLM_RETURN_IF_ERROR(
        CheckBlocks("representatives", {id, request.layer(), request.first_block()},
                    std::as_bytes(representatives), representatives.size(),
                    options.geometry.representative_floats(), wire::AsSpan(request.crc32c())));
    return call.store.Publish(id, request.layer(), request.first_block(), representatives);
  }

  absl::Status Fork(const Call& call, const pb::ForkRequest& request, pb::ForkResponse&) {
    if (wire::Checksum(request) != request.crc32c()) return Damaged("a fork");
    std::vector<memstore::ForkPart> parts;
    for (const pb::ForkRequest::Part& part : request.parts()) {
      INFLLM_ASSIGN_OR_RETURN(const ContextId id, wire::ContextFromProto("parts", part.context()));
      parts.push_back({.context = id, .blocks = part.blocks()});
    }
    INFLLM_ASSIGN_OR_RETURN(const ContextId child,
                            wire::ContextFromProto("child", request.child()));
    return UnderLease(call, child, request.lease(), [&] { return call.store.Fork(parts, child); });
  }

  absl::Status Drop(const Call& call, const pb::DropRequest& request, pb::DropResponse&) {
    INFLLM_ASSIGN_OR_RETURN(const ContextId id,
                            wire::ContextFromProto("context", request.context()));
    INFLLM_RETURN_IF_ERROR(call.store.Describe(id).status());  // only then is the lease its own
    leases_.table().Remove(id);
    return call.store.Drop(id);
  }

  absl::Status Commit(const Call& call, const pb::CommitRequest& request, pb::CommitResponse&) {
    if (wire::Checksum(request) != request.crc32c()) return Damaged("a commit");
    INFLLM_ASSIGN_OR_RETURN(const ContextId live,
                            wire::ContextFromProto("context", request.context()));
    INFLLM_ASSIGN_OR_RETURN(const ContextId id, wire::ContextFromProto("id", request.id()));
    INFLLM_ASSIGN_OR_RETURN(const ContextId replaces,
                            wire::ContextFromProto("replaces", request.replaces()));
    const memstore::CommitRequest commit = {
        .context = live,
        .id = id,
        .name = request.name(),
        .replaces = replaces,
        .blocks = request.blocks(),
        .reusable = {.exec_block = request.exec_block(), .tokens = request.reusable_tokens()},
        .tokens = wire::AsSpan(request.tokens()),
        .state = std::as_bytes(wire::AsSpan(request.state()))};
    INFLLM_RETURN_IF_ERROR(writes_.Note(call.store.Commit(commit)));
    if (events_ != nullptr) events_->Committed(call.request_id, commit);
    return absl::OkStatus();
  }

  absl::Status FindCommitted(const Call& call, const pb::FindCommittedRequest& request,
                             pb::FindCommittedResponse& response) {
    INFLLM_ASSIGN_OR_RETURN(const memstore::CommittedContext found,
                            call.store.FindCommitted(call.caller.tenant, request.name()));
    *response.mutable_context() = wire::ToProto(found);
    return absl::OkStatus();
  }

  absl::Status FindPrefix(const Call& call, const pb::FindPrefixRequest& request,
                          pb::FindPrefixResponse& response) {
    if (wire::Checksum(request) != request.crc32c()) return Damaged("a search for a prefix");
    if (!request.has_geometry()) return error::FieldMissing("geometry");
    INFLLM_ASSIGN_OR_RETURN(const memstore::ContextOptions options,
                            wire::OptionsFromProto(request));
    INFLLM_ASSIGN_OR_RETURN(
        const memstore::Prefix found,
        call.store.FindPrefix(options, request.exec_block(), wire::AsSpan(request.tokens())));
    *response.mutable_context() = wire::ToProto(found.context);
    response.set_tokens(found.tokens);
    response.set_crc32c(wire::Checksum(response));
    return absl::OkStatus();
  }

  absl::Status ReadCheckpoint(const Call& call, const pb::ReadCheckpointRequest& request,
                              pb::ReadCheckpointResponse& response) {
    INFLLM_ASSIGN_OR_RETURN(const ContextId id, wire::ContextFromProto("id", request.id()));
    INFLLM_ASSIGN_OR_RETURN(const memstore::Checkpoint checkpoint, call.store.ReadCheckpoint(id));
    response.mutable_tokens()->Assign(checkpoint.tokens.begin(), checkpoint.tokens.end());
    response.set_state(checkpoint.state.data(), checkpoint.state.size());
    response.set_crc32c(wire::CheckpointChecksum(id, response));
    return absl::OkStatus();
  }

  absl::Status Stats(const Call& call, const pb::StatsRequest&, pb::StatsResponse& response) {
    INFLLM_ASSIGN_OR_RETURN(memstore::StoreStats stats, call.store.Stats());
    if (!call.caller.one_of_many) {
      stats.corrupt_blocks += damaged_arrivals_.load(std::memory_order_relaxed);
    }
    response = wire::ToProto(stats);
    return absl::OkStatus();
  }

  // All messages of the answer.
  absl::StatusOr<Messages> ListCommitted(const Call& call, const pb::ListCommittedRequest&) {
    constexpr int kPerMessage = 1000;
    INFLLM_ASSIGN_OR_RETURN(const std::vector<memstore::CommittedContext> all,
                            call.store.ListCommitted(call.caller.tenant));
    Messages messages;
    pb::ListCommittedResponse message;
    for (const memstore::CommittedContext& one : all) {
      *message.add_contexts() = wire::ToProto(one);
      if (message.contexts_size() < kPerMessage) continue;
      messages.push_back(ToBytes(message));
      message.Clear();
    }
    if (message.contexts_size() > 0) messages.push_back(ToBytes(message));
    return messages;
  }

  absl::StatusOr<Messages> Select(const Call& call, const pb::SelectRequest& request) {
    if (wire::Checksum(request) != request.crc32c()) {
      return Damaged("the queries of a layer");
    }
    if (request.queries_size() > memstore::limits::kMaxQueries) {
      return error::TooManyQueries(request.queries_size(), memstore::limits::kMaxQueries);
    }
    INFLLM_ASSIGN_OR_RETURN(const kernels::Scoring scoring, wire::FromProto(request.scoring()));
    std::vector<ContextId> contexts;
    std::vector<memstore::SelectQuery> queries;
    for (const pb::SelectRequest::Query& query : request.queries()) {
      INFLLM_ASSIGN_OR_RETURN(
          const ContextId id,
          wire::ContextFromProto(absl::StrCat("context of query ", contexts.size()),
                                 query.context()));
      contexts.push_back(id);
      queries.push_back({.context = id,
                         .query = wire::AsSpan(query.query()),
                         .k = query.k(),
                         .end_block = query.end_block(),
                         .have = wire::AsSpan(query.have())});
    }
    PinsInFlight::Hold hold(*pins_);
    INFLLM_ASSIGN_OR_RETURN(
        std::vector<memstore::Selection> selections, WithRoom(hold, call.cancelled, [&] {
          return call.store.Select(
              {.layer = request.layer(), .scoring = scoring, .queries = queries});
        }));
    INFLLM_CHECK(selections.size() == contexts.size());
    for (const memstore::Selection& one : selections) {
      if (!one.status.ok() && events_ != nullptr) {
        events_->QueryFailed(call.request_id, one.status);
      }
    }
    Messages messages;
    INFLLM_RETURN_IF_ERROR(SendSelections(contexts, request.layer(), std::move(selections), pins_,
                                          [&](const grpc::ByteBuffer& message, bool) {
                                            messages.push_back(message);
                                            return true;
                                          }));
    return messages;
  }

  // The next message of the answer, after that of the first `done` blocks: so no more of the RAM
  // tier is pinned than is on its way.
  absl::StatusOr<StreamPart> Fetch(const Call& call, const pb::FetchRequest& request,
                                   size_t& done) {
    INFLLM_ASSIGN_OR_RETURN(const ContextId id,
                            wire::ContextFromProto("context", request.context()));
    INFLLM_ASSIGN_OR_RETURN(const memstore::ContextOptions options, call.store.Describe(id));
    if (request.blocks_size() > memstore::limits::kMaxSelect) {
      return error::TooManyBlocks("blocks", request.blocks_size(), memstore::limits::kMaxSelect);
    }
    const std::span<const int64_t> rest = wire::AsSpan(request.blocks()).subspan(done);
    const auto step = static_cast<size_t>(wire::BlocksPerMessage(options.geometry.payload_bytes()));
    const std::span<const int64_t> now = rest.first(std::min(step, rest.size()));
    done += now.size();
    PinsInFlight::Hold hold(*pins_);
    INFLLM_ASSIGN_OR_RETURN(
        std::vector<memstore::BlockHandle> blocks,
        WithRoom(hold, call.cancelled, [&] { return call.store.Fetch(id, request.layer(), now); }));
    StreamPart part{.last = now.size() == rest.size()};
    INFLLM_RETURN_IF_ERROR(SendFetched(id, request.layer(), now, std::move(blocks), pins_,
                                       part.last, [&](const grpc::ByteBuffer& message, bool) {
                                         part.message = message;
                                         return true;
                                       }));
    return part;
  }

 private:
  // Makes a context of the lease; none if it is empty.
  template <typename Make>
  absl::Status UnderLease(const Call& call, const ContextId& context,
                          const std::string& lease_bytes, Make make) {
    if (lease_bytes.empty()) return make();
    INFLLM_ASSIGN_OR_RETURN(const ContextId lease, wire::ContextFromProto("lease", lease_bytes));
    INFLLM_RETURN_IF_ERROR(make());
    leases_.table().Add({.tenant = call.caller.tenant, .id = lease}, context);
    return absl::OkStatus();
  }

  // Whether `content`, `elements` in all, is whole blocks of `block_elements`, each as it was sent.
  absl::Status CheckBlocks(std::string_view field, const wire::BlockPlace& first,
                           std::span<const std::byte> content, size_t elements,
                           size_t block_elements, std::span<const uint32_t> checksums) {
    if (elements % block_elements != 0) {
      return error::NotWholeBlocks(field, static_cast<int64_t>(elements),
                                   static_cast<int64_t>(block_elements));
    }
    const size_t blocks = elements / block_elements;
    if (checksums.size() != blocks) {
      return error::ChecksumCount(static_cast<int64_t>(checksums.size()),
                                  static_cast<int64_t>(blocks));
    }
    for (size_t i = 0; i < blocks; ++i) {
      const size_t bytes = content.size() / blocks;
      wire::BlockPlace place = first;
      place.index = wire::Later(first.index, i);
      if (wire::BlockChecksum(place, content.subspan(i * bytes, bytes)) != checksums[i]) {
        return Damaged(absl::StrCat(absl::string_view(field.data(), field.size()), " of ",
                                    error::ToString({place.context, place.layer, place.index})));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Damaged(std::string_view what) {
    damaged_arrivals_.fetch_add(1, std::memory_order_relaxed);
    return error::ArrivedDamaged(what);
  }

  ServerEvents* const events_;  // may be null
  LeaseCalls leases_;
  WriteHealth writes_;
  const std::shared_ptr<PinsInFlight> pins_ = std::make_shared<PinsInFlight>();
  std::atomic<int64_t> damaged_arrivals_{0};
};

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
    return Unary(context, request, response, &Handlers::Create);
  }
  UnaryReactor* Describe(Context* context, const Bytes* request, Bytes* response) override {
    return Unary(context, request, response, &Handlers::Describe);
  }
  UnaryReactor* Append(Context* context, const Bytes* request, Bytes* response) override {
    return Unary(context, request, response, &Handlers::Append);
  }
  UnaryReactor* Publish(Context* context, const Bytes* request, Bytes* response) override {
    return Unary(context, request, response, &Handlers::Publish);
  }
  UnaryReactor* Fork(Context* context, const Bytes* request, Bytes* response) override {
    return Unary(context, request, response, &Handlers::Fork);
  }
  UnaryReactor* Drop(Context* context, const Bytes* request, Bytes* response) override {
    return Unary(context, request, response, &Handlers::Drop);
  }
  UnaryReactor* Commit(Context* context, const Bytes* request, Bytes* response) override {
    return Unary(context, request, response, &Handlers::Commit);
  }
  UnaryReactor* FindCommitted(Context* context, const Bytes* request, Bytes* response) override {
    return Unary(context, request, response, &Handlers::FindCommitted);
  }
  UnaryReactor* FindPrefix(Context* context, const Bytes* request, Bytes* response) override {
    return Unary(context, request, response, &Handlers::FindPrefix);
  }
  UnaryReactor* ReadCheckpoint(Context* context, const Bytes* request, Bytes* response) override {
    return Unary(context, request, response, &Handlers::ReadCheckpoint);
  }
  UnaryReactor* Stats(Context* context, const Bytes* request, Bytes* response) override {
    return Unary(context, request, response, &Handlers::Stats);
  }
  StreamReactor* ListCommitted(Context* context, const Bytes* request) override {
    return StreamAll(context, request, &Handlers::ListCommitted);
  }
  StreamReactor* Select(Context* context, const Bytes* request) override {
    return StreamAll(context, request, &Handlers::Select);
  }
  StreamReactor* Fetch(Context* context, const Bytes* request) override {
    return Stream<pb::FetchRequest>(
        context, request,
        [this, done = size_t{0}](const Call& call, const pb::FetchRequest& request) mutable {
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
                      absl::Status (Handlers::*handler)(const Call&, const Request&, Response&)) {
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
                          return next(Call{store, caller, request_id, cancelled}, *request);
                        });
  }
  // `handler` makes all parts at once.
  template <typename Request>
  StreamReactor* StreamAll(Context* context, const Bytes* bytes,
                           absl::StatusOr<Messages> (Handlers::*handler)(const Call&,
                                                                         const Request&)) {
    return Stream<Request>(
        context, bytes,
        [this, handler, made = false, messages = Messages()](
            const Call& call, const Request& request) mutable -> absl::StatusOr<StreamPart> {
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
  Handlers handlers_;
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
