#include "kernels/cpu/attention_plan.h"

#include <algorithm>

namespace infllm::kernels {
namespace {

// Rows of a query tile: enough to hide the transposition of a key tile (one part in rows / 8 of
// the work), few enough that queries, sums and a key tile stay in the L2 cache.
constexpr int64_t kTileRows = 96;
constexpr int64_t kMinTilesPerSplit = 4;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Offsets [begin, end) of the keys of `segment` that one of the tokens [first, last] sees.
struct Offsets {
  int64_t begin = 0;
  int64_t end = 0;
};
Offsets VisibleKeys(const AttentionArgs& args, const KvSegment& segment, bool far, int64_t first,
                    int64_t last) {
  if (far && args.far_unmasked) return {0, segment.tokens};
  const int64_t start = segment.position - args.first_position;
  if (far) return {0, std::clamp<int64_t>(last - args.window + 1 - start, 0, segment.tokens)};
  const int64_t begin = std::clamp<int64_t>(first - args.window + 1 - start, 0, segment.tokens);
  return {begin, std::clamp<int64_t>(last + 1 - start, begin, segment.tokens)};
}

bool SeesAll(const AttentionArgs& args, bool far, int64_t position, int64_t first, int64_t last) {
  const TokenRange range = VisibleTo(args, far, position);
  return range.first <= first && range.end > last;
}

}  // namespace

TokenRange VisibleTo(const AttentionArgs& args, bool far, int64_t position) {
  const int64_t tokens = args.tokens;
  if (far && args.far_unmasked) return {0, static_cast<int32_t>(tokens)};
  const int64_t start = position - args.first_position;
  // The first token that is `window` or more past the key.
  const int64_t leaves = std::clamp<int64_t>(start + args.window, 0, tokens);
  if (far) return {static_cast<int32_t>(leaves), static_cast<int32_t>(tokens)};
  return {static_cast<int32_t>(std::clamp<int64_t>(start, 0, tokens)),
          static_cast<int32_t>(leaves)};
}

void AttentionPlan::AddTile(const AttentionArgs& args, int64_t first, int64_t tokens) {
  QueryTile tile;
  tile.first = first;
  tile.tokens = tokens;
  tile.runs_begin = static_cast<int64_t>(runs.size());
  const int64_t last = first + tokens - 1;
  int64_t slot = 0;
  const auto add = [&](std::span<const KvSegment> segments, bool far) {
    for (size_t i = 0; i < segments.size(); ++i) {
      const KvSegment& segment = segments[i];
      const Offsets keys = VisibleKeys(args, segment, far, first, last);
      if (keys.begin == keys.end) continue;
      const int64_t position = segment.position;
      const bool all_visible = SeesAll(args, far, position + keys.begin, first, last) &&
                               SeesAll(args, far, position + keys.end - 1, first, last);
      runs.push_back({&segment, static_cast<int64_t>(i), far, all_visible, keys.begin,
                      keys.end - keys.begin, slot});
      slot += keys.end - keys.begin;
    }
    return slot;
  };
  tile.near_end = add(args.near, /*far=*/false);
  tile.near_tiles = CeilDiv(tile.near_end, kTileKeys);
  slot = tile.near_tiles * kTileKeys;
  tile.far_end = add(args.far, /*far=*/true);
  tile.tiles = CeilDiv(tile.far_end, kTileKeys);
  tile.runs_end = static_cast<int64_t>(runs.size());
  max_tiles = std::max(max_tiles, tile.tiles);
  query_tiles.push_back(tile);
}

void AttentionPlan::Build(const AttentionArgs& args) {
  runs.clear();
  query_tiles.clear();
  heads_per_kv = args.q_heads / args.kv_heads;
  const auto has_mass = [](const KvSegment& segment) { return segment.mass != nullptr; };
  track_near = std::any_of(args.near.begin(), args.near.end(), has_mass);
  track_far =
      args.far_segment_mass != nullptr || std::any_of(args.far.begin(), args.far.end(), has_mass);

  const int64_t max_tokens = std::max<int64_t>(kTileRows / heads_per_kv, 1);
  const int64_t tile_tokens = CeilDiv(args.tokens, CeilDiv(args.tokens, max_tokens));
  max_rows = tile_tokens * heads_per_kv;
  max_tiles = 0;
  for (int64_t first = 0; first < args.tokens; first += tile_tokens) {
    AddTile(args, first, std::min(tile_tokens, args.tokens - first));
  }

  splits = 1;
  if (query_tiles.size() == 1) {  // as when decoding: heads alone are too few units of work
    splits =
        std::clamp<int64_t>(max_tiles / kMinTilesPerSplit, 1, CeilDiv(kMaxSplits, args.kv_heads));
  }
  tiles_per_split = std::max<int64_t>(CeilDiv(max_tiles, splits), 1);
  splits = std::max<int64_t>(CeilDiv(max_tiles, tiles_per_split), 1);
}

}  // namespace infllm::kernels
