// Reads the operands of attention where they lie, into the form that attention_simd.h wants.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/attention_simd.h"
#include "kernels/cpu/scratch.h"
#include "kernels/ops/attention.h"

namespace infllm::kernels {

// Whether the rows of a span read keys and values where they lie.
inline bool ReadsInPlace(const AttentionKernels& kernels, const AttentionArgs& args,
                         const SpanPlan& span) {
  return span.max_rows <= kInPlaceRows && args.page.head_dim % kernels.in_place_dims == 0;
}

// Memory behind the tiles of one thread.
struct TileMemory {
  KeyTile tile;
  Scratch floats;
};

// Packs the key tiles from `first` on of one query tile and KV head, one after the other.
class TileReader {
 public:
  // `runs` are those of the plan that `queries` is of.
  TileReader(const AttentionArgs& args, const AttentionSpan& span, const TileKernels& kernels,
             const KeyRun* runs, const QueryTile& queries, int64_t kv_head, int64_t first,
             TileMemory& memory)
      : args_(args),
        span_(span),
        kernels_(kernels),
        queries_(queries),
        kv_head_(kv_head),
        runs_end_(runs + queries.runs_end),
        next_(first),
        tile_(memory.tile),
        run_(runs + queries.runs_begin) {
    const int64_t floats = kTileKeys * PaddedDim(args.page.head_dim);
    tile_.head_dim = args.page.head_dim;
    tile_.bf16 = args.page.dtype == DType::kBF16;
    tile_.packed_keys = memory.floats.Get<float>(2 * floats);
    tile_.packed_values = tile_.packed_keys + floats;
  }

  // The next tile, valid until the next call.
  const KeyTile& Read() {
    tile_.keys = 0;
    tile_.all_visible = true;
    tile_.bias = next_ >= queries_.blocks_begin ? args_.block_bias : 0.0f;
    ++next_;
    ForKeys([this](const KeyRun& run, int64_t first, int32_t count, int32_t) {
      AddKeys(run, first, count);
    });
    kernels_.pack(tile_);
    return tile_;
  }

  // body(run, first, count, at): the keys [first, first + count) of the run are those from `at` on
  // of the tile that was read last.
  template <typename Body>
  void ForKeys(Body body) {
    const int64_t number_begin = (next_ - 1) * kTileKeys, number_end = next_ * kTileKeys;
    int64_t number = number_begin;
    while (run_->number + run_->count <= number) ++run_;
    for (const KeyRun* run = run_; run != runs_end_ && run->number < number_end; ++run) {
      const int64_t count = std::min(run->number + run->count, number_end) - number;
      body(*run, number - run->number, static_cast<int32_t>(count),
           static_cast<int32_t>(number - number_begin));
      number += count;
    }
  }

 private:
  // Where they lie and who sees them.
  void AddKeys(const KeyRun& run, int64_t first, int32_t count) {
    const PageShape& page = args_.page;
    const auto element = static_cast<int64_t>(SizeOf(page.dtype));
    const int64_t row_bytes = page.head_dim * element;
    const bool rotated =
        run.source == KeySource::kNear || (run.source == KeySource::kFar && args_.far_rotated);
    const int64_t slot = run.slot + first;
    const int64_t key = rotated ? page.rotated_key(kv_head_, slot) : page.key(kv_head_, slot);
    const std::byte* k = run.page + key * element;
    const std::byte* v = run.page + page.value(kv_head_, slot) * element;
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
        const TokenRange range = VisibleTo(args_, span_, run.source, run.position + first + i);
        tile_.first_token[at + i] = range.first;
        tile_.end_token[at + i] = range.end;
      }
    }
    tile_.keys += count;
  }

  const AttentionArgs& args_;
  const AttentionSpan& span_;
  const TileKernels& kernels_;
  const QueryTile& queries_;
  const int64_t kv_head_;
  const KeyRun* const runs_end_;
  int64_t next_;
  KeyTile& tile_;
  const KeyRun* run_;  // that of the first key of the tile at hand, or one before
};

// The queries of a tile that read one KV head, as rows ordered by head, then token.
class QueryReader {
 public:
  QueryReader(const AttentionArgs& args, const AttentionSpan& span, const QueryTile& queries,
              int64_t kv_head)
      : args_(args),
        span_(span),
        queries_(queries),
        heads_(args.q_heads / args.page.kv_heads),
        first_head_(kv_head * heads_) {}

  int64_t rows() const { return queries_.tokens * heads_; }
  int64_t tokens() const { return queries_.tokens; }
  // How many floats Pack() may write.
  int64_t packed_floats() const { return PaddedRows(rows()) * PaddedDim(args_.page.head_dim); }

  // As QueryRows::q. q: q_near or q_far.
  void Pack(const TileKernels& kernels, const void* q, float* packed) const {
    kernels.pack_queries({.q = static_cast<const float*>(q) + Offset(0),
                          .token_stride = args_.q_heads * args_.page.head_dim,
                          .heads = heads_,
                          .tokens = queries_.tokens,
                          .head_dim = args_.page.head_dim,
                          .scale = args_.scale,
                          .bf16 = args_.page.dtype == DType::kBF16},
                         packed);
  }
  // As QueryRows::token: room for PaddedRows(rows()).
  void Tokens(int32_t* token) const {
    for (int64_t r = 0; r < rows(); ++r) {
      token[r] = static_cast<int32_t>(queries_.first + r % queries_.tokens);
    }
  }
  // Of row r in q_near, q_far and out, in elements.
  int64_t Offset(int64_t r) const {
    const int64_t head = first_head_ + r / queries_.tokens;
    const int64_t token = span_.first_row + queries_.first + r % queries_.tokens;
    return (token * args_.q_heads + head) * args_.page.head_dim;
  }

 private:
  const AttentionArgs& args_;
  const AttentionSpan& span_;
  const QueryTile& queries_;
  const int64_t heads_;
  const int64_t first_head_;
};

}  // namespace infllm::kernels
