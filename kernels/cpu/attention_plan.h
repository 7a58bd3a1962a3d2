// How one call of CpuAttention is cut into work. Depends on the shapes and positions of the call
// only, never on the number of threads, so that neither does the result.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/attention_simd.h"

namespace infllm::kernels {

// More units of work than this are not made by splitting keys.
inline constexpr int64_t kMaxSplits = 64;

// The keys of one segment that some token of a query tile sees. In the order of the runs, near
// before far, keys get consecutive *slots*; slot / kTileKeys is the key tile. Far keys start a new
// tile, since they meet other queries.
struct KeyRun {
  const KvSegment* segment = nullptr;
  int64_t index = 0;  // of the segment in near or far
  bool far = false;
  bool all_visible = false;  // every key to every token of the query tile
  int64_t begin = 0;         // first token of the segment
  int64_t count = 0;
  int64_t slot = 0;
};

// Tokens [first, first + tokens) of all query heads.
struct QueryTile {
  int64_t first = 0;
  int64_t tokens = 0;
  int64_t runs_begin = 0;  // into AttentionPlan::runs
  int64_t runs_end = 0;
  int64_t near_tiles = 0;
  int64_t tiles = 0;     // near and far
  int64_t near_end = 0;  // the slot past the last near key
  int64_t far_end = 0;
};

struct AttentionPlan {
  std::vector<KeyRun> runs;
  std::vector<QueryTile> query_tiles;
  int64_t heads_per_kv = 0;
  int64_t max_tiles = 0;        // of a query tile
  int64_t tiles_per_split = 0;  // key tiles of one unit of work
  int64_t splits = 0;           // > 1 only if there is one query tile
  int64_t max_rows = 0;         // of a query tile: tokens times heads_per_kv
  // Whether the probabilities of near and far keys are asked for.
  bool track_near = false;
  bool track_far = false;

  // Reuses the memory of the vectors. Positions and window must be below 2^62.
  void Build(const AttentionArgs& args);

 private:
  void AddTile(const AttentionArgs& args, int64_t first, int64_t tokens);
};

// The tokens [first, end) of the call that see a key at `position`.
struct TokenRange {
  int32_t first = 0;
  int32_t end = 0;
};
TokenRange VisibleTo(const AttentionArgs& args, bool far, int64_t position);

}  // namespace infllm::kernels
