#include "services/memstore/memory_store_service.h"

#include <grpcpp/impl/service_type.h>
#include <grpcpp/support/method_handler.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <new>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "infllm/v1/memory_store.grpc.pb.h"
#include "kernels/core/status_macros.h"
#include "services/common/errors.h"
#include "services/memstore/block_stream.h"
#include "services/memstore/call_interceptor.h"
#include "services/memstore/lease_calls.h"
#include "services/memstore/wire.h"

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
std::invoke_result_t<Call> WithRoom(PinsInFlight::Hold& hold, grpc::ServerContext* context,
                                    Call call) {
  const auto give_up = std::chrono::steady_clock::now() + kPatience;
  while (true) {
    const int64_t released = hold.pins().released();
    hold.Take();
    auto result = call();
    if (!FoundNoRoom(result)) return result;
    hold.Withdraw();
    if (context->IsCancelled() || !hold.pins().AwaitRelease(released, give_up)) {
      if (result.ok()) hold.Take();  // some queries have got theirs
      return result;
    }
  }
}

using Base = pb::MemoryStore::WithCallbackMethod_Lease<pb::MemoryStore::Service>;
class MemoryStoreService final : public LeasingService, public Base {
 public:
  MemoryStoreService(memstore::MemoryStore& store, CallGate& gate, absl::Duration lease_grace,
                     ServerEvents* events)
      : store_(store), gate_(gate), events_(events), leases_(lease_grace, store, events) {
    StreamRaw<pb::SelectRequest>("Select", &MemoryStoreService::StreamSelections);
    StreamRaw<pb::FetchRequest>("Fetch", &MemoryStoreService::StreamBlocks);
  }

  grpc::Service& service() override { return *this; }
  void EndLeases() override { leases_.EndAll(); }
  int64_t leases() const override { return leases_.table().size(); }

  grpc::ServerWriteReactor<pb::LeaseResponse>* Lease(grpc::CallbackServerContext*,
                                                     const pb::LeaseRequest* request) override {
    return leases_.Begin(*request);
  }

  grpc::Status Create(grpc::ServerContext* context, const pb::CreateRequest* request,
                      pb::CreateResponse*) override {
    return Run(context, [&]() -> absl::Status {
      if (wire::Checksum(*request) != request->crc32c()) return Damaged("a new context");
      if (!request->has_geometry()) return error::FieldMissing("geometry");
      INFLLM_ASSIGN_OR_RETURN(const ContextId id,
                              wire::ContextFromProto("context", request->context()));
      INFLLM_ASSIGN_OR_RETURN(const memstore::Geometry geometry,
                              wire::FromProto(request->geometry()));
      return UnderLease(id, request->lease(), [&] {
        return store_.Create(
            id, {.tenant = request->tenant(),
                 .model = {.hi = request->fingerprint_hi(), .lo = request->fingerprint_lo()},
                 .recipe = request->recipe(),
                 .geometry = geometry});
      });
    });
  }

  grpc::Status Describe(grpc::ServerContext* context, const pb::DescribeRequest* request,
                        pb::DescribeResponse* response) override {
    return Run(context, [&]() -> absl::Status {
      INFLLM_ASSIGN_OR_RETURN(const ContextId id,
                              wire::ContextFromProto("context", request->context()));
      INFLLM_ASSIGN_OR_RETURN(const memstore::Geometry geometry, store_.Describe(id));
      *response->mutable_geometry() = wire::ToProto(geometry);
      response->set_crc32c(wire::DescribeChecksum(id, response->geometry()));
      return absl::OkStatus();
    });
  }

  grpc::Status Append(grpc::ServerContext* context, const pb::AppendRequest* request,
                      pb::AppendResponse*) override {
    return Run(context, [&]() -> absl::Status {
      INFLLM_ASSIGN_OR_RETURN(const ContextId id,
                              wire::ContextFromProto("context", request->context()));
      INFLLM_ASSIGN_OR_RETURN(const memstore::Geometry geometry, store_.Describe(id));
      const auto bytes = std::as_bytes(wire::AsSpan(request->payloads()));
      INFLLM_RETURN_IF_ERROR(CheckBlocks("payloads", {id, request->layer(), request->first_block()},
                                         bytes, bytes.size(), geometry.payload_bytes(),
                                         wire::AsSpan(request->crc32c())));
      std::vector<std::span<const std::byte>> payloads;
      for (size_t begin = 0; begin < bytes.size(); begin += geometry.payload_bytes()) {
        payloads.push_back(bytes.subspan(begin, geometry.payload_bytes()));
      }
      PinsInFlight::Hold hold(*pins_);
      return WithRoom(hold, context, [&] {
        return store_.Append(id, request->layer(), request->first_block(), payloads);
      });
    });
  }

  grpc::Status Publish(grpc::ServerContext* context, const pb::PublishRequest* request,
                       pb::PublishResponse*) override {
    return Run(context, [&]() -> absl::Status {
      INFLLM_ASSIGN_OR_RETURN(const ContextId id,
                              wire::ContextFromProto("context", request->context()));
      INFLLM_ASSIGN_OR_RETURN(const memstore::Geometry geometry, store_.Describe(id));
      const auto representatives = wire::AsSpan(request->representatives());
      INFLLM_RETURN_IF_ERROR(
          CheckBlocks("representatives", {id, request->layer(), request->first_block()},
                      std::as_bytes(representatives), representatives.size(),
                      geometry.representative_floats(), wire::AsSpan(request->crc32c())));
      return store_.Publish(id, request->layer(), request->first_block(), representatives);
    });
  }

  grpc::Status Fork(grpc::ServerContext* context, const pb::ForkRequest* request,
                    pb::ForkResponse*) override {
    return Run(context, [&]() -> absl::Status {
      if (wire::Checksum(*request) != request->crc32c()) return Damaged("a fork");
      INFLLM_ASSIGN_OR_RETURN(const ContextId parent,
                              wire::ContextFromProto("parent", request->parent()));
      INFLLM_ASSIGN_OR_RETURN(const ContextId child,
                              wire::ContextFromProto("child", request->child()));
      return UnderLease(child, request->lease(),
                        [&] { return store_.Fork(parent, child, request->blocks()); });
    });
  }

  grpc::Status Drop(grpc::ServerContext* context, const pb::DropRequest* request,
                    pb::DropResponse*) override {
    return Run(context, [&]() -> absl::Status {
      INFLLM_ASSIGN_OR_RETURN(const ContextId id,
                              wire::ContextFromProto("context", request->context()));
      leases_.table().Remove(id);
      return store_.Drop(id);
    });
  }

  grpc::Status Commit(grpc::ServerContext* context, const pb::CommitRequest* request,
                      pb::CommitResponse*) override {
    return Run(context, [&]() -> absl::Status {
      if (wire::Checksum(*request) != request->crc32c()) return Damaged("a commit");
      INFLLM_ASSIGN_OR_RETURN(const ContextId live,
                              wire::ContextFromProto("context", request->context()));
      INFLLM_ASSIGN_OR_RETURN(const ContextId id, wire::ContextFromProto("id", request->id()));
      INFLLM_ASSIGN_OR_RETURN(const ContextId replaces,
                              wire::ContextFromProto("replaces", request->replaces()));
      const memstore::CommitRequest commit = {
          .context = live,
          .id = id,
          .name = request->name(),
          .replaces = replaces,
          .blocks = request->blocks(),
          .tokens = wire::AsSpan(request->tokens()),
          .state = std::as_bytes(wire::AsSpan(request->state()))};
      INFLLM_RETURN_IF_ERROR(store_.Commit(commit));
      if (events_ != nullptr) events_->Committed(RequestIdOf(*context), commit);
      return absl::OkStatus();
    });
  }

  grpc::Status FindCommitted(grpc::ServerContext* context, const pb::FindCommittedRequest* request,
                             pb::FindCommittedResponse* response) override {
    return Run(context, [&]() -> absl::Status {
      INFLLM_ASSIGN_OR_RETURN(const memstore::CommittedContext found,
                              store_.FindCommitted(request->tenant(), request->name()));
      *response->mutable_context() = wire::ToProto(found);
      return absl::OkStatus();
    });
  }

  grpc::Status ListCommitted(grpc::ServerContext* context, const pb::ListCommittedRequest* request,
                             grpc::ServerWriter<pb::ListCommittedResponse>* writer) override {
    constexpr int kPerMessage = 1000;
    return Run(context, [&]() -> absl::Status {
      INFLLM_ASSIGN_OR_RETURN(const std::vector<memstore::CommittedContext> all,
                              store_.ListCommitted(request->tenant()));
      pb::ListCommittedResponse message;
      for (const memstore::CommittedContext& one : all) {
        *message.add_contexts() = wire::ToProto(one);
        if (message.contexts_size() < kPerMessage) continue;
        if (!writer->Write(message)) return error::CallerGone();
        message.Clear();
      }
      if (message.contexts_size() > 0 && !writer->Write(message)) return error::CallerGone();
      return absl::OkStatus();
    });
  }

  grpc::Status ReadCheckpoint(grpc::ServerContext* context,
                              const pb::ReadCheckpointRequest* request,
                              pb::ReadCheckpointResponse* response) override {
    return Run(context, [&]() -> absl::Status {
      INFLLM_ASSIGN_OR_RETURN(const ContextId id, wire::ContextFromProto("id", request->id()));
      INFLLM_ASSIGN_OR_RETURN(const memstore::Checkpoint checkpoint, store_.ReadCheckpoint(id));
      response->mutable_tokens()->Assign(checkpoint.tokens.begin(), checkpoint.tokens.end());
      response->set_state(checkpoint.state.data(), checkpoint.state.size());
      response->set_crc32c(wire::CheckpointChecksum(id, *response));
      return absl::OkStatus();
    });
  }

  grpc::Status Stats(grpc::ServerContext* context, const pb::StatsRequest*,
                     pb::StatsResponse* response) override {
    return Run(context, [&]() -> absl::Status {
      INFLLM_ASSIGN_OR_RETURN(memstore::StoreStats stats, store_.Stats());
      stats.corrupt_blocks += damaged_arrivals_.load(std::memory_order_relaxed);
      *response = wire::ToProto(stats);
      return absl::OkStatus();
    });
  }

 private:
  // Makes a context of the lease; none if it is empty.
  template <typename Make>
  absl::Status UnderLease(const ContextId& context, const std::string& lease_bytes, Make make) {
    if (lease_bytes.empty()) return make();
    INFLLM_ASSIGN_OR_RETURN(const ContextId lease, wire::ContextFromProto("lease", lease_bytes));
    INFLLM_RETURN_IF_ERROR(make());
    leases_.table().Add(lease, context);
    return absl::OkStatus();
  }

  // What every call shares: nobody is served who has gone or comes too late, and no exception
  // leaves.
  template <typename Call>
  grpc::Status Run(grpc::ServerContext* context, Call&& call) {
    if (context->IsCancelled()) return ToGrpcStatus(error::CallerGone());
    if (!gate_.Enter()) return ToGrpcStatus(error::Stopping());
    const absl::Cleanup leave = [this] { gate_.Leave(); };
    try {
      return ToGrpcStatus(call());
    } catch (const std::bad_alloc&) {
      return ToGrpcStatus(error::OutOfMemory());
    }
  }

  // Lets a server-streaming call answer with ready-made bytes of its response message instead of
  // protobuf objects, which would copy every payload twice.
  template <typename Request>
  void StreamRaw(const char* method,
                 absl::Status (MemoryStoreService::*handler)(grpc::ServerContext*, const Request&,
                                                             BlockSink)) {
    using Streamer = grpc::ServerSplitStreamer<Request, grpc::ByteBuffer>;
    const int index = pb::SelectRequest::descriptor()
                          ->file()
                          ->FindServiceByName("MemoryStore")
                          ->FindMethodByName(method)
                          ->index();
    MarkMethodStreamed(
        index, new grpc::internal::SplitServerStreamingHandler<Request, grpc::ByteBuffer>(
                   [this, handler](grpc::ServerContext* context, Streamer* stream) {
                     return Run(context, [&]() -> absl::Status {
                       Request request;
                       if (!stream->Read(&request)) return error::FieldMissing("the request");
                       const auto sink = [stream](const grpc::ByteBuffer& message, bool last) {
                         grpc::WriteOptions options;
                         if (last) options.set_last_message();  // goes out with the status
                         return stream->Write(message, options);
                       };
                       return (this->*handler)(context, request, sink);
                     });
                   }));
  }

  absl::Status StreamSelections(grpc::ServerContext* context, const pb::SelectRequest& request,
                                BlockSink sink) {
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
        std::vector<memstore::Selection> selections, WithRoom(hold, context, [&] {
          return store_.Select({.layer = request.layer(), .scoring = scoring, .queries = queries});
        }));
    INFLLM_CHECK(selections.size() == contexts.size());
    for (const memstore::Selection& one : selections) {
      if (!one.status.ok() && events_ != nullptr) {
        events_->QueryFailed(RequestIdOf(*context), one.status);
      }
    }
    return SendSelections(contexts, request.layer(), std::move(selections), pins_, sink);
  }

  absl::Status StreamBlocks(grpc::ServerContext* context, const pb::FetchRequest& request,
                            BlockSink sink) {
    INFLLM_ASSIGN_OR_RETURN(const ContextId id,
                            wire::ContextFromProto("context", request.context()));
    INFLLM_ASSIGN_OR_RETURN(const memstore::Geometry geometry, store_.Describe(id));
    std::span<const int64_t> rest = wire::AsSpan(request.blocks());
    if (rest.size() > memstore::limits::kMaxSelect) {
      return error::TooManyBlocks("blocks", request.blocks_size(), memstore::limits::kMaxSelect);
    }
    // A message at a time, so that no more of the RAM tier is pinned than is on its way.
    const auto step = static_cast<size_t>(wire::BlocksPerMessage(geometry.payload_bytes()));
    do {
      const std::span<const int64_t> now = rest.first(std::min(step, rest.size()));
      rest = rest.subspan(now.size());
      if (context->IsCancelled()) return error::CallerGone();
      PinsInFlight::Hold hold(*pins_);
      INFLLM_ASSIGN_OR_RETURN(
          std::vector<memstore::BlockHandle> blocks,
          WithRoom(hold, context, [&] { return store_.Fetch(id, request.layer(), now); }));
      INFLLM_RETURN_IF_ERROR(
          SendFetched(id, request.layer(), now, std::move(blocks), pins_, rest.empty(), sink));
    } while (!rest.empty());
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

  memstore::MemoryStore& store_;
  CallGate& gate_;
  ServerEvents* const events_;  // may be null
  LeaseCalls leases_;
  const std::shared_ptr<PinsInFlight> pins_ = std::make_shared<PinsInFlight>();
  std::atomic<int64_t> damaged_arrivals_{0};
};

}  // namespace

std::unique_ptr<LeasingService> NewMemoryStoreService(memstore::MemoryStore& store, CallGate& gate,
                                                      absl::Duration lease_grace,
                                                      ServerEvents* events) {
  return std::make_unique<MemoryStoreService>(store, gate, lease_grace, events);
}

}  // namespace infllm::services
