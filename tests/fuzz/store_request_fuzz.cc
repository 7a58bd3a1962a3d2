// Requests to a memory store as they come over the wire, one after the other: a byte for the call
// (0 Create, 1 Publish, 2 Select), two for the length, then the message. Checksums apart, which a
// mutant would never get right. What is accepted must be within the limits, and answered in form.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "infllm/v1/memory_store.pb.h"
#include "kernels/backend.h"
#include "kernels/core/status_macros.h"
#include "memstore/in_process_store.h"
#include "memstore/limits.h"
#include "memstore/validate.h"
#include "services/memstore/wire.h"
#include "tests/fuzz/fuzz_driver.h"

namespace infllm::services {
namespace {

namespace pb = infllm::v1;
using memstore::ContextId;
using memstore::Geometry;

constexpr int64_t kRamBytes = 1 << 20;
constexpr int64_t kPageBytes = 4096;  // in which the RAM tier counts
constexpr int64_t kMaxBlocks = 8;

class Client {
 public:
  void Handle(uint8_t call, const std::string& message) {
    switch (call) {
      case 0:
        return Create(Parse<pb::CreateRequest>(message));
      case 1:
        return Publish(Parse<pb::PublishRequest>(message));
      case 2:
        return Select(Parse<pb::SelectRequest>(message));
      default:
        return;
    }
  }

 private:
  template <typename Message>
  static Message Parse(const std::string& bytes) {
    Message message;
    if (!message.ParseFromString(bytes)) message.Clear();
    return message;
  }

  // Each layer's blocks are stored at once, so that Publish has something to find.
  void Create(const pb::CreateRequest& request) {
    const absl::StatusOr<Geometry> geometry = wire::FromProto(request.geometry());
    if (!geometry.ok()) return;
    const absl::StatusOr<Geometry> again = wire::FromProto(wire::ToProto(*geometry));
    INFLLM_CHECK(again.ok() && *again == *geometry);
    const absl::StatusOr<ContextId> id = wire::ContextFromProto("context", request.context());
    if (!id.ok()) return;
    INFLLM_CHECK(wire::ToProto(*id) == request.context());
    if (id_ == *id) INFLLM_CHECK(store_->Drop(*std::exchange(id_, std::nullopt)).ok());
    const memstore::ContextOptions options = {.recipe = request.recipe(), .geometry = *geometry};
    const absl::Status created = store_->Create(*id, options);
    INFLLM_CHECK(Validate(options).ok() || !created.ok());
    if (!created.ok()) return;
    INFLLM_CHECK(store_->Create(*id, options).ok());
    INFLLM_CHECK(geometry->payload_bytes() > 0 && geometry->representative_floats() > 0);
    INFLLM_CHECK(geometry->payload_bytes() <= memstore::limits::kMaxPayloadBytes);
    if (id_.has_value()) INFLLM_CHECK(store_->Drop(*id_).ok());
    id_ = *id;
    geometry_ = *geometry;
    published_.assign(static_cast<size_t>(geometry_.layers), 0);
    const auto payload_bytes = static_cast<int64_t>(geometry_.payload_bytes());
    const int64_t slot_bytes = (payload_bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
    blocks_ = std::min(kMaxBlocks, kRamBytes / slot_bytes / geometry_.layers);
    const std::vector<std::byte> payload(static_cast<size_t>(payload_bytes));
    const std::vector<std::span<const std::byte>> payloads(static_cast<size_t>(blocks_), payload);
    for (int32_t layer = 0; layer < geometry_.layers; ++layer) {
      INFLLM_CHECK(store_->Append(*id_, layer, 0, payloads).ok());
    }
  }

  void Publish(const pb::PublishRequest& request) {
    if (!id_.has_value()) return;
    const std::span<const float> representatives = wire::AsSpan(request.representatives());
    if (!store_->Publish(*id_, request.layer(), request.first_block(), representatives).ok()) {
      return;
    }
    const auto blocks =
        static_cast<int64_t>(representatives.size() / geometry_.representative_floats());
    int64_t& published = published_.at(static_cast<size_t>(request.layer()));
    published = std::max(published, request.first_block() + blocks);
    INFLLM_CHECK(published <= blocks_);
    INFLLM_CHECK(
        store_->Publish(*id_, request.layer(), request.first_block(), representatives).ok());
  }

  void Select(const pb::SelectRequest& request) {
    const absl::StatusOr<kernels::Scoring> scoring = wire::FromProto(request.scoring());
    if (!id_.has_value() || !scoring.ok()) return;
    std::vector<memstore::SelectQuery> queries;
    for (const pb::SelectRequest::Query& query : request.queries()) {
      // Any other context than the one that there is becomes one that there is not.
      const bool known = query.context() == wire::ToProto(*id_);
      queries.push_back({.context = known ? *id_ : ContextId{.hi = ~id_->hi, .lo = id_->lo},
                         .query = wire::AsSpan(query.query()),
                         .k = query.k(),
                         .end_block = query.end_block(),
                         .have = wire::AsSpan(query.have())});
    }
    const auto selections =
        store_->Select({.layer = request.layer(), .scoring = *scoring, .queries = queries});
    if (!selections.ok()) return;
    INFLLM_CHECK(selections->size() == queries.size());
    for (size_t i = 0; i < queries.size(); ++i) CheckAnswer(request, queries[i], (*selections)[i]);
  }

  void CheckAnswer(const pb::SelectRequest& request, const memstore::SelectQuery& query,
                   const memstore::Selection& selection) const {
    INFLLM_CHECK(selection.status.ok() || selection.blocks.empty());
    if (!selection.status.ok()) return;
    INFLLM_CHECK(query.context == *id_);
    const int64_t takes_part = std::clamp<int64_t>(
        query.end_block, 0, published_.at(static_cast<size_t>(request.layer())));
    INFLLM_CHECK(static_cast<int64_t>(selection.blocks.size()) ==
                 std::min<int64_t>(query.k, takes_part));
    int64_t last = -1;
    for (const memstore::SelectedBlock& block : selection.blocks) {
      INFLLM_CHECK(block.index > last && block.index < takes_part);
      last = block.index;
      const bool had = std::ranges::binary_search(query.have, block.index);
      INFLLM_CHECK(block.block.payload().size() == (had ? 0 : geometry_.payload_bytes()));
    }
  }

  const std::unique_ptr<kernels::Backend> backend_ = kernels::NewReferenceBackend();
  const std::unique_ptr<memstore::MemoryStore> store_ =
      memstore::NewInProcessStore({.ram_capacity_bytes = 2 * kRamBytes}, *backend_, nullptr)
          .value();
  std::optional<ContextId> id_;
  Geometry geometry_;
  int64_t blocks_ = 0;              // stored in each layer
  std::vector<int64_t> published_;  // of each layer
};

}  // namespace
}  // namespace infllm::services

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  infllm::services::Client client;
  std::span<const uint8_t> rest(data, size);
  while (rest.size() >= 3) {
    const uint8_t call = rest[0];
    const size_t length = std::min<size_t>(rest[1] + 256 * rest[2], rest.size() - 3);
    client.Handle(call, std::string(reinterpret_cast<const char*>(&rest[0]) + 3, length));
    rest = rest.subspan(3 + length);
  }
  return 0;
}
