#include "services/memstore/memory_store_service.h"

#include <grpcpp/impl/service_type.h>
#include <grpcpp/support/method_handler.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <new>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "infllm/v1/memory_store.grpc.pb.h"
#include "kernels/core/status_macros.h"
#include "services/common/errors.h"
#include "services/memstore/block_stream.h"
#include "services/memstore/wire.h"

namespace infllm::services {
namespace {

namespace pb = infllm::v1;
using memstore::ContextId;

// The geometries of the contexts made through this service, so that a message can be judged before
// its payloads are touched. Thread-safe.
class GeometryTable {
 public:
  void Put(ContextId context, const memstore::Geometry& geometry) {
    const std::lock_guard lock(mutex_);
    geometries_[context] = geometry;
  }
  void Erase(ContextId context) {
    const std::lock_guard lock(mutex_);
    geometries_.erase(context);
  }
  absl::StatusOr<memstore::Geometry> Find(ContextId context) const {
    const std::lock_guard lock(mutex_);
    const auto found = geometries_.find(context);
    if (found == geometries_.end()) return error::ContextNotFound(context);
    return found->second;
  }

 private:
  mutable std::mutex mutex_;
  std::map<ContextId, memstore::Geometry> geometries_;
};

const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& result) {
  return result.status();
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
    if (!absl::IsResourceExhausted(StatusOf(result))) return result;
    hold.Withdraw();
    if (context->IsCancelled() || !hold.pins().AwaitRelease(released, give_up)) return result;
  }
}

class MemoryStoreService final : public pb::MemoryStore::Service {
 public:
  MemoryStoreService(memstore::MemoryStore& store, CallGate& gate) : store_(store), gate_(gate) {
    StreamRaw<pb::SelectRequest>("Select", &MemoryStoreService::StreamSelection);
    StreamRaw<pb::FetchRequest>("Fetch", &MemoryStoreService::StreamBlocks);
  }

  grpc::Status Create(grpc::ServerContext* context, const pb::CreateRequest* request,
                      pb::CreateResponse* response) override {
    return Run(context, [&]() -> absl::Status {
      if (!request->has_geometry()) return error::FieldMissing("geometry");
      INFLLM_ASSIGN_OR_RETURN(const memstore::Geometry geometry,
                              wire::FromProto(request->geometry()));
      INFLLM_ASSIGN_OR_RETURN(const ContextId id,
                              store_.Create({.tenant = request->tenant(),
                                             .model = {.hi = request->fingerprint_hi(),
                                                       .lo = request->fingerprint_lo()},
                                             .geometry = geometry}));
      geometries_.Put(id, geometry);
      response->set_context(static_cast<uint64_t>(id));
      response->set_crc32c(wire::IdsChecksum(
          {response->context(), request->fingerprint_hi(), request->fingerprint_lo()},
          request->geometry()));
      return absl::OkStatus();
    });
  }

  grpc::Status Describe(grpc::ServerContext* context, const pb::DescribeRequest* request,
                        pb::DescribeResponse* response) override {
    return Run(context, [&]() -> absl::Status {
      INFLLM_ASSIGN_OR_RETURN(const memstore::Geometry geometry,
                              geometries_.Find(ContextId{request->context()}));
      *response->mutable_geometry() = wire::ToProto(geometry);
      response->set_crc32c(wire::IdsChecksum({request->context()}, response->geometry()));
      return absl::OkStatus();
    });
  }

  grpc::Status Append(grpc::ServerContext* context, const pb::AppendRequest* request,
                      pb::AppendResponse*) override {
    return Run(context, [&]() -> absl::Status {
      const ContextId id{request->context()};
      INFLLM_ASSIGN_OR_RETURN(const memstore::Geometry geometry, geometries_.Find(id));
      const auto payloads = std::as_bytes(wire::AsSpan(request->payloads()));
      INFLLM_RETURN_IF_ERROR(CheckBlocks("payloads", {id, request->layer(), request->first_block()},
                                         payloads, payloads.size(), geometry.payload_bytes(),
                                         wire::AsSpan(request->crc32c())));
      PinsInFlight::Hold hold(*pins_);
      return WithRoom(hold, context, [&] {
        return store_.Append(id, request->layer(), request->first_block(), payloads);
      });
    });
  }

  grpc::Status Publish(grpc::ServerContext* context, const pb::PublishRequest* request,
                       pb::PublishResponse*) override {
    return Run(context, [&]() -> absl::Status {
      const ContextId id{request->context()};
      INFLLM_ASSIGN_OR_RETURN(const memstore::Geometry geometry, geometries_.Find(id));
      const auto representatives = wire::AsSpan(request->representatives());
      INFLLM_RETURN_IF_ERROR(
          CheckBlocks("representatives", {id, request->layer(), request->first_block()},
                      std::as_bytes(representatives), representatives.size(),
                      geometry.representative_floats(), wire::AsSpan(request->crc32c())));
      return store_.Publish(id, request->layer(), request->first_block(), representatives);
    });
  }

  grpc::Status Seal(grpc::ServerContext* context, const pb::SealRequest* request,
                    pb::SealResponse*) override {
    return Run(context, [&] { return store_.Seal(ContextId{request->context()}); });
  }

  grpc::Status Fork(grpc::ServerContext* context, const pb::ForkRequest* request,
                    pb::ForkResponse* response) override {
    return Run(context, [&]() -> absl::Status {
      const ContextId parent{request->context()};
      INFLLM_ASSIGN_OR_RETURN(const memstore::Geometry geometry, geometries_.Find(parent));
      INFLLM_ASSIGN_OR_RETURN(const ContextId id, store_.Fork(parent));
      geometries_.Put(id, geometry);
      response->set_context(static_cast<uint64_t>(id));
      response->set_crc32c(wire::IdsChecksum({request->context(), response->context()}));
      return absl::OkStatus();
    });
  }

  grpc::Status Drop(grpc::ServerContext* context, const pb::DropRequest* request,
                    pb::DropResponse*) override {
    return Run(context, [&]() -> absl::Status {
      INFLLM_RETURN_IF_ERROR(store_.Drop(ContextId{request->context()}));
      geometries_.Erase(ContextId{request->context()});
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

  absl::Status StreamSelection(grpc::ServerContext* context, const pb::SelectRequest& request,
                               BlockSink sink) {
    const ContextId id{request.context()};
    INFLLM_ASSIGN_OR_RETURN(const kernels::Scoring scoring, wire::FromProto(request.scoring()));
    const memstore::SelectRequest select{.query = wire::AsSpan(request.query()),
                                         .k = request.k(),
                                         .scoring = scoring,
                                         .have = wire::AsSpan(request.have())};
    if (wire::QueryChecksum(id, request.layer(), select) != request.crc32c()) {
      return Damaged("query", {id, request.layer()});
    }
    PinsInFlight::Hold hold(*pins_);
    INFLLM_ASSIGN_OR_RETURN(memstore::Selection selection, WithRoom(hold, context, [&] {
                              return store_.Select(id, request.layer(), select);
                            }));
    return SendSelection(id, request.layer(), std::move(selection), pins_, sink);
  }

  absl::Status StreamBlocks(grpc::ServerContext* context, const pb::FetchRequest& request,
                            BlockSink sink) {
    const ContextId id{request.context()};
    INFLLM_ASSIGN_OR_RETURN(const memstore::Geometry geometry, geometries_.Find(id));
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
        return Damaged(field, {place.context, place.layer, place.index});
      }
    }
    return absl::OkStatus();
  }

  absl::Status Damaged(std::string_view what, const error::Place& place) {
    damaged_arrivals_.fetch_add(1, std::memory_order_relaxed);
    return error::ArrivedDamaged(what, place);
  }

  memstore::MemoryStore& store_;
  CallGate& gate_;
  GeometryTable geometries_;
  const std::shared_ptr<PinsInFlight> pins_ = std::make_shared<PinsInFlight>();
  std::atomic<int64_t> damaged_arrivals_{0};
};

}  // namespace

std::unique_ptr<grpc::Service> NewMemoryStoreService(memstore::MemoryStore& store, CallGate& gate) {
  return std::make_unique<MemoryStoreService>(store, gate);
}

}  // namespace infllm::services
