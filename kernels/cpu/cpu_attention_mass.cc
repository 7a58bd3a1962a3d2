#include "kernels/cpu/cpu_attention_mass.h"

#include <algorithm>
#include <cstddef>

#include "kernels/cpu/attention_readers.h"

namespace infllm::kernels {
namespace {

constexpr int64_t kTilesPerUnit = 4;

bool AsksForNear(const AttentionSpan& span) {
  return span.near_mass != nullptr && span.near_pages > 0;
}
bool AsksForBlocks(const AttentionSpan& span) {
  return span.block_mass != nullptr && span.block_count > 0;
}

// Some key tiles, for one KV head. All queries of the span meet them, so that nobody else adds to
// their mass.
struct MassUnit {
  int32_t span;
  int32_t kv_head;
  int64_t first_tile;
};

// Keys of a span, seen from all of its queries at once.
struct MassPlan {
  std::vector<KeyRun> runs;
  std::vector<QueryTile> whole;       // by span of the AttentionPlan; without tiles if not asked
  std::vector<int64_t> block_offset;  // by span: into block_mass
  std::vector<MassUnit> units;
  // [kv_heads, keys of its tiles] of each span that asks for the mass of blocks: summed over the
  // query heads of a KV head.
  Scratch block_mass;
};

struct WorkerScratch {
  TileMemory tiles;
  Scratch tokens;
  Scratch queries;
  Scratch scores;
  Scratch mass;
};
WorkerScratch& ThisWorker() {
  static thread_local WorkerScratch scratch;
  return scratch;
}

class MassCall {
 public:
  MassCall(ThreadPool& pool, bool inline_only, const AttentionKernels& kernels,
           const AttentionArgs& args, const AttentionPlan& plan, RowStats& stats,
           MassPlan& mass_plan)
      : pool_(pool),
        inline_only_(inline_only),
        kernels_(kernels),
        args_(args),
        plan_(plan),
        stats_(stats),
        mass_plan_(mass_plan) {
    Build();
  }

  void Run() {
    const auto count = static_cast<int64_t>(mass_plan_.units.size());
    const auto range = [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) RunUnit(mass_plan_.units[static_cast<size_t>(i)]);
    };
    if (inline_only_) {
      range(0, count, 0);
    } else {
      pool_.ParallelFor(count, 1, range);
    }
    for (size_t i = 0; i < plan_.spans.size(); ++i) SumBlocks(i);
  }

 private:
  void Build() {
    mass_plan_.runs.clear();
    mass_plan_.whole.clear();
    mass_plan_.block_offset.clear();
    mass_plan_.units.clear();
    int64_t block_floats = 0;
    for (size_t i = 0; i < plan_.spans.size(); ++i) {
      const AttentionSpan& span = *plan_.spans[i].span;
      const KeySources sources = {AsksForNear(span), /*far=*/false, AsksForBlocks(span)};
      mass_plan_.whole.push_back(
          PlanQueryTile(args_, span, 0, span.rows, sources, mass_plan_.runs));
      mass_plan_.block_offset.push_back(block_floats);
      const int64_t tiles = mass_plan_.whole.back().tiles;
      if (sources.blocks) block_floats += args_.page.kv_heads * tiles * kTileKeys;
      for (int32_t g = 0; g < args_.page.kv_heads; ++g) {
        for (int64_t tile = 0; tile < tiles; tile += kTilesPerUnit) {
          mass_plan_.units.push_back({static_cast<int32_t>(i), g, tile});
        }
      }
    }
    block_mass_ = mass_plan_.block_mass.Get<float>(block_floats);
  }

  // Those whose rounding the maxima and sums of the span have.
  const TileKernels& KernelsOf(size_t span) const {
    return ReadsInPlace(kernels_, args_, plan_.spans[span]) ? kernels_.masses : kernels_.packed;
  }
  // [keys of the span's tiles]
  float* BlockMass(size_t span, int64_t kv_head) const {
    return block_mass_ + mass_plan_.block_offset[span] +
           kv_head * mass_plan_.whole[span].tiles * kTileKeys;
  }

  void RunUnit(const MassUnit& unit) const {
    const auto index = static_cast<size_t>(unit.span);
    const AttentionSpan& span = *plan_.spans[index].span;
    const QueryTile& whole = mass_plan_.whole[index];
    const int64_t end = std::min(unit.first_tile + kTilesPerUnit, whole.tiles);
    const int64_t heads = plan_.heads_per_kv;
    WorkerScratch& worker = ThisWorker();
    float* mass = worker.mass.Get<float>(heads * kTileKeys);
    TileReader tiles(args_, span, KernelsOf(index), mass_plan_.runs.data(), whole, unit.kv_head,
                     unit.first_tile, worker.tiles);
    for (int64_t tile = unit.first_tile; tile < end; ++tile) {
      std::fill_n(mass, heads * kTileKeys, 0.0f);
      FoldTile(unit, tiles.Read(), tile < whole.near_end, mass);
      tiles.ForKeys([&](const KeyRun& run, int64_t first, int32_t count, int32_t at) {
        if (run.source == KeySource::kNear) {
          AddToPage(span, run, first, count, mass + at, unit.kv_head);
          return;
        }
        float* out = BlockMass(index, unit.kv_head) + run.number + first;
        for (int32_t k = 0; k < count; ++k) {
          out[k] = 0;
          for (int64_t h = 0; h < heads; ++h) out[k] += mass[h * kTileKeys + at + k];
        }
      });
    }
  }

  // mass[query head of the KV head, key] of a key tile: over all queries, tile by tile.
  void FoldTile(const MassUnit& unit, const KeyTile& keys, bool near, float* mass) const {
    const SpanPlan& span = plan_.spans[static_cast<size_t>(unit.span)];
    const TileKernels& kernels = KernelsOf(static_cast<size_t>(unit.span));
    WorkerScratch& worker = ThisWorker();
    for (int64_t t = 0; t < span.tile_count; ++t) {
      const QueryTile& queries = plan_.query_tiles[static_cast<size_t>(span.first_tile + t)];
      const QueryReader reader(args_, *span.span, queries, unit.kv_head);
      float* packed = worker.queries.Get<float>(reader.packed_floats());
      auto* token = worker.tokens.Get<int32_t>(PaddedRows(reader.rows()));
      float* p = worker.scores.Get<float>(PaddedRows(reader.rows()) * kTileKeys);
      reader.Pack(kernels, near ? args_.q_near : args_.q_far, packed);
      reader.Tokens(token);
      const QueryRows rows = {reader.rows(), args_.scale, packed, token, nullptr, nullptr, nullptr};
      kernels.rescore(keys, rows, stats_.max(plan_, unit.span, t, unit.kv_head), p);
      const float* inverse = stats_.inverse(plan_, unit.span, t, unit.kv_head);
      const int64_t tokens = reader.tokens();
      for (int64_t h = 0; h < plan_.heads_per_kv; ++h) {
        kernels_.fold_mass(p + h * tokens * kTileKeys, inverse + h * tokens, tokens, keys.keys,
                           mass + h * kTileKeys);
      }
    }
  }

  // Keys [first, first + count) of a run; mass: [heads_per_kv, kTileKeys].
  void AddToPage(const AttentionSpan& span, const KeyRun& run, int64_t first, int32_t count,
                 const float* mass, int64_t kv_head) const {
    float* page = span.near_mass[run.entry];
    if (page == nullptr) return;
    page = reinterpret_cast<float*>(reinterpret_cast<std::byte*>(page) + args_.mass_layer_offset);
    for (int64_t h = 0; h < plan_.heads_per_kv; ++h) {
      const int64_t head = kv_head * plan_.heads_per_kv + h;
      float* out = page + head * args_.page.page_tokens + run.slot + first;
      for (int32_t k = 0; k < count; ++k) out[k] += mass[h * kTileKeys + k];
    }
  }

  void SumBlocks(size_t index) const {
    const AttentionSpan& span = *plan_.spans[index].span;
    if (!AsksForBlocks(span)) return;
    std::fill_n(span.block_mass, span.block_count, 0.0f);
    const QueryTile& whole = mass_plan_.whole[index];
    for (int64_t i = whole.runs_begin; i < whole.runs_end; ++i) {
      const KeyRun& run = mass_plan_.runs[static_cast<size_t>(i)];
      if (run.source != KeySource::kBlock) continue;
      double sum = 0;
      for (int64_t g = 0; g < args_.page.kv_heads; ++g) {
        const float* mass = BlockMass(index, g) + run.number;
        for (int64_t k = 0; k < run.count; ++k) sum += mass[k];
      }
      span.block_mass[run.entry] = static_cast<float>(sum);
    }
  }

  ThreadPool& pool_;
  const bool inline_only_;
  const AttentionKernels& kernels_;
  const AttentionArgs& args_;
  const AttentionPlan& plan_;
  RowStats& stats_;
  MassPlan& mass_plan_;
  float* block_mass_;
};

}  // namespace

void RowStats::Reset(const AttentionArgs& args, const AttentionPlan& plan) {
  offsets_.clear();
  size_ = 0;
  for (const SpanPlan& span : plan.spans) {
    const bool wanted = AsksForNear(*span.span) || AsksForBlocks(*span.span);
    offsets_.push_back(wanted ? size_ : -1);
    if (wanted) size_ += 2 * args.page.kv_heads * span.tile_count * PaddedRows(span.max_rows);
  }
  data_ = size_ > 0 ? floats_.Get<float>(size_) : nullptr;
}

float* RowStats::max(const AttentionPlan& plan, int64_t span, int64_t tile, int64_t kv_head) {
  const SpanPlan& of = plan.spans[static_cast<size_t>(span)];
  return data_ + offsets_[static_cast<size_t>(span)] +
         2 * (kv_head * of.tile_count + tile) * PaddedRows(of.max_rows);
}

float* RowStats::inverse(const AttentionPlan& plan, int64_t span, int64_t tile, int64_t kv_head) {
  const SpanPlan& of = plan.spans[static_cast<size_t>(span)];
  return max(plan, span, tile, kv_head) + PaddedRows(of.max_rows);
}

void CpuAttentionMass(ThreadPool& pool, bool inline_only, const AttentionKernels& kernels,
                      const AttentionArgs& args, const AttentionPlan& plan, RowStats& stats) {
  static thread_local MassPlan mass_plan;
  MassCall(pool, inline_only, kernels, args, plan, stats, mass_plan).Run();
}

}  // namespace infllm::kernels
