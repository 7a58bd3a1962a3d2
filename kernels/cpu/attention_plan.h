// How one call of CpuAttention is cut into work. What a span is cut into depends on its own shapes
// and positions only, never on other spans or the number of threads, so that neither does a result.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/cpu/attention_simd.h"
#include "kernels/ops/attention.h"

namespace infllm::kernels {

// About as many units of work are made of a span by splitting keys, if its heads are fewer.
inline constexpr int64_t kMaxSplits = 64;

enum class KeySource : uint8_t { kNear, kFar, kBlock };

// The keys of one page table entry that some token of a query tile sees. In the order of the runs
// (near, far, blocks), keys get consecutive *numbers*; number / kTileKeys is the key tile. Far keys
// start a new tile, since they meet other queries; so do blocks that have a bias.
struct KeyRun {
  const std::byte* page = nullptr;  // in the layer at hand
  int64_t position = 0;             // of the first key
  int64_t slot = 0;                 // of the first key, in the page
  int64_t count = 0;
  int64_t number = 0;  // of the first key
  int64_t entry = 0;   // of the page table
  KeySource source = KeySource::kNear;
  bool all_visible = false;  // every key to every token of the query tile
};

// Tokens [first, first + tokens) of a span.
struct QueryTile {
  int64_t first = 0;
  int64_t tokens = 0;
  int64_t runs_begin = 0;  // into the vector of runs
  int64_t runs_end = 0;
  // Key tiles: near ones before near_end, then far ones, from blocks_begin on those with the bias.
  int64_t near_end = 0;
  int64_t blocks_begin = 0;
  int64_t tiles = 0;
};

// Which page tables a query tile is planned over.
struct KeySources {
  bool near = true;
  bool far = true;
  bool blocks = true;
};
// Plans one query tile; appends to `runs`.
QueryTile PlanQueryTile(const AttentionArgs& args, const AttentionSpan& span, int64_t first,
                        int64_t tokens, KeySources sources, std::vector<KeyRun>& runs);

struct SpanPlan {
  const AttentionSpan* span = nullptr;
  int64_t first_tile = 0;  // into AttentionPlan::query_tiles
  int64_t tile_count = 0;
  int64_t max_rows = 0;         // of a query tile: tokens times heads_per_kv
  int64_t max_tiles = 0;        // of a query tile
  int64_t tiles_per_split = 0;  // key tiles of one unit of work
  int64_t splits = 0;           // > 1 only if there is one query tile
};

// The key tiles [begin, end) of one split of a query tile, for one KV head.
struct AttentionUnit {
  int32_t span = 0;
  int32_t tile = 0;  // of the span
  int32_t kv_head = 0;
  int32_t split = 0;
};

// The vectors keep their memory from call to call.
struct AttentionPlan {
  std::vector<KeyRun> runs;
  std::vector<QueryTile> query_tiles;
  std::vector<SpanPlan> spans;       // of those that have rows
  std::vector<AttentionUnit> units;  // the costly ones first, then those of decoding
  int64_t heads_per_kv = 0;
  int64_t work = 0;  // multiply-adds, roughly

  // Positions and window must be below 2^62. tile_rows: as in AttentionKernels.
  void Build(const AttentionArgs& args, int64_t tile_rows);

 private:
  void AddSpan(const AttentionArgs& args, const AttentionSpan& span);
  void AddUnits(const AttentionArgs& args);

  int64_t tile_rows_ = 0;
  std::vector<int32_t> by_cost_;
};

// The tokens [first, end) of the span that see a key at `position`.
struct TokenRange {
  int32_t first = 0;
  int32_t end = 0;
};
TokenRange VisibleTo(const AttentionArgs& args, const AttentionSpan& span, KeySource source,
                     int64_t position);

}  // namespace infllm::kernels
