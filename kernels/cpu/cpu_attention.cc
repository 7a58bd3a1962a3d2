#include "kernels/cpu/cpu_attention.h"

#include <algorithm>
#include <limits>

#include "absl/functional/function_ref.h"
#include "kernels/core/status_macros.h"
#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/attention_simd.h"
#include "kernels/cpu/attention_tile_reader.h"
#include "kernels/cpu/scratch.h"

namespace infllm::kernels {
namespace {

// Multiply-adds below which a call runs on the calling thread: waking the pool costs more.
constexpr int64_t kInlineWork = 1 << 20;
// e^(s - max) of a unit of work is kept for its mass up to this size, and computed again beyond.
constexpr int64_t kKeptFloats = 2 << 20;
constexpr int64_t kKeptFloatsOfSplits = 16 << 20;  // all units together
// Mass of query tiles that waits for being added up in order.
constexpr int64_t kMassFloats = 4 << 20;
constexpr float kNegInf = -std::numeric_limits<float>::infinity();

const AttentionKernels& KernelsFor(Isa isa) {
  switch (isa) {
#ifdef INFLLM_X86
    case Isa::kAvx2:
      return avx2::kAttentionKernels;
    case Isa::kAvx512:
      return avx512::kAttentionKernels;
    case Isa::kAvx512Bf16:
    case Isa::kAmx:  // differs in bf16 products only
      return avx512bf16::kAttentionKernels;
#endif
    default:
      INFLLM_CHECK(isa == Isa::kGeneric);
      return generic::kAttentionKernels;
  }
}

// Offsets of arrays within one allocation, in floats; each starts on a vector.
class Layout {
 public:
  int64_t Add(int64_t floats) {
    const int64_t offset = size_;
    size_ += (floats + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
    return offset;
  }
  int64_t size() const { return size_; }

 private:
  int64_t size_ = 0;
};

// What a unit of work leaves behind; offsets into its state.
struct UnitLayout {
  int64_t q_near, q_far;  // as QueryRows::q
  int64_t out, max, sum;  // as in QueryRows
  int64_t total;          // [padded rows]: sum over lanes of `sum`
  int64_t tile_max;       // [tiles, padded rows]: max after each tile
  int64_t kept;           // [kept tiles, rows, kTileKeys]: e^(s - max after the tile)
  int64_t size;
};

// Memory of one thread that works on units.
struct WorkerScratch {
  TileMemory tiles;
  Scratch tokens;  // QueryRows::token
  Scratch state;   // of the unit at hand, where nobody else needs it
  Scratch finish;
  Scratch scores;  // of a tile that was not kept
};
WorkerScratch& ThisWorker() {
  static thread_local WorkerScratch scratch;
  return scratch;
}

// Memory of a call, written by all of its threads.
struct CallScratch {
  AttentionPlan plan;
  Scratch states;
  Scratch mass;
  Scratch segment_mass;
};

// A query tile, a KV head, and the key tiles [begin, end) of one split.
struct Unit {
  const QueryTile& queries;
  int64_t kv_head;
  int64_t split;
  int64_t rows;
  int64_t begin;
  int64_t end;
};

class AttentionCall {
 public:
  AttentionCall(ThreadPool& pool, const AttentionKernels& kernels, const AttentionArgs& args,
                CallScratch& scratch)
      : pool_(pool), kernels_(kernels), args_(args), scratch_(scratch), plan_(scratch.plan) {
    // Far beyond any position, and safe to add to one.
    args_.window = std::min(args.window, std::numeric_limits<int64_t>::max() / 4);
    scratch.plan.Build(args_);
    tracked_ = plan_.track_near || plan_.track_far;
    padded_rows_ = PaddedRows(plan_.max_rows);
    padded_dim_ = PaddedDim(args.head_dim);
    slots_ = plan_.max_tiles * kTileKeys;
    const int64_t work =
        args.kv_heads * slots_ * args.head_dim * (args.tokens * plan_.heads_per_kv + kRowBlock);
    inline_ = work < kInlineWork;
    LayOutUnits();
  }

  void Run() {
    const int64_t query_tiles = plan_.tile_count;
    int64_t group = query_tiles;
    if (tracked_) {
      const int64_t tile_floats = std::max<int64_t>(args_.q_heads * slots_, 1);
      group = std::clamp<int64_t>(kMassFloats / tile_floats, 1, query_tiles);
      mass_ = scratch_.mass.Get<float>(group * tile_floats);
      const int64_t sums = args_.q_heads * FarSegments();
      segment_mass_ = scratch_.segment_mass.Get<double>(sums);
      std::fill_n(segment_mass_, sums, 0.0);
    }
    for (int64_t begin = 0; begin < query_tiles; begin += group) {
      RunGroup(begin, std::min(begin + group, query_tiles));
    }
    if (args_.far_segment_mass == nullptr) return;
    for (int64_t s = 0; s < FarSegments(); ++s) {
      double sum = 0;
      for (int64_t h = 0; h < args_.q_heads; ++h) sum += segment_mass_[h * FarSegments() + s];
      args_.far_segment_mass[s] += static_cast<float>(sum);
    }
  }

 private:
  int64_t FarSegments() const { return static_cast<int64_t>(args_.far.size()); }
  bool Tracked(bool far) const { return far ? plan_.track_far : plan_.track_near; }

  void LayOutUnits() {
    const int64_t kept_floats =
        plan_.splits == 1
            ? kKeptFloats
            : std::min(kKeptFloats, kKeptFloatsOfSplits / (args_.kv_heads * plan_.splits));
    const int64_t tile_floats = plan_.max_rows * kTileKeys;
    kept_tiles_ = tracked_ ? std::min(plan_.tiles_per_split, kept_floats / tile_floats) : 0;
    Layout layout;
    unit_.q_near = layout.Add(padded_rows_ * args_.head_dim);
    unit_.q_far = layout.Add(padded_rows_ * args_.head_dim);
    unit_.out = layout.Add(plan_.max_rows * padded_dim_);
    unit_.max = layout.Add(padded_rows_);
    unit_.sum = layout.Add(plan_.max_rows * kMaxLanes);
    unit_.total = layout.Add(padded_rows_);
    unit_.tile_max = layout.Add(kept_tiles_ * padded_rows_);
    unit_.kept = layout.Add(kept_tiles_ * tile_floats);
    unit_.size = layout.size();
  }

  Unit MakeUnit(int64_t query_tile, int64_t kv_head, int64_t split) const {
    const QueryTile& queries = plan_.TileOf(kv_head, query_tile);
    const int64_t begin = std::min(split * plan_.tiles_per_split, queries.tiles);
    const int64_t end = std::min(begin + plan_.tiles_per_split, queries.tiles);
    return {queries, kv_head, split, queries.tokens * plan_.heads_per_kv, begin, end};
  }

  void ForEach(int64_t items, absl::FunctionRef<void(int64_t item)> body) {
    const auto range = [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) body(i);
    };
    if (inline_) {
      range(0, items, 0);
    } else {
      pool_.ParallelFor(items, 1, range);
    }
  }

  // Query tiles [begin, end), whose mass is then added up in their order.
  void RunGroup(int64_t begin, int64_t end) {
    const int64_t count = end - begin;
    const int64_t splits = plan_.splits;
    if (splits == 1) {
      // The query tiles of a head follow each other: they read the same keys.
      ForEach(args_.kv_heads * count, [&](int64_t item) {
        const Unit unit = MakeUnit(begin + item % count, item / count, 0);
        float* state = ThisWorker().state.Get<float>(unit_.size);
        Attend(unit, state);
        Finish(unit, state, MassOf(item % count));
      });
    } else {  // one query tile
      float* states = scratch_.states.Get<float>(args_.kv_heads * splits * unit_.size);
      ForEach(args_.kv_heads * splits, [&](int64_t item) {
        Attend(MakeUnit(begin, item / splits, item % splits), states + item * unit_.size);
      });
      // The first split of a head writes its output; the others have but mass to fold.
      ForEach(args_.kv_heads * (tracked_ ? splits : 1), [&](int64_t item) {
        const int64_t kv_head = tracked_ ? item / splits : item;
        const int64_t split = tracked_ ? item % splits : 0;
        Finish(MakeUnit(begin, kv_head, split), states + kv_head * splits * unit_.size, MassOf(0));
      });
    }
    if (tracked_) {
      ForEach(args_.q_heads, [&](int64_t head) { AddMass(begin, end, head); });
    }
  }

  // [q_heads, slots_] of a query tile.
  float* MassOf(int64_t tile_in_group) const {
    return tracked_ ? mass_ + tile_in_group * args_.q_heads * slots_ : nullptr;
  }

  // Rows are ordered by head, then token. q: [tokens, q_heads, head_dim].
  void PackQueries(const Unit& unit, const float* q, float* packed) const {
    const int64_t dim = args_.head_dim;
    const int64_t padded = (unit.rows + kRowBlock - 1) / kRowBlock * kRowBlock;
    for (int64_t r = 0; r < padded; ++r) {
      float* out = packed + r / kRowBlock * dim * kRowBlock + r % kRowBlock;
      if (r >= unit.rows) {
        for (int64_t d = 0; d < dim; ++d) out[d * kRowBlock] = 0;
        continue;
      }
      const int64_t head = unit.kv_head * plan_.heads_per_kv + r / unit.queries.tokens;
      const int64_t token = unit.queries.first + r % unit.queries.tokens;
      const float* row = q + (token * args_.q_heads + head) * dim;
      for (int64_t d = 0; d < dim; ++d) out[d * kRowBlock] = row[d] * args_.scale;
    }
  }

  QueryRows RowsOf(const Unit& unit, float* state) const {
    auto* token = ThisWorker().tokens.Get<int32_t>(padded_rows_);
    for (int64_t r = 0; r < unit.rows; ++r) {
      token[r] = static_cast<int32_t>(unit.queries.first + r % unit.queries.tokens);
    }
    return {unit.rows,         args_.head_dim,    nullptr,          token,
            state + unit_.out, state + unit_.max, state + unit_.sum};
  }

  // The online softmax over the key tiles of a unit.
  void Attend(const Unit& unit, float* state) const {
    const int64_t near_tiles = unit.queries.near_tiles;
    if (unit.begin < near_tiles) PackQueries(unit, args_.q_near, state + unit_.q_near);
    if (unit.end > near_tiles) PackQueries(unit, args_.q_far, state + unit_.q_far);
    std::fill_n(state + unit_.out, unit.rows * padded_dim_, 0.0f);
    std::fill_n(state + unit_.max, padded_rows_, kNegInf);
    std::fill_n(state + unit_.sum, unit.rows * kMaxLanes, 0.0f);

    QueryRows rows = RowsOf(unit, state);
    alignas(64) float scores[kRowBlock * kTileKeys];
    TileReader reader(args_, kernels_, plan_, unit.queries, unit.kv_head, ThisWorker().tiles);
    for (int64_t tile = unit.begin; tile < unit.end; ++tile) {
      const bool far = tile >= near_tiles;
      const int64_t i = tile - unit.begin;
      const bool keep = i < kept_tiles_ && Tracked(far);
      rows.q = state + (far ? unit_.q_far : unit_.q_near);
      float* p = keep ? state + unit_.kept + i * plan_.max_rows * kTileKeys : scores;
      kernels_.attend(reader.Read(tile), rows, p, keep);
      if (keep) std::copy_n(rows.max, unit.rows, state + unit_.tile_max + i * padded_rows_);
    }
    kernels_.row_totals(rows.sum, unit.rows, state + unit_.total);
  }

  // Once the states of all splits of a query tile and head are complete: writes the output rows
  // (the first split does) and the mass of the keys of this split.
  void Finish(const Unit& unit, float* states, float* mass) const {
    const int64_t splits = plan_.splits;
    float* max = ThisWorker().finish.Get<float>(padded_rows_ * (splits + 3));
    float* inverse = max + padded_rows_;  // 1 / sum over all keys of e^(s - max)
    float* scale = inverse + padded_rows_;
    float* share = scale + padded_rows_;  // [splits, padded rows]: e^(max of the split - max)
    std::fill_n(max, padded_rows_, kNegInf);
    std::fill_n(inverse, padded_rows_, 0.0f);
    std::fill_n(scale, padded_rows_, 1.0f);
    for (int64_t s = 0; s < splits; ++s) {
      const float* split_max = states + s * unit_.size + unit_.max;
      for (int64_t r = 0; r < unit.rows; ++r) max[r] = std::max(max[r], split_max[r]);
    }
    for (int64_t s = 0; s < splits; ++s) {
      const float* state = states + s * unit_.size;
      kernels_.rescale(state + unit_.max, max, scale, unit.rows, share + s * padded_rows_);
      for (int64_t r = 0; r < unit.rows; ++r) {
        inverse[r] += share[s * padded_rows_ + r] * state[unit_.total + r];
      }
    }
    for (int64_t r = 0; r < unit.rows; ++r) inverse[r] = inverse[r] > 0 ? 1 / inverse[r] : 0;
    if (unit.split == 0) WriteOutput(unit, states, share, inverse);
    if (tracked_) FoldMass(unit, states + unit.split * unit_.size, max, inverse, scale, mass);
  }

  void WriteOutput(const Unit& unit, const float* states, const float* share,
                   const float* inverse) const {
    const float* parts[kMaxSplits];
    float weights[kMaxSplits];
    for (int64_t r = 0; r < unit.rows; ++r) {
      for (int64_t s = 0; s < plan_.splits; ++s) {
        parts[s] = states + s * unit_.size + unit_.out + r * padded_dim_;
        weights[s] = share[s * padded_rows_ + r] * inverse[r];
      }
      const int64_t head = unit.kv_head * plan_.heads_per_kv + r / unit.queries.tokens;
      const int64_t token = unit.queries.first + r % unit.queries.tokens;
      kernels_.combine(parts, weights, plan_.splits, args_.head_dim,
                       args_.out + (token * args_.q_heads + head) * args_.head_dim);
    }
  }

  // mass[head, slot] = sum over the unit's tokens of the final probabilities. `weight` is scratch.
  void FoldMass(const Unit& unit, float* state, const float* max, const float* inverse,
                float* weight, float* mass) const {
    TileReader reader(args_, kernels_, plan_, unit.queries, unit.kv_head, ThisWorker().tiles);
    QueryRows rows = RowsOf(unit, state);
    for (int64_t tile = unit.begin; tile < unit.end; ++tile) {
      const bool far = tile >= unit.queries.near_tiles;
      if (!Tracked(far)) continue;
      const int64_t i = tile - unit.begin;
      const int64_t tile_floats = plan_.max_rows * kTileKeys;
      const float* p = state + unit_.kept + i * tile_floats;
      const float* row_weight = weight;
      if (i < kept_tiles_) {
        kernels_.rescale(state + unit_.tile_max + i * padded_rows_, max, inverse, unit.rows,
                         weight);
      } else {
        rows.q = state + (far ? unit_.q_far : unit_.q_near);
        float* scores = ThisWorker().scores.Get<float>(tile_floats);
        kernels_.rescore(reader.Read(tile), rows, max, scores);
        p = scores;
        row_weight = inverse;
      }
      const int64_t tokens = unit.queries.tokens;
      const int64_t slot = tile * kTileKeys;
      const int64_t keys =
          std::min<int64_t>((far ? unit.queries.far_end : unit.queries.near_end) - slot, kTileKeys);
      for (int64_t g = 0; g < plan_.heads_per_kv; ++g) {
        const int64_t head = unit.kv_head * plan_.heads_per_kv + g;
        kernels_.fold_mass(p + g * tokens * kTileKeys, row_weight + g * tokens, tokens, keys,
                           mass + head * slots_ + slot);
      }
    }
  }

  // Adds the mass of query tiles [begin, end) to what the caller asked for, of one head.
  void AddMass(int64_t begin, int64_t end, int64_t head) const {
    for (int64_t t = begin; t < end; ++t) {
      const QueryTile& queries = plan_.TileOf(head / plan_.heads_per_kv, t);
      const float* mass = MassOf(t - begin) + head * slots_;
      for (int64_t i = queries.runs_begin; i < queries.runs_end; ++i) {
        const KeyRun& run = plan_.runs[static_cast<size_t>(i)];
        const KvSegment& segment = *run.segment;
        if (!Tracked(run.far)) continue;
        float* out = segment.mass == nullptr
                         ? nullptr
                         : segment.mass + head * segment.mass_stride + run.begin;
        const float sum = kernels_.add_mass(mass + run.slot, run.count, out);
        if (run.far) segment_mass_[head * FarSegments() + run.index] += sum;
      }
    }
  }

  ThreadPool& pool_;
  const AttentionKernels& kernels_;
  AttentionArgs args_;
  CallScratch& scratch_;
  const AttentionPlan& plan_;
  UnitLayout unit_;
  bool tracked_;
  bool inline_;
  int64_t padded_rows_;
  int64_t padded_dim_;
  int64_t slots_;                   // of a query tile
  int64_t kept_tiles_;              // of a unit
  float* mass_ = nullptr;           // [query tiles of the group, q_heads, slots_]
  double* segment_mass_ = nullptr;  // [q_heads, far segments]
};

}  // namespace

void CpuAttention(ThreadPool& pool, Isa isa, const AttentionArgs& args) {
  if (args.tokens == 0) return;
  static thread_local CallScratch scratch;
  AttentionCall(pool, KernelsFor(isa), args, scratch).Run();
}

}  // namespace infllm::kernels
