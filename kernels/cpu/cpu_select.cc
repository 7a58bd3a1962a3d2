#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "kernels/core/status_macros.h"
#include "kernels/cpu/cpu_attention.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/select_simd.h"

namespace infllm::kernels {
namespace {

// Bytes that a thread reads for one range of work, and below which waking others costs more.
constexpr int64_t kRangeBytes = 256 << 10;

const SelectKernels& KernelsFor(Isa isa) {
  switch (isa) {
#ifdef INFLLM_X86
    case Isa::kAvx2:
      return avx2::kSelectKernels;
    case Isa::kAvx512:
      return avx512::kSelectKernels;
    case Isa::kAvx512Bf16:
    case Isa::kAmx:  // differs in bf16 products only
      return avx512bf16::kSelectKernels;
#endif
    default:
      INFLLM_CHECK(isa == Isa::kGeneric);
      return generic::kSelectKernels;
  }
}

// A total order of scores that puts NaN last and takes -0 for 0, with the smaller index first among
// equals: the larger key is the better one.
uint64_t RankKey(float score, int64_t index) {
  uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);
  bits = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  if (std::isnan(score)) bits = 0;
  return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}
int64_t IndexOf(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }

// Whether any of 16 scores is above the threshold. Without a branch inside, so that it vectorises.
bool AnyAbove(const float* scores, float threshold) {
  int above = 0;
  for (int i = 0; i < 16; ++i) above |= scores[i] > threshold;
  return above != 0;
}

// The pieces of chunks that cover the blocks [begin, end): body(data, first block, blocks).
template <typename Body>
void ForPieces(std::span<const RepresentativeChunk> chunks, int64_t block_bytes, int64_t begin,
               int64_t end, Body body) {
  int64_t chunk_begin = 0;
  for (const RepresentativeChunk& chunk : chunks) {
    const int64_t chunk_end = chunk_begin + chunk.blocks;
    const int64_t from = std::max(begin, chunk_begin);
    const int64_t to = std::min(end, chunk_end);
    const auto* data = static_cast<const std::byte*>(chunk.data);
    if (from < to) body(data + (from - chunk_begin) * block_bytes, from, to - from);
    chunk_begin = chunk_end;
    if (chunk_begin >= end) return;
  }
}

// body(begin, end) over fixed ranges of `grain`, on this thread alone if there is but one.
void ForRanges(ThreadPool& pool, int64_t items, int64_t grain,
               absl::FunctionRef<void(int64_t begin, int64_t end)> body) {
  if (items <= grain) {
    body(0, items);
  } else {
    pool.ParallelFor(items, grain, [&](int64_t begin, int64_t end, int) { body(begin, end); });
  }
}

// One call of ScoreBlocks, cut into ranges of blocks.
struct ScoreCall {
  ThreadPool& pool;
  const SelectKernels& kernels;
  const ScoreBlocksArgs& args;
  bool bf16;
  int64_t block_elements;
  int64_t block_bytes;
  int64_t blocks;
  int64_t grain;
};

// Bounds as two products: max(q min, q max) is q max for q > 0 and q min otherwise. So the queries
// are the negative parts, then the positive parts: out [2, rows, head_dim], each summed over the
// heads of a row.
void SplitQueries(const ScoreBlocksArgs& args, const float* query, int64_t rows, float* out) {
  const int64_t size = rows * args.head_dim;
  std::fill_n(out, 2 * size, 0.0f);
  const int64_t heads_per_row = args.q_heads / rows;
  for (int64_t h = 0; h < args.q_heads; ++h) {
    for (int64_t d = 0; d < args.head_dim; ++d) {
      const float q = query[h * args.head_dim + d];
      out[(q > 0 ? size : 0) + h / heads_per_row * args.head_dim + d] += q;
    }
  }
}

// The queries of all heads, each by itself.
HeadQueries QueriesOfHeads(const ScoreBlocksArgs& args, Scratch& scratch) {
  HeadQueries queries = {args.query,    args.slots, args.q_heads, /*heads_per_row=*/1,
                         args.head_dim, false,      args.scale};
  if (args.kind == RepresentativeKind::kBounds) {
    float* split = scratch.Get<float>(2 * args.q_heads * args.head_dim);
    SplitQueries(args, args.query, args.q_heads, split);
    queries.query = split;
    queries.heads_per_row = args.q_heads / args.kv_heads;
    queries.sum_slots = true;
  }
  return queries;
}

// out[g, b] = sum over the heads h of g of e^(l[b, h] - max_h) / sum_h. Ranges of blocks find their
// own max and sum; those of all blocks follow from them in the order of the ranges.
void ScoreByHeadVote(const ScoreCall& call) {
  static thread_local Scratch query_scratch;
  static thread_local Scratch scratch;
  const SelectKernels& kernels = call.kernels;
  const HeadQueries queries = QueriesOfHeads(call.args, query_scratch);
  const int64_t width = PaddedHeads(queries.heads);
  const int64_t blocks = call.blocks, grain = call.grain;
  const int64_t ranges = (blocks + grain - 1) / grain;
  float* logits = scratch.Get<float>((blocks + 2 * ranges + 2) * width);
  float* range_max = logits + blocks * width;
  float* range_sum = range_max + ranges * width;
  float* max = range_sum + ranges * width;
  float* sum = max + width;

  ForRanges(call.pool, blocks, grain, [&](int64_t begin, int64_t end) {
    ForPieces(call.args.chunks, call.block_bytes, begin, end,
              [&](const void* data, int64_t first, int64_t count) {
                kernels.head_dots(queries, data, call.bf16, count, logits + first * width);
              });
    const int64_t at = begin / grain * width;
    kernels.exponentials(logits + begin * width, end - begin, width, range_max + at,
                         range_sum + at);
  });

  std::copy_n(range_max, width, max);
  for (int64_t i = width; i < ranges * width; ++i) {
    max[i % width] = std::max(max[i % width], range_max[i]);
  }
  std::fill_n(sum, width, 0.0f);
  for (int64_t r = 0; r < ranges; ++r) {  // range_max becomes e^(max of the range - max)
    float* factor = range_max + r * width;
    kernels.exp_difference(factor, max, width, factor);
    for (int64_t h = 0; h < width; ++h) sum[h] += factor[h] * range_sum[r * width + h];
  }
  for (int64_t i = 0; i < ranges * width; ++i) range_max[i] /= sum[i % width];
  ForRanges(call.pool, blocks, grain, [&](int64_t begin, int64_t end) {
    kernels.group_sums(logits + begin * width, range_max + begin / grain * width, end - begin,
                       queries.heads, call.args.groups, call.args.out + begin, blocks);
  });
}

// out[i, g, b] = sum over the heads of g of their logits for query i. But for kKeys, that is linear
// in the representatives: one product per group. A range of blocks fits in a core's cache: it comes
// from memory once for all queries.
void ScoreByMean(const ScoreCall& call) {
  static thread_local Scratch query_scratch;
  const ScoreBlocksArgs& args = call.args;
  const SelectKernels& kernels = call.kernels;
  const bool linear = args.kind != RepresentativeKind::kKeys;
  const float* query = args.query;
  int64_t query_size = args.q_heads * args.head_dim;
  if (args.kind == RepresentativeKind::kBounds) {
    float* split = query_scratch.Get<float>(args.queries * call.block_elements);
    for (int64_t i = 0; i < args.queries; ++i) {
      SplitQueries(args, query + i * query_size, args.kv_heads, split + i * call.block_elements);
    }
    query = split;
    query_size = call.block_elements;
  }
  const int64_t out_size = args.groups * call.blocks;
  if (linear && args.groups == 1) {
    ForRanges(call.pool, call.blocks, call.grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = 0; i < args.queries; ++i) {
        ForPieces(args.chunks, call.block_bytes, begin, end,
                  [&](const void* data, int64_t first, int64_t count) {
                    kernels.dots(query + i * query_size, data, call.bf16, count,
                                 call.block_elements, args.out + i * out_size + first);
                  });
      }
    });
    return;
  }
  const int64_t rows = linear ? args.groups : args.q_heads;
  const HeadQueries queries = {query,
                               args.slots,
                               rows,
                               /*heads_per_row=*/1,
                               call.block_elements / (args.slots * rows),
                               /*sum_slots=*/linear,
                               /*scale=*/1};
  const int64_t width = PaddedHeads(rows);
  const std::vector<float> ones(static_cast<size_t>(width), 1.0f);
  ForRanges(call.pool, call.blocks, call.grain, [&](int64_t begin, int64_t end) {
    static thread_local Scratch scratch;
    float* logits = scratch.Get<float>((end - begin) * width);
    for (int64_t i = 0; i < args.queries; ++i) {
      HeadQueries one = queries;
      one.query += i * query_size;
      ForPieces(args.chunks, call.block_bytes, begin, end,
                [&](const void* data, int64_t first, int64_t count) {
                  kernels.head_dots(one, data, call.bf16, count, logits + (first - begin) * width);
                });
      kernels.group_sums(logits, ones.data(), end - begin, rows, args.groups,
                         args.out + i * out_size + begin, call.blocks);
    }
  });
}

}  // namespace

void CpuRepresentatives(Isa isa, const RepresentativeArgs& args) {
  static thread_local Scratch index_scratch;
  static thread_local Scratch row_scratch;
  const SelectKernels& kernels = KernelsFor(isa);
  const bool bf16 = args.kv_dtype == DType::kBF16;
  const auto element = static_cast<int64_t>(SizeOf(args.kv_dtype));
  const int64_t dim = args.head_dim;
  const auto keys_of = [&](int64_t kv_head) {
    return static_cast<const std::byte*>(args.k) + kv_head * args.head_stride * element;
  };
  if (args.kind == RepresentativeKind::kBounds) {
    for (int64_t g = 0; g < args.kv_heads; ++g) {
      float* least = args.out + g * dim;
      kernels.bounds(keys_of(g), args.block_tokens, bf16, dim, least, least + args.kv_heads * dim);
    }
    return;
  }
  const int64_t top = args.top;
  auto* index = index_scratch.Get<int64_t>(top);
  auto* rows = row_scratch.Get<const void*>(top);
  for (int64_t h = 0; h < args.q_heads; ++h) {
    CpuTopK(args.mass + h * args.mass_stride, args.block_tokens, top, {index, size_t(top)});
    const std::byte* keys = keys_of(h / (args.q_heads / args.kv_heads));
    for (int64_t i = 0; i < top; ++i) rows[i] = keys + index[i] * dim * element;
    if (args.kind == RepresentativeKind::kMeanKey) {
      kernels.mean_rows(rows, top, bf16, dim, args.out + h * dim);
      continue;
    }
    for (int64_t s = 0; s < top; ++s) {
      kernels.mean_rows(rows + s, 1, bf16, dim, args.out + (s * args.q_heads + h) * dim);
    }
  }
}

void CpuMeanQuery(ThreadPool& pool, Isa isa, const MeanQueryArgs& args) {
  const SelectKernels& kernels = KernelsFor(isa);
  const int64_t width = args.q_heads * args.head_dim;
  if (args.tokens == 0) return;
  if (args.tokens == 1) {
    std::memcpy(args.out, args.q, static_cast<size_t>(width) * sizeof(float));
    return;
  }
  const int64_t grain = std::max<int64_t>(kRangeBytes / 4 / args.tokens / 128 * 128, 128);
  ForRanges(pool, width, grain, [&](int64_t begin, int64_t end) {
    static thread_local Scratch scratch;
    auto* rows = scratch.Get<const void*>(args.tokens);
    for (int64_t t = 0; t < args.tokens; ++t) rows[t] = args.q + t * width + begin;
    kernels.mean_rows(rows, args.tokens, /*bf16=*/false, end - begin, args.out + begin);
  });
}

void CpuScoreBlocks(ThreadPool& pool, Isa isa, const ScoreBlocksArgs& args) {
  int64_t blocks = 0;
  for (const RepresentativeChunk& chunk : args.chunks) blocks += chunk.blocks;
  if (blocks == 0) return;
  const RepresentativeShape shape = ShapeOf(args.kind, args.slots, args.q_heads, args.kv_heads);
  const int64_t elements = shape.rows() * args.head_dim;
  const int64_t bytes = elements * static_cast<int64_t>(SizeOf(args.dtype));
  const int64_t grain = std::max<int64_t>(kRangeBytes / bytes, 16);
  const bool bf16 = args.dtype == DType::kBF16;
  const ScoreCall call = {pool, KernelsFor(isa), args, bf16, elements, bytes, blocks, grain};
  if (args.scoring == Scoring::kMean) return ScoreByMean(call);
  // Bound by its exponentials rather than by memory: nothing is gained by several queries at once.
  ScoreBlocksArgs one = args;
  one.queries = 1;
  for (int64_t i = 0; i < args.queries; ++i) {
    ScoreByHeadVote({pool, call.kernels, one, bf16, elements, bytes, blocks, grain});
    one.query += args.q_heads * args.head_dim;
    one.out += args.groups * blocks;
  }
}

void CpuTopK(const float* scores, int64_t n, int64_t k, std::span<int64_t> out_indices) {
  INFLLM_CHECK(n <= int64_t{1} << 32);
  k = std::min(k, n);
  if (k <= 0) return;
  // Candidates gather until there are twice as many as needed; then the worse half goes, and the
  // worst that stays is the threshold for what follows. Later equals lose, so `>` is exact.
  static thread_local std::vector<uint64_t> best;
  best.clear();
  const size_t capacity = 2 * static_cast<size_t>(k) + 64;
  const auto keep = static_cast<size_t>(k);
  const auto trim = [&] {
    std::nth_element(best.begin(), best.begin() + (k - 1), best.end(), std::greater<>());
    best.resize(keep);
  };
  bool have_threshold = false;
  float threshold = 0;
  for (int64_t begin = 0; begin < n; begin += 16) {
    const int64_t end = std::min(begin + 16, n);
    if (have_threshold && end - begin == 16 && !AnyAbove(scores + begin, threshold)) continue;
    for (int64_t i = begin; i < end; ++i) {
      if (have_threshold && !(scores[i] > threshold)) continue;
      best.push_back(RankKey(scores[i], i));
      if (best.size() < capacity) continue;
      trim();
      threshold = scores[IndexOf(best.back())];
      have_threshold = !std::isnan(threshold);
    }
  }
  if (best.size() > keep) trim();
  std::sort(best.begin(), best.end(), std::greater<>());
  for (size_t i = 0; i < keep; ++i) out_indices[i] = IndexOf(best[i]);
}

}  // namespace infllm::kernels
