#include "services/memstore/remote_store.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/impl/codegen/client_unary_call.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/channel_arguments.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/sync_stream.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "infllm/v1/memory_store.grpc.pb.h"
#include "kernels/core/status_macros.h"
#include "memstore/validate.h"
#include "services/common/endpoint.h"
#include "services/common/errors.h"
#include "services/common/grpc_runtime.h"
#include "services/memstore/wire.h"

namespace infllm::services {
namespace {

namespace pb = infllm::v1;
using memstore::ContextId;
using memstore::Geometry;

// A payload that stays in the string protobuf parsed it into; null if there was none.
memstore::BlockHandle TakePayload(std::string* owned) {
  if (owned == nullptr) return memstore::BlockHandle();
  std::shared_ptr<const std::string> text(owned);
  const auto payload = std::as_bytes(std::span(*text));
  return memstore::BlockHandle(payload, std::move(text));
}

class RemoteStore final : public memstore::MemoryStore {
 public:
  RemoteStore(std::string target, const RemoteStoreOptions& options,
              std::shared_ptr<grpc::Channel> channel)
      : target_(std::move(target)),
        call_timeout_(options.call_timeout),
        channel_(std::move(channel)),
        stub_(pb::MemoryStore::NewStub(channel_)),
        select_method_("/infllm.v1.MemoryStore/Select", grpc::internal::RpcMethod::SERVER_STREAMING,
                       channel_),
        fetch_method_("/infllm.v1.MemoryStore/Fetch", grpc::internal::RpcMethod::SERVER_STREAMING,
                      channel_) {}

  absl::StatusOr<ContextId> Create(const memstore::ContextOptions& options) override {
    INFLLM_RETURN_IF_ERROR(Validate(options));  // here too: sizes below must not overflow
    pb::CreateRequest request;
    request.set_tenant(options.tenant);
    request.set_fingerprint_hi(options.model.hi);
    request.set_fingerprint_lo(options.model.lo);
    *request.mutable_geometry() = wire::ToProto(options.geometry);
    pb::CreateResponse response;
    INFLLM_RETURN_IF_ERROR(Call("Create", &pb::MemoryStore::Stub::Create, request, &response));
    const ContextId context{response.context()};
    if (response.crc32c() !=
        wire::IdsChecksum({response.context(), request.fingerprint_hi(), request.fingerprint_lo()},
                          request.geometry())) {
      return Refuse({context}, "its checksum does not fit");
    }
    Remember(context, options.geometry);
    return context;
  }

  absl::Status Append(ContextId context, int32_t layer, int64_t first_block,
                      std::span<const std::byte> payloads) override {
    INFLLM_ASSIGN_OR_RETURN(const Geometry geometry, GeometryOf(context));
    pb::AppendRequest request;
    return SendBlocks(request, {context, layer, first_block}, "payloads", payloads,
                      geometry.payload_bytes(), [&](std::span<const std::byte> part) {
                        request.set_payloads(part.data(), part.size());
                        pb::AppendResponse response;
                        return Call("Append", &pb::MemoryStore::Stub::Append, request, &response);
                      });
  }

  absl::Status Publish(ContextId context, int32_t layer, int64_t first_block,
                       std::span<const float> representatives) override {
    INFLLM_ASSIGN_OR_RETURN(const Geometry geometry, GeometryOf(context));
    pb::PublishRequest request;
    return SendBlocks(request, {context, layer, first_block}, "representatives", representatives,
                      geometry.representative_floats(), [&](std::span<const float> part) {
                        request.mutable_representatives()->Assign(part.begin(), part.end());
                        pb::PublishResponse response;
                        return Call("Publish", &pb::MemoryStore::Stub::Publish, request, &response);
                      });
  }

  absl::StatusOr<memstore::Selection> Select(ContextId context, int32_t layer,
                                             const memstore::SelectRequest& select) override {
    INFLLM_ASSIGN_OR_RETURN(const Geometry geometry, GeometryOf(context));
    pb::SelectRequest request;
    request.set_context(static_cast<uint64_t>(context));
    request.set_layer(layer);
    request.set_k(select.k);
    request.set_scoring(wire::ToProto(select.scoring));
    request.mutable_have()->Assign(select.have.begin(), select.have.end());
    request.mutable_query()->Assign(select.query.begin(), select.query.end());
    request.set_crc32c(wire::QueryChecksum(context, layer, select));

    memstore::Selection selection;
    int64_t total = -1;
    INFLLM_RETURN_IF_ERROR(Stream<pb::SelectResponse>(
        "Select", select_method_, request, {context, layer},
        [&](pb::SelectResponse& response) -> absl::Status {
          if (total < 0) total = response.total_blocks();
          if (total != response.total_blocks()) {
            return Refuse({context, layer}, "its messages disagree on the number of blocks");
          }
          for (pb::SelectResponse::Block& block : *response.mutable_blocks()) {
            INFLLM_ASSIGN_OR_RETURN(memstore::SelectedBlock selected,
                                    Check(context, layer, geometry, select, block));
            if (!selection.blocks.empty() && selection.blocks.back().index >= selected.index) {
              return Refuse({context, layer, selected.index}, "its blocks are not ascending");
            }
            selection.blocks.push_back(std::move(selected));
          }
          return absl::OkStatus();
        }));
    if (static_cast<int64_t>(selection.blocks.size()) != total) {
      return Refuse({context, layer}, absl::StrCat("it ended after ", selection.blocks.size(),
                                                   " of ", total, " blocks"));
    }
    return selection;
  }

  absl::StatusOr<std::vector<memstore::BlockHandle>> Fetch(
      ContextId context, int32_t layer, std::span<const int64_t> blocks) override {
    INFLLM_ASSIGN_OR_RETURN(const Geometry geometry, GeometryOf(context));
    pb::FetchRequest request;
    request.set_context(static_cast<uint64_t>(context));
    request.set_layer(layer);
    request.mutable_blocks()->Assign(blocks.begin(), blocks.end());

    std::vector<memstore::BlockHandle> handles;
    handles.reserve(blocks.size());
    INFLLM_RETURN_IF_ERROR(Stream<pb::FetchResponse>(
        "Fetch", fetch_method_, request, {context, layer},
        [&](pb::FetchResponse& response) -> absl::Status {
          for (pb::FetchResponse::Block& block : *response.mutable_blocks()) {
            if (handles.size() == blocks.size()) {
              return Refuse({context, layer}, "it has more blocks than were asked for");
            }
            const int64_t index = blocks[handles.size()];
            memstore::BlockHandle handle = TakePayload(block.release_payload());
            if (handle.payload().size() != geometry.payload_bytes() ||
                wire::BlockChecksum({context, layer, index}, handle.payload()) != block.crc32c()) {
              return Refuse({context, layer, index}, "its size or checksum does not fit");
            }
            handles.push_back(std::move(handle));
          }
          return absl::OkStatus();
        }));
    if (handles.size() != blocks.size()) {
      return Refuse({context, layer}, absl::StrCat("it ended after ", handles.size(), " of ",
                                                   blocks.size(), " blocks"));
    }
    return handles;
  }

  absl::Status Seal(ContextId context) override {
    pb::SealRequest request;
    request.set_context(static_cast<uint64_t>(context));
    pb::SealResponse response;
    return Call("Seal", &pb::MemoryStore::Stub::Seal, request, &response);
  }

  absl::StatusOr<ContextId> Fork(ContextId context) override {
    INFLLM_ASSIGN_OR_RETURN(const Geometry geometry, GeometryOf(context));
    pb::ForkRequest request;
    request.set_context(static_cast<uint64_t>(context));
    pb::ForkResponse response;
    INFLLM_RETURN_IF_ERROR(Call("Fork", &pb::MemoryStore::Stub::Fork, request, &response));
    if (response.crc32c() != wire::IdsChecksum({request.context(), response.context()})) {
      return Refuse({context}, "its checksum does not fit");
    }
    const ContextId fork{response.context()};
    Remember(fork, geometry);
    return fork;
  }

  absl::Status Drop(ContextId context) override {
    pb::DropRequest request;
    request.set_context(static_cast<uint64_t>(context));
    pb::DropResponse response;
    INFLLM_RETURN_IF_ERROR(Call("Drop", &pb::MemoryStore::Stub::Drop, request, &response));
    const std::lock_guard lock(mutex_);
    geometries_.erase(context);
    return absl::OkStatus();
  }

  absl::StatusOr<memstore::StoreStats> Stats() override {
    pb::StatsResponse response;
    INFLLM_RETURN_IF_ERROR(
        Call("Stats", &pb::MemoryStore::Stub::Stats, pb::StatsRequest(), &response));
    memstore::StoreStats stats = wire::FromProto(response);
    stats.corrupt_blocks += refused_answers_.load(std::memory_order_relaxed);
    return stats;
  }

 private:
  template <typename Request, typename Response>
  absl::Status Call(std::string_view name,
                    grpc::Status (pb::MemoryStore::Stub::*method)(grpc::ClientContext*,
                                                                  const Request&, Response*),
                    const Request& request, Response* response) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + call_timeout_));
    return ToStatus(name, ((*stub_).*method)(&context, request, response));
  }

  // Hands every message of the answer to `accept`; its error ends the call. Messages are read as
  // bytes, for gRPC's own parsing would take one that does not parse for the end of the answer.
  template <typename Response, typename Request>
  absl::Status Stream(std::string_view name, const grpc::internal::RpcMethod& method,
                      const Request& request, const error::Place& place,
                      absl::FunctionRef<absl::Status(Response&)> accept) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + call_timeout_));
    const std::unique_ptr<grpc::ClientReader<grpc::ByteBuffer>> reader(
        grpc::internal::ClientReaderFactory<grpc::ByteBuffer>::Create(channel_.get(), method,
                                                                      &context, request));
    grpc::ByteBuffer bytes;
    Response response;
    while (reader->Read(&bytes)) {
      grpc::ProtoBufferReader input(&bytes);
      absl::Status accepted = response.ParseFromZeroCopyStream(&input)
                                  ? accept(response)
                                  : Refuse(place, "a message of it is malformed");
      if (!accepted.ok()) {
        context.TryCancel();
        reader->Finish();  // the cancellation; `accepted` says why
        return accepted;
      }
    }
    return ToStatus(name, reader->Finish());
  }

  // Sends `content`, blocks of `block_elements`, in requests of about wire::kTargetMessageBytes.
  // `send` adds its part of the content to `request`, which has all else, and makes the call.
  template <typename Request, typename Element, typename Send>
  absl::Status SendBlocks(Request& request, wire::BlockPlace place, std::string_view field,
                          std::span<const Element> content, size_t block_elements, Send send) {
    if (content.size() % block_elements != 0) {
      return error::NotWholeBlocks(field, static_cast<int64_t>(content.size()),
                                   static_cast<int64_t>(block_elements));
    }
    request.set_context(static_cast<uint64_t>(place.context));
    request.set_layer(place.layer);
    const auto blocks = wire::BlocksPerMessage(block_elements * sizeof(Element));
    const size_t step = static_cast<size_t>(blocks) * block_elements;
    do {
      const std::span<const Element> part = content.first(std::min(step, content.size()));
      content = content.subspan(part.size());
      request.set_first_block(place.index);
      request.clear_crc32c();
      for (size_t begin = 0; begin < part.size(); begin += block_elements) {
        request.add_crc32c(
            wire::BlockChecksum(place, std::as_bytes(part.subspan(begin, block_elements))));
        place.index = wire::Later(place.index, 1);
      }
      INFLLM_RETURN_IF_ERROR(send(part));
    } while (!content.empty());
    return absl::OkStatus();
  }

  absl::StatusOr<memstore::SelectedBlock> Check(ContextId context, int32_t layer,
                                                const Geometry& geometry,
                                                const memstore::SelectRequest& select,
                                                pb::SelectResponse::Block& block) {
    memstore::SelectedBlock selected{.index = block.index(), .score = block.score()};
    selected.block = TakePayload(block.release_payload());
    const std::span<const std::byte> payload = selected.block.payload();
    const error::Place place{context, layer, selected.index};
    if (wire::SelectedChecksum({context, layer, selected.index}, selected.score, payload) !=
        block.crc32c()) {
      return Refuse(place, "its checksum does not fit");
    }
    const bool had = std::binary_search(select.have.begin(), select.have.end(), selected.index);
    if (payload.size() != (had ? 0 : geometry.payload_bytes())) {
      return Refuse(place, absl::StrCat("its payload has ", payload.size(), " bytes"));
    }
    return selected;
  }

  absl::Status Refuse(const error::Place& place, std::string_view what) {
    refused_answers_.fetch_add(1, std::memory_order_relaxed);
    return error::BadAnswer(target_, place, what);
  }

  absl::Status ToStatus(std::string_view call, const grpc::Status& status) const {
    switch (status.error_code()) {
      case grpc::StatusCode::DEADLINE_EXCEEDED:
        return error::StoreTimedOut(target_, call, absl::ToDoubleSeconds(call_timeout_));
      case grpc::StatusCode::CANCELLED:  // we never cancel a call whose status we use: the server
                                         // did
      case grpc::StatusCode::UNAVAILABLE:
        return error::StoreUnavailable(target_, status.error_message());
      case grpc::StatusCode::UNIMPLEMENTED:
        return error::NotAMemoryStore(target_);
      default:
        return FromGrpcStatus(status);
    }
  }

  void Remember(ContextId context, const Geometry& geometry) {
    const std::lock_guard lock(mutex_);
    geometries_[context] = geometry;
  }

  // Of contexts made elsewhere the daemon is asked, once.
  absl::StatusOr<Geometry> GeometryOf(ContextId context) {
    {
      const std::lock_guard lock(mutex_);
      const auto found = geometries_.find(context);
      if (found != geometries_.end()) return found->second;
    }
    pb::DescribeRequest request;
    request.set_context(static_cast<uint64_t>(context));
    pb::DescribeResponse response;
    INFLLM_RETURN_IF_ERROR(Call("Describe", &pb::MemoryStore::Stub::Describe, request, &response));
    if (response.crc32c() != wire::IdsChecksum({request.context()}, response.geometry())) {
      return Refuse({context}, "its checksum does not fit");
    }
    const absl::StatusOr<Geometry> geometry = wire::FromProto(response.geometry());
    const absl::Status valid = geometry.ok() ? Validate(*geometry) : geometry.status();
    if (!valid.ok()) return Refuse({context}, std::string(valid.message()));
    Remember(context, *geometry);
    return *geometry;
  }

  const std::string target_;
  const absl::Duration call_timeout_;
  const std::shared_ptr<grpc::Channel> channel_;  // shared with stub_ and gRPC's own threads
  const std::unique_ptr<pb::MemoryStore::Stub> stub_;
  const grpc::internal::RpcMethod select_method_;
  const grpc::internal::RpcMethod fetch_method_;
  std::atomic<int64_t> refused_answers_{0};
  std::mutex mutex_;
  std::map<ContextId, Geometry> geometries_;
};

std::shared_ptr<grpc::Channel> NewChannel(const Endpoint& endpoint) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(wire::kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(wire::kMaxMessageBytes);
  // Stores are reached directly, also where http_proxy is set.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // A connection of its own, not one shared with other channels of this process.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // A daemon that was restarted is found again within a second.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  const std::string target =
      endpoint.is_unix() ? endpoint.ToString() : absl::StrCat("dns:///", endpoint.ToString());
  return grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
}

// gRPC tells the reason only to a call.
std::string WhyNotConnected(const std::shared_ptr<grpc::Channel>& channel, absl::Duration waited) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Milliseconds(100)));
  pb::StatsResponse response;
  const grpc::Status status =
      pb::MemoryStore::NewStub(channel)->Stats(&context, pb::StatsRequest(), &response);
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE) return status.error_message();
  return absl::StrCat("no answer within ", absl::ToDoubleSeconds(waited), " s");
}

}  // namespace

absl::StatusOr<std::unique_ptr<memstore::MemoryStore>> ConnectRemoteStore(
    const std::string& target, const RemoteStoreOptions& options) {
  INFLLM_ASSIGN_OR_RETURN(const Endpoint endpoint, ParseEndpoint(target));
  KeepGrpcInitialized();
  std::shared_ptr<grpc::Channel> channel = NewChannel(endpoint);
  if (!channel->WaitForConnected(absl::ToChronoTime(absl::Now() + options.connect_timeout))) {
    return error::StoreUnavailable(target, WhyNotConnected(channel, options.connect_timeout));
  }
  auto store = std::make_unique<RemoteStore>(target, options, std::move(channel));
  // Shows that it is a memory store.
  INFLLM_RETURN_IF_ERROR(store->Stats().status());
  return store;
}

}  // namespace infllm::services
