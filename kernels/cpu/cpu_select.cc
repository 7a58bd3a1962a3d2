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

// Floats that a thread reads for one range of work, and below which waking others costs more.
constexpr int64_t kRangeFloats = 64 << 10;

const SelectKernels& KernelsFor(Isa isa) {
  switch (isa) {
#ifdef INFLLM_X86
    case Isa::kAvx2:
      return avx2::kSelectKernels;
    case Isa::kAvx512:
      return avx512::kSelectKernels;
    case Isa::kAvx512Bf16:
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
void ForPieces(std::span<const RepresentativeChunk> chunks, int64_t width, int64_t begin,
               int64_t end, Body body) {
  int64_t chunk_begin = 0;
  for (const RepresentativeChunk& chunk : chunks) {
    const int64_t chunk_end = chunk_begin + chunk.blocks;
    const int64_t from = std::max(begin, chunk_begin);
    const int64_t to = std::min(end, chunk_end);
    if (from < to) body(chunk.data + (from - chunk_begin) * width, from, to - from);
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

// out[b] = sum over h of e^(l[b, h] - max_h) / sum_h. Ranges of blocks find their own max and sum;
// those of all blocks follow from them in the order of the ranges.
void ScoreByHeadVote(ThreadPool& pool, const SelectKernels& kernels, const ScoreBlocksArgs& args,
                     int64_t blocks, int64_t grain) {
  static thread_local Scratch scratch;
  const int64_t width = PaddedHeads(args.q_heads);
  const int64_t ranges = (blocks + grain - 1) / grain;
  float* logits = scratch.Get<float>((blocks + 2 * ranges + 2) * width);
  float* range_max = logits + blocks * width;
  float* range_sum = range_max + ranges * width;
  float* max = range_sum + ranges * width;
  float* sum = max + width;

  const int64_t block_width = args.q_heads * args.head_dim;
  ForRanges(pool, blocks, grain, [&](int64_t begin, int64_t end) {
    ForPieces(args.chunks, block_width, begin, end,
              [&](const float* data, int64_t first, int64_t count) {
                kernels.head_dots(args.query, data, count, args.q_heads, args.head_dim, args.scale,
                                  logits + first * width);
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
  for (int64_t r = 0; r < ranges; ++r) {
    float* factor = range_max + r * width;
    for (int64_t h = 0; h < width; ++h) factor[h] = h < args.q_heads ? factor[h] / sum[h] : 0.0f;
  }
  ForRanges(pool, blocks, grain, [&](int64_t begin, int64_t end) {
    kernels.dots(range_max + begin / grain * width, logits + begin * width, end - begin, width,
                 args.out + begin);
  });
}

}  // namespace

void CpuRepresentatives(Isa isa, const RepresentativeArgs& args) {
  static thread_local Scratch index_scratch;
  static thread_local Scratch row_scratch;
  const SelectKernels& kernels = KernelsFor(isa);
  const int64_t top = args.top;
  auto* index = index_scratch.Get<int64_t>(top);
  auto* rows = row_scratch.Get<const void*>(top);
  const auto element = static_cast<int64_t>(SizeOf(args.kv_dtype));
  const int64_t group = args.q_heads / args.kv_heads;
  for (int64_t h = 0; h < args.q_heads; ++h) {
    CpuTopK(args.mass + h * args.mass_stride, args.block_tokens, top, {index, size_t(top)});
    const std::byte* k =
        static_cast<const std::byte*>(args.k) + h / group * args.head_stride * element;
    for (int64_t i = 0; i < top; ++i) rows[i] = k + index[i] * args.head_dim * element;
    kernels.mean_rows(rows, top, args.kv_dtype == DType::kBF16, args.head_dim,
                      args.out + h * args.head_dim);
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
  const int64_t grain = std::max<int64_t>(kRangeFloats / args.tokens / 128 * 128, 128);
  ForRanges(pool, width, grain, [&](int64_t begin, int64_t end) {
    static thread_local Scratch scratch;
    auto* rows = scratch.Get<const void*>(args.tokens);
    for (int64_t t = 0; t < args.tokens; ++t) rows[t] = args.q + t * width + begin;
    kernels.mean_rows(rows, args.tokens, /*bf16=*/false, end - begin, args.out + begin);
  });
}

void CpuScoreBlocks(ThreadPool& pool, Isa isa, const ScoreBlocksArgs& args) {
  const SelectKernels& kernels = KernelsFor(isa);
  int64_t blocks = 0;
  for (const RepresentativeChunk& chunk : args.chunks) blocks += chunk.blocks;
  if (blocks == 0) return;
  const int64_t width = args.q_heads * args.head_dim;
  const int64_t grain = std::max<int64_t>(kRangeFloats / width, 16);
  if (args.scoring == Scoring::kHeadVote) {
    ScoreByHeadVote(pool, kernels, args, blocks, grain);
    return;
  }
  ForRanges(pool, blocks, grain, [&](int64_t begin, int64_t end) {
    ForPieces(args.chunks, width, begin, end, [&](const float* data, int64_t first, int64_t count) {
      kernels.dots(args.query, data, count, width, args.out + first);
    });
  });
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
