// ScoreBlocks of the CPU backend with Scoring::kHeadVote.
#include <algorithm>

#include "kernels/core/status_macros.h"
#include "kernels/cpu/cpu_select.h"
#include "kernels/cpu/head_vote_simd.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/select_ranges.h"

namespace infllm::kernels {
namespace {

const HeadVoteKernels& KernelsFor(Isa isa) {
  switch (isa) {
#ifdef INFLLM_X86
    case Isa::kAvx2:
      return avx2::kHeadVoteKernels;
    case Isa::kAvx512:
      return avx512::kHeadVoteKernels;
    case Isa::kAvx512Bf16:
    case Isa::kAmx:  // differs in bf16 products only
      return avx512bf16::kHeadVoteKernels;
#endif
    default:
      INFLLM_CHECK(isa == Isa::kGeneric);
      return generic::kHeadVoteKernels;
  }
}

// The pieces of chunks that cover the blocks [begin, end): body(data, first block, blocks).
template <typename Body>
void ForPieces(const ScoreItem& item, int64_t block_bytes, int64_t begin, int64_t end, Body body) {
  int64_t chunk_begin = 0;
  for (int64_t c = 0; c < item.chunk_count && chunk_begin < end; ++c) {
    const int64_t chunk_end = chunk_begin + item.chunks[c].blocks;
    const int64_t from = std::max(begin, chunk_begin);
    const int64_t to = std::min(end, chunk_end);
    const auto* data = static_cast<const std::byte*>(item.chunks[c].data);
    if (from < to) body(data + (from - chunk_begin) * block_bytes, from, to - from);
    chunk_begin = chunk_end;
  }
}

// The queries of all heads, each by itself. Of bounds, max(q min, q max) is q max for q > 0 and
// q min otherwise: the negative parts meet the slot of the least, the positive ones the other.
HeadQueries QueriesOfHeads(const ScoreBlocksArgs& args, const ScoreItem& item, Isa isa,
                           Scratch& scratch) {
  if (args.kind == RepresentativeKind::kMeanKey) {
    return {item.query, 1, args.q_heads, /*heads_per_row=*/1, args.head_dim, args.scale};
  }
  float* split = scratch.Get<float>(2 * args.q_heads * args.head_dim);
  SelectKernelsFor(isa).split_query(item.query, args.q_heads, args.q_heads, args.head_dim, split);
  return {split, 2, args.q_heads, args.q_heads / args.kv_heads, args.head_dim, args.scale};
}

}  // namespace

// out[b] = sum over the heads h of e^(l[b, h] - max_h) / sum_h. Ranges of blocks find their own max
// and sum; those of all blocks follow from them in the order of the ranges.
void CpuHeadVote(ThreadPool& pool, Isa isa, const ScoreBlocksArgs& args, const ScoreItem& item) {
  static thread_local Scratch query_scratch;
  static thread_local Scratch scratch;
  int64_t blocks = 0;
  for (int64_t c = 0; c < item.chunk_count; ++c) blocks += item.chunks[c].blocks;
  if (blocks == 0) return;
  const bool bf16 = args.dtype == DType::kBF16;
  const int64_t block_bytes = ShapeOf(args.kind, args.q_heads, args.kv_heads).rows() *
                              args.head_dim * static_cast<int64_t>(SizeOf(args.dtype));
  const int64_t grain = std::max<int64_t>(RangeItems(block_bytes), 16);
  const int64_t ranges = (blocks + grain - 1) / grain;
  const HeadVoteKernels& kernels = KernelsFor(isa);
  const HeadQueries queries = QueriesOfHeads(args, item, isa, query_scratch);
  const int64_t width = PaddedHeads(queries.heads);
  float* logits = scratch.Get<float>((blocks + 2 * ranges + 2) * width);
  float* range_max = logits + blocks * width;
  float* range_sum = range_max + ranges * width;
  float* max = range_sum + ranges * width;
  float* sum = max + width;

  ForRanges(pool, blocks, grain, [&](int64_t begin, int64_t end) {
    ForPieces(item, block_bytes, begin, end, [&](const void* data, int64_t first, int64_t count) {
      kernels.head_dots(queries, data, bf16, count, logits + first * width);
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
  ForRanges(pool, blocks, grain, [&](int64_t begin, int64_t end) {
    kernels.head_sums(logits + begin * width, range_max + begin / grain * width, end - begin,
                      queries.heads, item.out + begin);
  });
}

}  // namespace infllm::kernels
