// A memory store that begins with contexts far longer than anybody would wait for, or has RAM for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/core/dtype.h"
#include "kernels/core/status_macros.h"
#include "memstore/memory_store.h"
#include "tests/support/forwarding_store.h"

namespace infllm::bench {

// Every context begins with the same `blocks` published blocks of one layer. Their representatives
// are random, each its own; of payloads there are but `payloads`, kept by a real store, and block i
// has the (i mod payloads)-th. Blocks appended later are the real store's, so appending,
// publishing and fetching cost what they do there.
class PlacedStore final : public ::infllm::testing::ForwardingStore {
 public:
  // `store` must outlive the object. `geometry` has one layer, bf16 and bounds.
  PlacedStore(memstore::MemoryStore& store, const memstore::Geometry& geometry, int64_t blocks,
              int64_t payloads)
      : ForwardingStore(store), blocks_(blocks), payloads_(std::min(blocks, payloads)) {
    const auto floats = geometry.representative_floats();
    representatives_ =
        std::make_shared<std::vector<kernels::BF16>>(static_cast<size_t>(blocks) * floats);
    uint64_t state = 1;
    for (size_t block = 0; block < static_cast<size_t>(blocks); ++block) {
      kernels::BF16* const least = representatives_->data() + block * floats;
      for (size_t i = 0; i < floats / 2; ++i) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        const float middle = static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31f;
        least[i] = kernels::BF16(middle - 1);
        least[i + floats / 2] = kernels::BF16(middle + 1);
      }
    }
    INFLLM_CHECK(base().Create(pool_, {.geometry = geometry}).ok());
    std::vector<kernels::BF16> payload(geometry.payload_bytes() / sizeof(kernels::BF16));
    for (int64_t i = 0; i < payloads_; ++i) {
      for (kernels::BF16& value : payload) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        value = kernels::BF16(static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31f);
      }
      const std::span<const std::byte> bytes = std::as_bytes(std::span(payload));
      INFLLM_CHECK(base().Append(pool_, 0, i, {&bytes, 1}).ok());
    }
  }
  ~PlacedStore() override { base().Drop(pool_).IgnoreError(); }

  absl::Status Append(const memstore::ContextId& context, int32_t layer, int64_t first_block,
                      std::span<const std::span<const std::byte>> payloads) override {
    return base().Append(context, layer, first_block - blocks_, payloads);
  }
  absl::Status Publish(const memstore::ContextId& context, int32_t layer, int64_t first_block,
                       std::span<const float> representatives) override {
    return base().Publish(context, layer, first_block - blocks_, representatives);
  }
  absl::StatusOr<std::vector<memstore::Selection>> Select(const memstore::SelectRequest&) override {
    return absl::UnimplementedError("blocks that have been placed are scored by the caller");
  }
  absl::StatusOr<memstore::IndexView> View(const memstore::ContextId& context,
                                           int32_t layer) override {
    INFLLM_ASSIGN_OR_RETURN(memstore::IndexView view, base().View(context, layer));
    if (blocks_ == 0) return view;
    view.chunks.insert(view.chunks.begin(), {.data = representatives_->data(), .blocks = blocks_});
    view.blocks += blocks_;
    view.pin =
        std::make_shared<const std::pair<std::shared_ptr<const void>, std::shared_ptr<const void>>>(
            std::move(view.pin), representatives_);
    return view;
  }
  absl::StatusOr<std::vector<memstore::BlockHandle>> Fetch(
      const memstore::ContextId& context, int32_t layer, std::span<const int64_t> blocks) override {
    const auto placed_end = std::lower_bound(blocks.begin(), blocks.end(), blocks_);
    std::vector<int64_t> placed(blocks.begin(), placed_end), later(placed_end, blocks.end());
    for (int64_t& block : placed) block %= payloads_;
    for (int64_t& block : later) block -= blocks_;
    std::vector<memstore::BlockHandle> handles;
    if (!placed.empty()) {
      INFLLM_ASSIGN_OR_RETURN(handles, base().Fetch(pool_, layer, placed));
    }
    if (later.empty()) return handles;
    INFLLM_ASSIGN_OR_RETURN(std::vector<memstore::BlockHandle> more,
                            base().Fetch(context, layer, later));
    handles.insert(handles.end(), more.begin(), more.end());
    return handles;
  }

 private:
  const memstore::ContextId pool_ = memstore::NewContextId();  // of the payloads
  const int64_t blocks_;
  const int64_t payloads_;
  // Shared with the views.
  std::shared_ptr<std::vector<kernels::BF16>> representatives_;
};

}  // namespace infllm::bench
