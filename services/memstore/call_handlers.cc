#include "services/memstore/call_handlers.h"

#include <algorithm>
#include <chrono>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "memstore/limits.h"
#include "services/common/errors.h"
#include "services/memstore/byte_buffer.h"

namespace infllm::services {

namespace pb = infllm::v1;
using memstore::ContextId;
using Messages = std::deque<grpc::ByteBuffer>;

namespace {

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

}  // namespace

absl::Status CallHandlers::Create(const HandledCall& call, const pb::CreateRequest& request,
                                  pb::CreateResponse&) {
  if (wire::Checksum(request) != request.crc32c()) return Damaged("a new context");
  if (!request.has_geometry()) return error::FieldMissing("geometry");
  INFLLM_ASSIGN_OR_RETURN(const ContextId id, wire::ContextFromProto("context", request.context()));
  INFLLM_ASSIGN_OR_RETURN(const memstore::ContextOptions options, wire::OptionsFromProto(request));
  return UnderLease(call, id, request.lease(), [&] { return call.store.Create(id, options); });
}

absl::Status CallHandlers::Describe(const HandledCall& call, const pb::DescribeRequest& request,
                                    pb::DescribeResponse& response) {
  INFLLM_ASSIGN_OR_RETURN(const ContextId id, wire::ContextFromProto("context", request.context()));
  INFLLM_ASSIGN_OR_RETURN(const memstore::ContextOptions options, call.store.Describe(id));
  wire::OptionsToProto(options, response);
  response.set_crc32c(wire::DescribeChecksum(id, response));
  return absl::OkStatus();
}

absl::Status CallHandlers::Append(const HandledCall& call, const pb::AppendRequest& request,
                                  pb::AppendResponse&) {
  INFLLM_ASSIGN_OR_RETURN(const ContextId id, wire::ContextFromProto("context", request.context()));
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

absl::Status CallHandlers::Publish(const HandledCall& call, const pb::PublishRequest& request,
                                   pb::PublishResponse&) {
  INFLLM_ASSIGN_OR_RETURN(const ContextId id, wire::ContextFromProto("context", request.context()));
  INFLLM_ASSIGN_OR_RETURN(const memstore::ContextOptions options, call.store.Describe(id));
  const auto representatives = wire::AsSpan(request.representatives());
  INFLLM_RETURN_IF_ERROR(
      CheckBlocks("representatives", {id, request.layer(), request.first_block()},
                  std::as_bytes(representatives), representatives.size(),
                  options.geometry.representative_floats(), wire::AsSpan(request.crc32c())));
  return call.store.Publish(id, request.layer(), request.first_block(), representatives);
}

absl::Status CallHandlers::Fork(const HandledCall& call, const pb::ForkRequest& request,
                                pb::ForkResponse&) {
  if (wire::Checksum(request) != request.crc32c()) return Damaged("a fork");
  std::vector<memstore::ForkPart> parts;
  for (const pb::ForkRequest::Part& part : request.parts()) {
    INFLLM_ASSIGN_OR_RETURN(const ContextId id, wire::ContextFromProto("parts", part.context()));
    parts.push_back({.context = id, .blocks = part.blocks()});
  }
  INFLLM_ASSIGN_OR_RETURN(const ContextId child, wire::ContextFromProto("child", request.child()));
  return UnderLease(call, child, request.lease(), [&] { return call.store.Fork(parts, child); });
}

absl::Status CallHandlers::Drop(const HandledCall& call, const pb::DropRequest& request,
                                pb::DropResponse&) {
  INFLLM_ASSIGN_OR_RETURN(const ContextId id, wire::ContextFromProto("context", request.context()));
  INFLLM_RETURN_IF_ERROR(call.store.Describe(id).status());  // only then is the lease its own
  leases_.table().Remove(id);
  return call.store.Drop(id);
}

absl::Status CallHandlers::Commit(const HandledCall& call, const pb::CommitRequest& request,
                                  pb::CommitResponse&) {
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

absl::Status CallHandlers::FindCommitted(const HandledCall& call,
                                         const pb::FindCommittedRequest& request,
                                         pb::FindCommittedResponse& response) {
  INFLLM_ASSIGN_OR_RETURN(const memstore::CommittedContext found,
                          call.store.FindCommitted(call.caller.tenant, request.name()));
  *response.mutable_context() = wire::ToProto(found);
  return absl::OkStatus();
}

absl::Status CallHandlers::FindPrefix(const HandledCall& call, const pb::FindPrefixRequest& request,
                                      pb::FindPrefixResponse& response) {
  if (wire::Checksum(request) != request.crc32c()) return Damaged("a search for a prefix");
  if (!request.has_geometry()) return error::FieldMissing("geometry");
  INFLLM_ASSIGN_OR_RETURN(const memstore::ContextOptions options, wire::OptionsFromProto(request));
  INFLLM_ASSIGN_OR_RETURN(
      const memstore::Prefix found,
      call.store.FindPrefix(options, request.exec_block(), wire::AsSpan(request.tokens())));
  *response.mutable_context() = wire::ToProto(found.context);
  response.set_tokens(found.tokens);
  response.set_crc32c(wire::Checksum(response));
  return absl::OkStatus();
}

absl::Status CallHandlers::ReadCheckpoint(const HandledCall& call,
                                          const pb::ReadCheckpointRequest& request,
                                          pb::ReadCheckpointResponse& response) {
  INFLLM_ASSIGN_OR_RETURN(const ContextId id, wire::ContextFromProto("id", request.id()));
  INFLLM_ASSIGN_OR_RETURN(const memstore::Checkpoint checkpoint, call.store.ReadCheckpoint(id));
  response.mutable_tokens()->Assign(checkpoint.tokens.begin(), checkpoint.tokens.end());
  response.set_state(checkpoint.state.data(), checkpoint.state.size());
  response.set_crc32c(wire::CheckpointChecksum(id, response));
  return absl::OkStatus();
}

absl::Status CallHandlers::Stats(const HandledCall& call, const pb::StatsRequest&,
                                 pb::StatsResponse& response) {
  INFLLM_ASSIGN_OR_RETURN(memstore::StoreStats stats, call.store.Stats());
  if (!call.caller.one_of_many) {
    stats.corrupt_blocks += damaged_arrivals_.load(std::memory_order_relaxed);
  }
  response = wire::ToProto(stats);
  return absl::OkStatus();
}

absl::StatusOr<Messages> CallHandlers::ListCommitted(const HandledCall& call,
                                                     const pb::ListCommittedRequest&) {
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

absl::StatusOr<Messages> CallHandlers::Select(const HandledCall& call,
                                              const pb::SelectRequest& request) {
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
  INFLLM_ASSIGN_OR_RETURN(std::vector<memstore::Selection> selections,
                          WithRoom(hold, call.cancelled, [&] {
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

absl::StatusOr<StreamPart> CallHandlers::Fetch(const HandledCall& call,
                                               const pb::FetchRequest& request, size_t& done) {
  INFLLM_ASSIGN_OR_RETURN(const ContextId id, wire::ContextFromProto("context", request.context()));
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
  INFLLM_RETURN_IF_ERROR(SendFetched(id, request.layer(), now, std::move(blocks), pins_, part.last,
                                     [&](const grpc::ByteBuffer& message, bool) {
                                       part.message = message;
                                       return true;
                                     }));
  return part;
}

template <typename Make>
absl::Status CallHandlers::UnderLease(const HandledCall& call, const ContextId& context,
                                      const std::string& lease_bytes, Make make) {
  if (lease_bytes.empty()) return make();
  INFLLM_ASSIGN_OR_RETURN(const ContextId lease, wire::ContextFromProto("lease", lease_bytes));
  INFLLM_RETURN_IF_ERROR(make());
  leases_.table().Add({.tenant = call.caller.tenant, .id = lease}, context);
  return absl::OkStatus();
}

absl::Status CallHandlers::CheckBlocks(std::string_view field, const wire::BlockPlace& first,
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

absl::Status CallHandlers::Damaged(std::string_view what) {
  damaged_arrivals_.fetch_add(1, std::memory_order_relaxed);
  return error::ArrivedDamaged(what);
}
}  // namespace infllm::services
