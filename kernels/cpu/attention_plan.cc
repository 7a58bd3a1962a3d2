#include "kernels/cpu/attention_plan.h"

#include <algorithm>
#include <numeric>

namespace infllm::kernels {
namespace {

constexpr int64_t kMinTilesPerSplit = 4;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool SeenByAll(const AttentionArgs& args, KeySource source) {
  return source == KeySource::kBlock || (source == KeySource::kFar && args.far_unmasked);
}

// Keys [begin, end) of an entry, counted from its first.
struct Keys {
  int64_t begin = 0;
  int64_t end = 0;
};
// Those that one of the tokens [first, last] sees.
Keys VisibleKeys(const AttentionArgs& args, int64_t first_position, KeySource source,
                 int64_t position, int64_t count, int64_t first, int64_t last) {
  if (SeenByAll(args, source)) return {0, count};
  const int64_t start = position - first_position;
  if (source == KeySource::kFar) {
    return {0, std::clamp<int64_t>(last - args.window + 1 - start, 0, count)};
  }
  const int64_t begin = std::clamp<int64_t>(first - args.window + 1 - start, 0, count);
  return {begin, std::clamp<int64_t>(last + 1 - start, begin, count)};
}

// Multiply-adds, roughly; transposing a key costs as much as some rows.
int64_t UnitCost(const SpanPlan& plan) { return plan.tiles_per_split * (plan.max_rows + 8); }

}  // namespace

TokenRange VisibleTo(const AttentionArgs& args, const AttentionSpan& span, KeySource source,
                     int64_t position) {
  const int64_t rows = span.rows;
  if (SeenByAll(args, source)) return {0, static_cast<int32_t>(rows)};
  const int64_t start = position - span.first_position;
  // The first token that is `window` or more past the key.
  const int64_t leaves = std::clamp<int64_t>(start + args.window, 0, rows);
  if (source == KeySource::kFar) return {static_cast<int32_t>(leaves), static_cast<int32_t>(rows)};
  return {static_cast<int32_t>(std::clamp<int64_t>(start, 0, rows)), static_cast<int32_t>(leaves)};
}

QueryTile PlanQueryTile(const AttentionArgs& args, const AttentionSpan& span, int64_t first,
                        int64_t tokens, KeySources sources, std::vector<KeyRun>& runs) {
  QueryTile tile;
  tile.first = first;
  tile.tokens = tokens;
  tile.runs_begin = static_cast<int64_t>(runs.size());
  const int64_t last = first + tokens - 1;
  int64_t number = 0;
  const auto add = [&](const PageEntry* entries, int64_t count, KeySource source) {
    const int64_t offset = source == KeySource::kBlock ? 0 : args.layer_offset;
    const auto sees_all = [&](int64_t position) {
      const TokenRange range = VisibleTo(args, span, source, position);
      return range.first <= first && range.end > last;
    };
    for (int64_t i = 0; i < count; ++i) {
      const PageEntry& entry = entries[i];
      const int64_t position = entry.position + entry.first;
      const Keys keys =
          VisibleKeys(args, span.first_position, source, position, entry.tokens, first, last);
      if (keys.begin == keys.end) continue;
      const bool all_visible = sees_all(position + keys.begin) && sees_all(position + keys.end - 1);
      runs.push_back({entry.page + offset, position + keys.begin, entry.first + keys.begin,
                      keys.end - keys.begin, number, i, source, all_visible});
      number += keys.end - keys.begin;
    }
  };
  const auto start_tile = [&] { number = CeilDiv(number, kTileKeys) * kTileKeys; };
  if (sources.near) add(span.near, span.near_pages, KeySource::kNear);
  start_tile();
  tile.near_end = number / kTileKeys;
  if (sources.far) add(span.far, span.far_pages, KeySource::kFar);
  if (args.block_bias != 0) start_tile();
  tile.blocks_begin = CeilDiv(number, kTileKeys);
  if (sources.blocks) add(span.blocks, span.block_count, KeySource::kBlock);
  tile.tiles = CeilDiv(number, kTileKeys);
  tile.runs_end = static_cast<int64_t>(runs.size());
  return tile;
}

void AttentionPlan::AddSpan(const AttentionArgs& args, const AttentionSpan& span) {
  SpanPlan plan;
  plan.span = &span;
  plan.first_tile = static_cast<int64_t>(query_tiles.size());
  const int64_t max_tokens = std::max<int64_t>(tile_rows_ / heads_per_kv, 1);
  const int64_t tile_tokens = CeilDiv(span.rows, CeilDiv(span.rows, max_tokens));
  plan.tile_count = CeilDiv(span.rows, tile_tokens);
  plan.max_rows = tile_tokens * heads_per_kv;
  for (int64_t first = 0; first < span.rows; first += tile_tokens) {
    const int64_t tokens = std::min(tile_tokens, span.rows - first);
    query_tiles.push_back(PlanQueryTile(args, span, first, tokens, {}, runs));
    plan.max_tiles = std::max(plan.max_tiles, query_tiles.back().tiles);
  }
  plan.splits = 1;
  if (plan.tile_count == 1) {  // as when decoding: heads alone are too few units of work
    plan.splits = std::clamp<int64_t>(plan.max_tiles / kMinTilesPerSplit, 1,
                                      CeilDiv(kMaxSplits, args.page.kv_heads));
  }
  plan.tiles_per_split = std::max<int64_t>(CeilDiv(plan.max_tiles, plan.splits), 1);
  plan.splits = std::max<int64_t>(CeilDiv(plan.max_tiles, plan.tiles_per_split), 1);
  work += args.page.kv_heads * plan.max_tiles * kTileKeys * args.page.head_dim *
          (span.rows * heads_per_kv + kRowBlock);
  spans.push_back(plan);
}

void AttentionPlan::AddUnits(const AttentionArgs& args) {
  by_cost_.resize(spans.size());
  std::iota(by_cost_.begin(), by_cost_.end(), 0);
  std::sort(by_cost_.begin(), by_cost_.end(), [&](int32_t a, int32_t b) {
    const int64_t cost_a = UnitCost(spans[static_cast<size_t>(a)]);
    const int64_t cost_b = UnitCost(spans[static_cast<size_t>(b)]);
    return cost_a != cost_b ? cost_a > cost_b : a < b;
  });
  const auto add = [&](int32_t span, int32_t kv_head) {
    const SpanPlan& plan = spans[static_cast<size_t>(span)];
    for (int32_t tile = 0; tile < plan.tile_count; ++tile) {
      for (int32_t split = 0; split < plan.splits; ++split) {
        units.push_back({span, tile, kv_head, split});
      }
    }
  };
  // Units that may read the same keys follow each other: the query tiles of a KV head, and the
  // forks of a sequence, which decode.
  const auto decodes = [&](int32_t span) {
    return spans[static_cast<size_t>(span)].max_rows <= kInPlaceRows;
  };
  for (const int32_t span : by_cost_) {
    for (int32_t kv_head = 0; kv_head < args.page.kv_heads && !decodes(span); ++kv_head) {
      add(span, kv_head);
    }
  }
  for (int32_t kv_head = 0; kv_head < args.page.kv_heads; ++kv_head) {
    for (const int32_t span : by_cost_) {
      if (decodes(span)) add(span, kv_head);
    }
  }
}

void AttentionPlan::Build(const AttentionArgs& args, int64_t tile_rows) {
  tile_rows_ = tile_rows;
  runs.clear();
  query_tiles.clear();
  spans.clear();
  units.clear();
  work = 0;
  heads_per_kv = args.q_heads / args.page.kv_heads;
  for (int64_t i = 0; i < args.span_count; ++i) {
    if (args.spans[i].rows > 0) AddSpan(args, args.spans[i]);
  }
  AddUnits(args);
}

}  // namespace infllm::kernels
