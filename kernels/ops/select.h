// Which memory blocks a query attends: what stands for a block, scores, and the best of them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/ops/attention.h"

namespace infllm::kernels {

// What stands for a block when blocks are scored: [slots, heads, head_dim], raw keys or bounds.
enum class RepresentativeKind : uint8_t {
  // 1 slot, query heads: the mean key of the tokens that drew most attention (the published code).
  kMeanKey,
  // 2 slots, KV heads: the least and the largest key in each channel, over all tokens of the
  // block; their score is an upper bound of q . k (Quest, arXiv 2406.10774).
  kBounds,
};
// [slots, heads] of the representative of a block.
struct RepresentativeShape {
  int64_t slots = 0;
  int64_t heads = 0;
  int64_t rows() const { return slots * heads; }
};
constexpr RepresentativeShape ShapeOf(RepresentativeKind kind, int64_t q_heads, int64_t kv_heads) {
  switch (kind) {
    case RepresentativeKind::kMeanKey:
      return {1, q_heads};
    case RepresentativeKind::kBounds:
      return {2, kv_heads};
  }
  return {};
}

// Makes the representative of each page of a list. For kMeanKey the mean of the `top` keys with the
// largest mass is taken per query head; ties go to the earlier token.
struct RepresentativeItem {
  const std::byte* page = nullptr;  // its record's keys are read
  const float* mass = nullptr;      // [q_heads, page_tokens]; not read by kBounds
  float* out = nullptr;             // [slots, heads, head_dim]
};
struct RepresentativesArgs {
  const RepresentativeItem* items = nullptr;  // shared memory
  int64_t count = 0;
  RepresentativeKind kind = RepresentativeKind::kBounds;
  int64_t q_heads = 0;
  PageShape page;
  int64_t top = 0;
};

// out[i, h, d] = mean over the rows t of range i of q[t, h, d].
struct RowRange {
  int64_t first = 0;
  int64_t rows = 0;
};
struct MeanQueriesArgs {
  const float* q = nullptr;          // [all rows, q_heads, head_dim]
  const RowRange* ranges = nullptr;  // shared memory
  int64_t count = 0;
  float* out = nullptr;  // [count, q_heads, head_dim]
  int64_t q_heads = 0;
  int64_t head_dim = 0;
};

// How the logits of the query heads become the score of a block. The logit of head h and block b is
//   kMeanKey  q_h . r_bh
//   kBounds   sum over d of max(q_hd min_bgd, q_hd max_bgd), g the KV head of h; min <= max
enum class Scoring : uint8_t {
  kMean,      // sum over heads of the logits: the paper's
  kHeadVote,  // sum over heads of softmax over all blocks of scale * logit
};

// Representatives of consecutive blocks.
struct RepresentativeChunk {
  const void* data = nullptr;  // [blocks, slots, heads, head_dim]
  int64_t blocks = 0;
  // EncodeBounds of the whole runs of the blocks, or null. Used by SelectBlocks only.
  const std::byte* codes = nullptr;
};
// Scores each query against the blocks of its chunks. Items whose chunks begin at the same bytes
// (queries of one sequence, forks of one context) are scored in one pass over them. The scores of
// an item do not depend on the other items, bit for bit.
struct ScoreItem {
  const float* query = nullptr;  // [q_heads, head_dim], device memory
  const RepresentativeChunk* chunks = nullptr;
  int64_t chunk_count = 0;
  float* out = nullptr;  // [blocks of all chunks], device memory
};
struct ScoreBlocksArgs {
  const ScoreItem* items = nullptr;  // shared memory, as are the chunks
  int64_t count = 0;
  RepresentativeKind kind = RepresentativeKind::kBounds;
  DType dtype = DType::kF32;  // of the chunks: kF32 or kBF16
  int64_t q_heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  float scale = 1;  // used by kHeadVote only: the mean form's ranking does not depend on it
  Scoring scoring = Scoring::kMean;
};

// The min(k, n) largest of scores[n] per item, ascending by index; of equal scores the smaller
// index is the better one, NaN is worse than any number.
struct TopKItem {
  const float* scores = nullptr;  // [n], device memory
  int64_t n = 0;                  // at most 2^32
  int64_t k = 0;
  int64_t* out_index = nullptr;  // [min(k, n)], shared memory
  float* out_score = nullptr;    // [min(k, n)], likewise
};
struct TopKArgs {
  const TopKItem* items = nullptr;  // shared memory
  int64_t count = 0;
};

// TopK of ScoreBlocks at once: best.items[i] are of what score.items[i] writes, all of it. What is
// selected, and its scores, are those of the two operations bit for bit; the scores of all other
// blocks are undefined. Where chunks have codes, a backend may rule out blocks by them and never
// read their representatives.
struct SelectBlocksArgs {
  ScoreBlocksArgs score;
  TopKArgs best;
};

// Makes the codes of runs of kRunBlocks blocks, a quarter to a seventh of the size of kBounds
// representatives. They are for the backend that has made them.
inline constexpr int64_t kRunBlocks = 256;
struct EncodeBoundsArgs {
  const void* bounds = nullptr;  // [runs, kRunBlocks, 2, kv_heads, head_dim]
  int64_t runs = 0;
  DType dtype = DType::kF32;  // of the bounds: kF32 or kBF16
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  std::byte* codes = nullptr;  // [runs, RunCodeBytes(2 * kv_heads * head_dim)]
};
// Of a run of representatives of `width` elements: a float twice for each channel, and 4 bits for
// each element; channels come in eights.
constexpr int64_t CodedWidth(int64_t width) { return (width + 7) / 8 * 8; }
constexpr size_t RunCodeBytes(int64_t width) {
  return static_cast<size_t>(CodedWidth(width)) * (2 * sizeof(float) + kRunBlocks / 2);
}

// Finds selected blocks among cached ones. For a block that is cached, out[i] becomes its page
// table entry, whole; for one that is not, an entry without tokens, and *misses grows by one.
// Nothing cached is valid.
struct LookUpItem {
  const int64_t* index = nullptr;  // [count], ascending: TopKItem::out_index
  int64_t count = 0;
  const int64_t* cached = nullptr;          // [cached_count], ascending
  const std::byte* const* pages = nullptr;  // [cached_count]
  int64_t cached_count = 0;
  int64_t first_position = 0;  // in the sequence, of block 0
  PageEntry* out = nullptr;    // [count]
  int32_t* misses = nullptr;
};
struct LookUpBlocksArgs {
  const LookUpItem* items = nullptr;  // shared memory
  int64_t count = 0;
  int64_t page_tokens = 0;
};

}  // namespace infllm::kernels
