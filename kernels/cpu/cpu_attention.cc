#include "kernels/cpu/cpu_attention.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "absl/functional/function_ref.h"
#include "kernels/core/status_macros.h"
#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/attention_readers.h"
#include "kernels/cpu/attention_simd.h"
#include "kernels/cpu/cpu_attention_mass.h"
#include "kernels/cpu/scratch.h"

namespace infllm::kernels {
namespace {

// Multiply-adds below which a call runs on the calling thread: waking the pool costs more.
constexpr int64_t kInlineWork = 1 << 20;
constexpr float kNegInf = -std::numeric_limits<float>::infinity();

#ifdef INFLLM_X86
const AttentionKernels& AmxKernels() {
  static const AttentionKernels kernels = amx::Bf16Attention(avx512bf16::kAttentionKernels);
  return kernels;
}
#endif

const AttentionKernels& KernelsFor(Isa isa, DType page_dtype) {
  switch (isa) {
#ifdef INFLLM_X86
    case Isa::kAvx2:
      return avx2::kAttentionKernels;
    case Isa::kAvx512:
      return avx512::kAttentionKernels;
    case Isa::kAvx512Bf16:
      return avx512bf16::kAttentionKernels;
    case Isa::kAmx:
      return page_dtype == DType::kBF16 ? AmxKernels() : avx512bf16::kAttentionKernels;
#endif
    default:
      INFLLM_CHECK(isa == Isa::kGeneric);
      return generic::kAttentionKernels;
  }
}

// What a unit of work leaves behind: offsets into its state, in floats. Each array starts on a
// vector.
struct StateLayout {
  StateLayout(int64_t max_rows, int64_t head_dim) {
    max = PaddedRows(max_rows) * PaddedDim(head_dim);
    sum = max + Padded(PaddedRows(max_rows));
    total = sum + max_rows * kMaxLanes;
    size = total + Padded(PaddedRows(max_rows));
  }
  static int64_t Padded(int64_t floats) { return (floats + kMaxLanes - 1) / kMaxLanes * kMaxLanes; }
  int64_t out = 0, max, sum;  // as in QueryRows
  int64_t total;              // [padded rows]: sum over lanes of `sum`
  int64_t size;
};

// Memory of one thread that works on units.
struct WorkerScratch {
  TileMemory tiles;
  Scratch tokens;  // QueryRows::token
  Scratch queries;
  Scratch state;  // of the unit at hand, where nobody else needs it
  Scratch finish;
};
WorkerScratch& ThisWorker() {
  static thread_local WorkerScratch scratch;
  return scratch;
}

// Memory of a call, written by all of its threads.
struct CallScratch {
  AttentionPlan plan;
  RowStats stats;
  std::vector<int64_t> state_offset;  // by span: of its first state in `states`
  std::vector<AttentionUnit> merges;  // one for each KV head of the spans that are split
  Scratch states;                     // [kv_heads, splits] of each of them
};

class AttentionCall {
 public:
  AttentionCall(ThreadPool& pool, const AttentionKernels& kernels, const AttentionArgs& args,
                CallScratch& scratch)
      : pool_(pool),
        kernels_(kernels),
        args_(args),
        plan_(scratch.plan),
        stats_(scratch.stats),
        state_offset_(scratch.state_offset),
        merges_(scratch.merges) {
    // Far beyond any position, and safe to add to one.
    args_.window = std::min(args.window, std::numeric_limits<int64_t>::max() / 4);
    scratch.plan.Build(args_, kernels.tile_rows);
    stats_.Reset(args_, plan_);
    state_offset_.clear();
    merges_.clear();
    int64_t floats = 0;
    for (const SpanPlan& span : plan_.spans) {
      const auto index = static_cast<int32_t>(state_offset_.size());
      state_offset_.push_back(floats);
      if (span.splits == 1) continue;
      for (int32_t g = 0; g < args_.page.kv_heads; ++g) merges_.push_back({index, 0, g, 0});
      floats += args_.page.kv_heads * span.splits * LayoutOf(span).size;
    }
    states_ = scratch.states.Get<float>(floats);
  }

  void Run() {
    // One by one: units differ in cost by orders of magnitude.
    ForEach(static_cast<int64_t>(plan_.units.size()), [&](int64_t i) {
      const AttentionUnit& unit = plan_.units[static_cast<size_t>(i)];
      const SpanPlan& span = SpanOf(unit);
      if (span.splits > 1) {
        Attend(unit, States(unit) + unit.split * LayoutOf(span).size);
      } else {
        float* state = ThisWorker().state.Get<float>(LayoutOf(span).size);
        Attend(unit, state);
        Finish(unit, state);
      }
    });
    ForEach(static_cast<int64_t>(merges_.size()), [&](int64_t i) {
      const AttentionUnit& unit = merges_[static_cast<size_t>(i)];
      Finish(unit, States(unit));
    });
    if (!stats_.empty()) CpuAttentionMass(pool_, Inline(), kernels_, args_, plan_, stats_);
  }

 private:
  bool Inline() const { return plan_.work < kInlineWork; }
  const SpanPlan& SpanOf(const AttentionUnit& unit) const {
    return plan_.spans[static_cast<size_t>(unit.span)];
  }
  const QueryTile& TileOf(const AttentionUnit& unit) const {
    return plan_.query_tiles[static_cast<size_t>(SpanOf(unit).first_tile + unit.tile)];
  }
  StateLayout LayoutOf(const SpanPlan& span) const {
    return StateLayout(span.max_rows, args_.page.head_dim);
  }
  const TileKernels& KernelsOf(const SpanPlan& span) const {
    return ReadsInPlace(kernels_, args_, span) ? *kernels_.in_place : kernels_.packed;
  }
  // Of all splits of a KV head.
  float* States(const AttentionUnit& unit) const {
    const SpanPlan& span = SpanOf(unit);
    return states_ + state_offset_[static_cast<size_t>(unit.span)] +
           unit.kv_head * span.splits * LayoutOf(span).size;
  }

  void ForEach(int64_t items, absl::FunctionRef<void(int64_t item)> body) {
    const auto range = [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) body(i);
    };
    if (Inline()) {
      range(0, items, 0);
    } else {
      pool_.ParallelFor(items, 1, range);
    }
  }

  // The online softmax over the key tiles of a unit.
  void Attend(const AttentionUnit& unit, float* state) const {
    const SpanPlan& span = SpanOf(unit);
    const QueryTile& queries = TileOf(unit);
    const StateLayout layout = LayoutOf(span);
    const QueryReader reader(args_, *span.span, queries, unit.kv_head);
    const int64_t begin = std::min(unit.split * span.tiles_per_split, queries.tiles);
    const int64_t end = std::min(begin + span.tiles_per_split, queries.tiles);

    const TileKernels& kernels = KernelsOf(span);
    WorkerScratch& worker = ThisWorker();
    float* near = worker.queries.Get<float>(2 * reader.packed_floats());
    float* far = near + reader.packed_floats();
    if (begin < queries.near_end) reader.Pack(kernels, args_.q_near, near);
    if (end > queries.near_end) reader.Pack(kernels, args_.q_far, far);
    auto* token = worker.tokens.Get<int32_t>(PaddedRows(reader.rows()));
    reader.Tokens(token);
    std::fill_n(state + layout.out, reader.rows() * PaddedDim(args_.page.head_dim), 0.0f);
    std::fill_n(state + layout.max, PaddedRows(span.max_rows), kNegInf);
    std::fill_n(state + layout.sum, reader.rows() * kMaxLanes, 0.0f);

    QueryRows rows = {reader.rows(),      args_.scale,        nullptr,           token,
                      state + layout.out, state + layout.max, state + layout.sum};
    alignas(64) float scratch[kAttendScratch];
    TileReader tiles(args_, *span.span, kernels, plan_.runs.data(), queries, unit.kv_head, begin,
                     worker.tiles);
    for (int64_t tile = begin; tile < end; ++tile) {
      rows.q = tile < queries.near_end ? near : far;
      kernels.attend(tiles.Read(), rows, scratch);
    }
    kernels_.row_totals(rows.sum, rows.rows, state + layout.total);
  }

  // Once the states of all splits of a query tile and KV head are complete: the output rows.
  void Finish(const AttentionUnit& unit, const float* states) const {
    const SpanPlan& span = SpanOf(unit);
    const QueryTile& queries = TileOf(unit);
    const StateLayout layout = LayoutOf(span);
    const QueryReader reader(args_, *span.span, queries, unit.kv_head);
    const int64_t rows = reader.rows(), padded_rows = PaddedRows(span.max_rows);
    const int64_t splits = span.splits;

    float* max = ThisWorker().finish.Get<float>(padded_rows * (splits + 3));
    float* inverse = max + padded_rows;  // 1 / sum over all keys of e^(s - max)
    float* ones = inverse + padded_rows;
    float* share = ones + padded_rows;  // [splits, padded rows]: e^(max of the split - max)
    std::fill_n(max, padded_rows, kNegInf);
    std::fill_n(inverse, padded_rows, 0.0f);
    std::fill_n(ones, padded_rows, 1.0f);
    for (int64_t s = 0; s < splits; ++s) {
      const float* split_max = states + s * layout.size + layout.max;
      for (int64_t r = 0; r < rows; ++r) max[r] = std::max(max[r], split_max[r]);
    }
    for (int64_t s = 0; s < splits; ++s) {
      const float* state = states + s * layout.size;
      kernels_.rescale(state + layout.max, max, ones, rows, share + s * padded_rows);
      for (int64_t r = 0; r < rows; ++r) {
        inverse[r] += share[s * padded_rows + r] * state[layout.total + r];
      }
    }
    for (int64_t r = 0; r < rows; ++r) inverse[r] = inverse[r] > 0 ? 1 / inverse[r] : 0;

    const float* parts[kMaxSplits];
    float weights[kMaxSplits];
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t s = 0; s < splits; ++s) {
        parts[s] = states + s * layout.size + layout.out + r * PaddedDim(args_.page.head_dim);
        weights[s] = share[s * padded_rows + r] * inverse[r];
      }
      kernels_.combine(parts, weights, splits, args_.page.head_dim,
                       static_cast<float*>(args_.out) + reader.Offset(r));
    }
    if (stats_.Wanted(unit.span)) {
      std::copy_n(max, padded_rows, stats_.max(plan_, unit.span, unit.tile, unit.kv_head));
      std::copy_n(inverse, padded_rows, stats_.inverse(plan_, unit.span, unit.tile, unit.kv_head));
    }
  }

  ThreadPool& pool_;
  const AttentionKernels& kernels_;
  AttentionArgs args_;
  const AttentionPlan& plan_;
  RowStats& stats_;
  std::vector<int64_t>& state_offset_;
  std::vector<AttentionUnit>& merges_;
  float* states_;
};

}  // namespace

void CpuAttention(ThreadPool& pool, Isa isa, const AttentionArgs& args) {
  static thread_local CallScratch scratch;
  AttentionCall(pool, KernelsFor(isa, args.page.dtype), args, scratch).Run();
  for (int64_t i = 0; i < args.span_count; ++i) {
    const AttentionSpan& span = args.spans[i];  // without queries: not in the plan
    if (span.rows == 0 && span.block_mass != nullptr) {
      std::fill_n(span.block_mass, span.block_count, 0.0f);
    }
  }
}

}  // namespace infllm::kernels
