#include "services/memstore/remote_store.h"

#include <grpcpp/channel.h>

#include <algorithm>
#include <mutex>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "infllm/v1/memory_store.grpc.pb.h"
#include "kernels/core/status_macros.h"
#include "memstore/validate.h"
#include "services/common/errors.h"
#include "services/memstore/answers.h"
#include "services/memstore/channel.h"
#include "services/memstore/lease_holder.h"
#include "services/memstore/remote_calls.h"
#include "services/memstore/remote_commits.h"
#include "services/memstore/unary_call.h"
#include "services/memstore/wire.h"

namespace infllm::services {
namespace {

namespace pb = infllm::v1;
using memstore::ContextId;
using memstore::ContextOptions;
using memstore::Geometry;
using memstore::Selection;

// Of all last Drops together: an interrupt ends within a second.
constexpr absl::Duration kLastDrops = absl::Milliseconds(500);

// What this client knows of a context.
struct Context {
  ContextOptions options;
  std::vector<int64_t> published;  // blocks of each layer, at least
};

// The daemon knows whose client this is.
absl::Status CheckTenant(std::string_view tenant) {
  if (tenant.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "a tenant is named, but that of a remote store is who the daemon takes its client for: leave "
      "it empty");
}

// What a query takes in a request.
size_t BytesOf(const memstore::SelectQuery& query) {
  constexpr size_t kOthers = 64;
  return query.query.size_bytes() + query.have.size_bytes() + kOthers;
}

// A query that failed for a passing reason.
bool MayPass(const absl::Status& status) {
  return absl::IsResourceExhausted(status) || absl::IsUnavailable(status);
}

class RemoteStoreClient final : public RemoteStore {
  using Stub = RemoteCalls::Stub;

 public:
  RemoteStoreClient(std::string target, const RemoteStoreOptions& options,
                    std::shared_ptr<grpc::Channel> channel)
      : calls_(std::move(target), options, channel), lease_(std::move(channel)) {}

  // Shows that a memory store listens.
  absl::Status Probe() {
    pb::StatsResponse response;
    return calls_.Settle(
        "Stats", calls_.CallOnce("Stats", &Stub::AsyncStats, pb::StatsRequest(), &response));
  }

  void Cancel() override { calls_.cancellation().Cancel(); }
  RetryCounts Retries() const override { return calls_.retrier().counts(); }

  absl::Status Create(const ContextId& id, const ContextOptions& options) override {
    INFLLM_RETURN_IF_ERROR(Validate(options));  // here too: sizes below must not overflow
    INFLLM_RETURN_IF_ERROR(CheckTenant(options.tenant));
    pb::CreateRequest request;
    request.set_context(wire::ToProto(id));
    wire::OptionsToProto(options, request);
    request.set_lease(wire::ToProto(lease_.lease()));
    request.set_crc32c(wire::Checksum(request));
    pb::CreateResponse response;
    INFLLM_RETURN_IF_ERROR(calls_.Call("Create", &Stub::AsyncCreate, request, &response));
    Remember(id, options);
    return absl::OkStatus();
  }

  // Of contexts made elsewhere the daemon is asked, once.
  absl::StatusOr<ContextOptions> Describe(const ContextId& context) override {
    {
      const std::lock_guard lock(mutex_);
      const auto found = contexts_.find(context);
      if (found != contexts_.end()) return found->second.options;
    }
    pb::DescribeRequest request;
    request.set_context(wire::ToProto(context));
    pb::DescribeResponse response;
    const absl::Status status = calls_.retrier().Run([&]() -> absl::Status {
      INFLLM_RETURN_IF_ERROR(calls_.CallOnce("Describe", &Stub::AsyncDescribe, request, &response));
      if (response.crc32c() != wire::DescribeChecksum(context, response)) {
        return calls_.Counted(
            error::DamagedAnswer(calls_.target(), {context}, "its checksum does not fit"));
      }
      return absl::OkStatus();
    });
    INFLLM_RETURN_IF_ERROR(calls_.Settle("Describe", status));
    const absl::StatusOr<ContextOptions> options = wire::OptionsFromProto(response);
    const absl::Status valid = options.ok() ? Validate(*options) : options.status();
    if (!valid.ok()) {
      return calls_.Counted(
          error::WrongAnswer(calls_.target(), {context}, std::string(valid.message())));
    }
    Remember(context, *options);
    return *options;
  }

  absl::Status Append(const ContextId& context, int32_t layer, int64_t first_block,
                      std::span<const std::span<const std::byte>> payloads) override {
    INFLLM_ASSIGN_OR_RETURN(const Geometry geometry, GeometryOf(context));
    const size_t bytes = geometry.payload_bytes();
    for (size_t i = 0; i < payloads.size(); ++i) {
      if (payloads[i].size() == bytes) continue;
      return error::WrongSize(absl::StrCat("payload ", i), static_cast<int64_t>(payloads[i].size()),
                              static_cast<int64_t>(bytes));
    }
    pb::AppendRequest request;
    return SendBlocks(
        request, {context, layer, first_block}, payloads.size(), bytes,
        [&](size_t begin, size_t count) {
          request.mutable_payloads()->clear();
          request.mutable_payloads()->reserve(count * bytes);
          for (const std::span<const std::byte> payload : payloads.subspan(begin, count)) {
            request.mutable_payloads()->append(reinterpret_cast<const char*>(payload.data()),
                                               payload.size());
          }
          return std::as_bytes(wire::AsSpan(request.payloads()));
        },
        [&] {
          pb::AppendResponse response;
          return calls_.Call("Append", &Stub::AsyncAppend, request, &response);
        });
  }

  absl::Status Publish(const ContextId& context, int32_t layer, int64_t first_block,
                       std::span<const float> representatives) override {
    INFLLM_ASSIGN_OR_RETURN(const Geometry geometry, GeometryOf(context));
    const size_t floats = geometry.representative_floats();
    if (representatives.size() % floats != 0) {
      return error::NotWholeBlocks("representatives", static_cast<int64_t>(representatives.size()),
                                   static_cast<int64_t>(floats));
    }
    const size_t blocks = representatives.size() / floats;
    pb::PublishRequest request;
    INFLLM_RETURN_IF_ERROR(SendBlocks(
        request, {context, layer, first_block}, blocks, floats * sizeof(float),
        [&](size_t begin, size_t count) {
          const auto part = representatives.subspan(begin * floats, count * floats);
          request.mutable_representatives()->Assign(part.begin(), part.end());
          return std::as_bytes(part);
        },
        [&] {
          pb::PublishResponse response;
          return calls_.Call("Publish", &Stub::AsyncPublish, request, &response);
        }));
    NotePublished(context, layer, wire::Later(first_block, blocks));
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<Selection>> Select(const memstore::SelectRequest& request) override {
    INFLLM_RETURN_IF_ERROR(Validate(request));
    std::vector<Selection> selections(request.queries.size());
    std::vector<AskedQuery> asked(request.queries.size());
    std::vector<size_t> part;  // queries that travel together
    size_t part_bytes = 0;
    for (size_t i = 0; i < selections.size(); ++i) {
      const memstore::SelectQuery& query = request.queries[i];
      const absl::StatusOr<Geometry> geometry = GeometryOf(query.context);
      if (absl::IsNotFound(geometry.status())) {
        selections[i].status = geometry.status();
        continue;
      }
      INFLLM_RETURN_IF_ERROR(geometry.status());
      asked[i] = {.query = &query,
                  .payload_bytes = geometry->payload_bytes(),
                  .published = PublishedIn(query.context, request.layer)};
      const size_t bytes = BytesOf(query);
      if (!part.empty() && part_bytes + bytes > wire::kTargetMessageBytes) {
        INFLLM_RETURN_IF_ERROR(SelectTogether(request, asked, std::exchange(part, {}), selections));
        part_bytes = 0;
      }
      part.push_back(i);
      part_bytes += bytes;
    }
    if (!part.empty()) INFLLM_RETURN_IF_ERROR(SelectTogether(request, asked, part, selections));
    return selections;
  }

  absl::StatusOr<memstore::IndexView> View(const ContextId&, int32_t) override {
    return absl::UnimplementedError(
        "the block index is in another process, which cannot be looked into: Select");
  }

  absl::StatusOr<std::vector<memstore::BlockHandle>> Fetch(
      const ContextId& context, int32_t layer, std::span<const int64_t> blocks) override {
    INFLLM_ASSIGN_OR_RETURN(const Geometry geometry, GeometryOf(context));
    pb::FetchRequest request;
    request.set_context(wire::ToProto(context));
    request.set_layer(layer);
    request.mutable_blocks()->Assign(blocks.begin(), blocks.end());
    std::vector<memstore::BlockHandle> handles;
    const absl::Status status = calls_.retrier().Run([&]() -> absl::Status {
      FetchAnswer answer(calls_.target(), context, layer, blocks, geometry.payload_bytes());
      INFLLM_RETURN_IF_ERROR(calls_.Stream<pb::FetchResponse>(
          "Fetch", request, [&](pb::FetchResponse& part) { return answer.Take(part); }));
      INFLLM_ASSIGN_OR_RETURN(handles, calls_.Counted(answer.Finish()));
      return absl::OkStatus();
    });
    INFLLM_RETURN_IF_ERROR(calls_.Settle("Fetch", status));
    return handles;
  }

  using MemoryStore::Fork;
  absl::Status Fork(std::span<const memstore::ForkPart> parts, const ContextId& child) override {
    std::optional<Context> shared;  // before the call: this much, at least
    if (parts.size() == 1) shared = Recall(parts[0].context);
    pb::ForkRequest request;
    for (const memstore::ForkPart& part : parts) {
      pb::ForkRequest::Part& message = *request.add_parts();
      message.set_context(wire::ToProto(part.context));
      message.set_blocks(part.blocks);
    }
    request.set_child(wire::ToProto(child));
    request.set_lease(wire::ToProto(lease_.lease()));
    request.set_crc32c(wire::Checksum(request));
    pb::ForkResponse response;
    INFLLM_RETURN_IF_ERROR(calls_.Call("Fork", &Stub::AsyncFork, request, &response));
    if (!shared.has_value()) return absl::OkStatus();  // the daemon is asked when it is needed
    for (int64_t& published : shared->published) {
      published = std::min(published, parts[0].blocks);
    }
    const std::lock_guard lock(mutex_);
    contexts_[child] = *std::move(shared);
    return absl::OkStatus();
  }

  absl::Status Drop(const ContextId& context) override {
    pb::DropRequest request;
    request.set_context(wire::ToProto(context));
    pb::DropResponse response;
    absl::Status status;
    if (calls_.gave_up()) {  // who waited for the daemon in vain does not wait again to clean up
      status = LastDrop(request);
    } else {
      status = calls_.Call("Drop", &Stub::AsyncDrop, request, &response);
      if (absl::IsCancelled(status)) status = LastDrop(request);
    }
    INFLLM_RETURN_IF_ERROR(status);
    const std::lock_guard lock(mutex_);
    contexts_.erase(context);
    return absl::OkStatus();
  }

  absl::Status Commit(const memstore::CommitRequest& request) override {
    return CommitRemotely(calls_, request);
  }
  absl::StatusOr<memstore::CommittedContext> FindCommitted(std::string_view tenant,
                                                           std::string_view name) override {
    INFLLM_RETURN_IF_ERROR(CheckTenant(tenant));
    return FindRemotely(calls_, name);
  }
  absl::StatusOr<std::vector<memstore::CommittedContext>> ListCommitted(
      std::string_view tenant) override {
    INFLLM_RETURN_IF_ERROR(CheckTenant(tenant));
    return ListRemotely(calls_);
  }
  absl::StatusOr<memstore::Prefix> FindPrefix(const memstore::ContextOptions& options,
                                              int32_t exec_block,
                                              std::span<const int32_t> tokens) override {
    INFLLM_RETURN_IF_ERROR(CheckTenant(options.tenant));
    return FindPrefixRemotely(calls_, options, exec_block, tokens);
  }
  absl::StatusOr<memstore::Checkpoint> ReadCheckpoint(const ContextId& committed) override {
    return ReadCheckpointRemotely(calls_, committed);
  }

  absl::StatusOr<memstore::StoreStats> Stats() override {
    pb::StatsResponse response;
    INFLLM_RETURN_IF_ERROR(calls_.Call("Stats", &Stub::AsyncStats, pb::StatsRequest(), &response));
    memstore::StoreStats stats = wire::FromProto(response);
    stats.corrupt_blocks += calls_.refused_answers();
    return stats;
  }

 private:
  // Sends `blocks` blocks of `block_bytes` in requests of about wire::kTargetMessageBytes.
  // `fill(begin, count)` puts those blocks into `request` and returns their bytes; `send` makes the
  // call.
  template <typename Request, typename Fill, typename Send>
  absl::Status SendBlocks(Request& request, wire::BlockPlace place, size_t blocks,
                          size_t block_bytes, Fill fill, Send send) {
    request.set_context(wire::ToProto(place.context));
    request.set_layer(place.layer);
    const auto step = static_cast<size_t>(wire::BlocksPerMessage(block_bytes));
    size_t begin = 0;
    do {
      const size_t count = std::min(step, blocks - begin);
      const std::span<const std::byte> content = fill(begin, count);
      request.set_first_block(place.index);
      request.clear_crc32c();
      for (size_t i = 0; i < count; ++i) {
        request.add_crc32c(
            wire::BlockChecksum(place, content.subspan(i * block_bytes, block_bytes)));
        place.index = wire::Later(place.index, 1);
      }
      INFLLM_RETURN_IF_ERROR(send());
      begin += count;
    } while (begin < blocks);
    return absl::OkStatus();
  }

  // Asks the queries of `part`. Those whose own errors may pass are asked again by themselves: what
  // the others took in the daemon's RAM is free by then.
  absl::Status SelectTogether(const memstore::SelectRequest& request,
                              std::span<const AskedQuery> asked, std::vector<size_t> part,
                              std::span<Selection> selections) {
    absl::Status call;  // the last one
    const absl::Status status = calls_.retrier().Run([&]() -> absl::Status {
      call = SelectOnce(request, asked, part, selections);
      INFLLM_RETURN_IF_ERROR(call);
      std::erase_if(part, [&](size_t i) { return !MayPass(selections[i].status); });
      return part.empty() ? absl::OkStatus() : selections[part.front()].status;
    });
    return calls_.Settle("Select", absl::IsCancelled(status) ? status : call);
  }

  absl::Status SelectOnce(const memstore::SelectRequest& request, std::span<const AskedQuery> asked,
                          std::span<const size_t> part, std::span<Selection> selections) {
    pb::SelectRequest message;
    message.set_layer(request.layer);
    message.set_scoring(wire::ToProto(request.scoring));
    std::vector<AskedQuery> asked_now;
    for (const size_t i : part) {
      const memstore::SelectQuery& query = *asked[i].query;
      pb::SelectRequest::Query& sent = *message.add_queries();
      sent.set_context(wire::ToProto(query.context));
      sent.set_k(query.k);
      sent.set_end_block(query.end_block);
      sent.mutable_have()->Assign(query.have.begin(), query.have.end());
      sent.mutable_query()->Assign(query.query.begin(), query.query.end());
      asked_now.push_back(asked[i]);
    }
    message.set_crc32c(wire::Checksum(message));
    SelectAnswer answer(calls_.target(), request.layer, asked_now);
    const std::string request_id = NewRequestId();
    INFLLM_RETURN_IF_ERROR(calls_.Stream<pb::SelectResponse>(
        "Select", message, [&](pb::SelectResponse& more) { return answer.Take(more); },
        request_id));
    INFLLM_ASSIGN_OR_RETURN(std::vector<Selection> answers, calls_.Counted(answer.Finish()));
    for (size_t i = 0; i < part.size(); ++i) {
      answers[i].status = error::OfRequest(request_id, answers[i].status);
      selections[part[i]] = std::move(answers[i]);
    }
    return absl::OkStatus();
  }

  // After a cancellation, or when the daemon is not there: without retries, and all of them within
  // kLastDrops.
  absl::Status LastDrop(const pb::DropRequest& request) {
    absl::Time end;
    {
      const std::lock_guard lock(mutex_);
      if (last_drops_end_ == absl::InfiniteFuture()) last_drops_end_ = absl::Now() + kLastDrops;
      end = last_drops_end_;
    }
    const auto start = [&](grpc::ClientContext* context, grpc::CompletionQueue* queue) {
      return calls_.stub().AsyncDrop(context, request, queue);
    };
    pb::DropResponse response;
    return calls_.ToStatus("Drop", CallUnary(nullptr, end, start, &response));
  }

  absl::StatusOr<Geometry> GeometryOf(const ContextId& context) {
    {
      const std::lock_guard lock(mutex_);
      const auto found = contexts_.find(context);
      if (found != contexts_.end()) return found->second.options.geometry;
    }
    INFLLM_ASSIGN_OR_RETURN(const ContextOptions options, Describe(context));
    return options.geometry;
  }

  void Remember(const ContextId& context, const ContextOptions& options) {
    const auto layers = static_cast<size_t>(options.geometry.layers);
    const std::lock_guard lock(mutex_);
    contexts_[context] = {.options = options, .published = std::vector<int64_t>(layers)};
  }

  std::optional<Context> Recall(const ContextId& context) const {
    const std::lock_guard lock(mutex_);
    const auto found = contexts_.find(context);
    if (found == contexts_.end()) return std::nullopt;
    return found->second;
  }

  // At least; 0 if nothing is known, also of a layer that there is not.
  int64_t PublishedIn(const ContextId& context, int32_t layer) const {
    const std::lock_guard lock(mutex_);
    const auto found = contexts_.find(context);
    if (found == contexts_.end() || !HasLayer(found->second, layer)) return 0;
    return found->second.published[static_cast<size_t>(layer)];
  }
  void NotePublished(const ContextId& context, int32_t layer, int64_t blocks) {
    const std::lock_guard lock(mutex_);
    const auto found = contexts_.find(context);
    if (found == contexts_.end() || !HasLayer(found->second, layer)) return;
    int64_t& published = found->second.published[static_cast<size_t>(layer)];
    published = std::max(published, blocks);
  }
  static bool HasLayer(const Context& context, int32_t layer) {
    return layer >= 0 && layer < context.options.geometry.layers;
  }

  RemoteCalls calls_;
  mutable std::mutex mutex_;
  absl::flat_hash_map<ContextId, Context> contexts_ ABSL_GUARDED_BY(mutex_);
  absl::Time last_drops_end_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  LeaseHolder lease_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RemoteStore>> ConnectRemoteStore(const std::string& target,
                                                                const RemoteStoreOptions& options) {
  INFLLM_ASSIGN_OR_RETURN(
      std::shared_ptr<grpc::Channel> channel,
      ConnectChannel(target, options.security, options.connect_timeout, options.cancel));
  auto store = std::make_unique<RemoteStoreClient>(target, options, std::move(channel));
  INFLLM_RETURN_IF_ERROR(store->Probe());
  return store;
}

}  // namespace infllm::services
