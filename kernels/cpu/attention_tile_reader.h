#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "kernels/backend.h"
#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/attention_simd.h"
#include "kernels/cpu/scratch.h"

namespace infllm::kernels {

// Memory behind the tiles of one thread.
struct TileMemory {
  KeyTile tile;
  Scratch floats;
};

// Packs the key tiles of one query tile and KV head, in ascending order. Reads keys and values
// where they lie; what Read() returns is valid until the next call.
class TileReader {
 public:
  TileReader(const AttentionArgs& args, const AttentionKernels& kernels, const AttentionPlan& plan,
             const QueryTile& queries, int64_t kv_head, TileMemory& memory)
      : args_(args),
        kernels_(kernels),
        kv_head_(kv_head),
        tile_(memory.tile),
        run_(plan.runs.data() + queries.runs_begin),
        end_(plan.runs.data() + queries.runs_end) {
    const int64_t dim = args.head_dim;
    tile_.transposed = memory.floats.Get<float>(kTileKeys * (dim + PaddedDim(dim)));
    tile_.value_copy = tile_.transposed + kTileKeys * dim;
  }

  const KeyTile& Read(int64_t index) {
    const int64_t slot_end = (index + 1) * kTileKeys;
    int64_t slot = index * kTileKeys;
    while (run_->slot + run_->count <= slot) ++run_;
    tile_.keys = 0;
    tile_.all_visible = true;
    for (const KeyRun* run = run_; run != end_ && run->slot < slot_end; ++run) {
      const int64_t count = std::min(run->slot + run->count, slot_end) - slot;
      AddKeys(*run, run->begin + slot - run->slot, static_cast<int32_t>(count));
      slot += count;
    }
    kernels_.pack(tile_, args_.head_dim, args_.kv_dtype == DType::kBF16);
    return tile_;
  }

 private:
  // Keys [first, first + count) of a segment.
  void AddKeys(const KeyRun& run, int64_t first, int32_t count) {
    const auto element = static_cast<int64_t>(SizeOf(args_.kv_dtype));
    const int64_t row_bytes = args_.head_dim * element;
    const int64_t offset = kv_head_ * run.segment->head_stride * element + first * row_bytes;
    const auto* k = static_cast<const std::byte*>(run.segment->k) + offset;
    const auto* v = static_cast<const std::byte*>(run.segment->v) + offset;
    const int32_t at = tile_.keys;
    for (int32_t i = 0; i < count; ++i) {
      tile_.k[at + i] = k + i * row_bytes;
      tile_.v[at + i] = v + i * row_bytes;
    }
    if (run.all_visible) {
      std::fill_n(tile_.first_token + at, count, 0);
      std::fill_n(tile_.end_token + at, count, std::numeric_limits<int32_t>::max());
    } else {
      tile_.all_visible = false;
      for (int32_t i = 0; i < count; ++i) {
        const TokenRange range = VisibleTo(args_, run.far, run.segment->position + first + i);
        tile_.first_token[at + i] = range.first;
        tile_.end_token[at + i] = range.end;
      }
    }
    tile_.keys += count;
  }

  const AttentionArgs& args_;
  const AttentionKernels& kernels_;
  const int64_t kv_head_;
  KeyTile& tile_;
  const KeyRun* run_;
  const KeyRun* const end_;
};

}  // namespace infllm::kernels
