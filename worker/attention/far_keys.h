#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "memstore/memory_store.h"
#include "worker/attention/layer_window.h"
#include "worker/attention/policies.h"

namespace infllm::worker {

// The far keys of one exec block of infllm: sinks, remainder and retrieved blocks, as segments for
// kernels::AttentionArgs::far. Where they stand is AttentionOptions::far_positions:
//   shared      raw keys, for queries that are all rotated to n_local - 1.
//   sequential  rotated keys, for queries at their own positions. The remainder keeps its own
//               positions too. Before its first token, at `base`, stand the sinks and then the
//               blocks, in text order and without a gap: the last token of the last block at
//               base - 1. So when no block is left out, every key stands where it was read.
// Segments carry the true positions, which decide who is far, whatever their keys are rotated to.
// Not thread-safe.
class FarKeys {
 public:
  // `context` must outlive the object.
  explicit FarKeys(const PolicyContext& context) : context_(&context) {}

  // Collects what the exec block that ends at position `end` may attend as far. records[i] are the
  // device bytes of selection.blocks[i]. Rotated pages lie in `scratch`: the segments are valid
  // until it, the window or the records are used again.
  //   INTERNAL  the store says of a selected block that no KV head selected it.
  absl::Status Collect(const LayerWindow& window, const memstore::Selection& selection,
                       std::span<const std::byte* const> records, int64_t end,
                       AttentionScratch& scratch);

  std::span<const kernels::KvSegment> segments() const { return segments_; }

  // Sums over the segments of each selected block, given [segments().size()].
  void SumByBlock(std::span<const float> segment_sums, std::vector<float>& block_sums) const;

 private:
  absl::Status AddBlock(const memstore::SelectedBlock& block, const std::byte* record,
                        const LayerWindow& window);
  absl::Status RotateSegments(const LayerWindow& window, int64_t blocks, AttentionScratch& scratch);
  absl::Status RotateSegment(const float* table, std::byte* page, kernels::KvSegment& segment);

  const PolicyContext* context_;
  std::vector<kernels::KvSegment> segments_;
  size_t sinks_ = 0;                  // segments of sinks: the first ones
  std::vector<size_t> block_begins_;  // of each selected block, its first segment; then the end
};

}  // namespace infllm::worker
