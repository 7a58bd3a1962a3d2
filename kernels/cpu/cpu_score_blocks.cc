// ScoreBlocks of the CPU backend. Bound by memory for a few queries and by its products for many,
// so all queries that meet a chunk are scored while a part of it is in a core's cache.
#include "kernels/cpu/chunk_strips.h"
#include "kernels/cpu/cpu_select.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/select_ranges.h"

namespace infllm::kernels {
namespace {

void ScoreByMean(ThreadPool& pool, const SelectKernels& kernels, const ScoreBlocksArgs& args) {
  static thread_local Scratch query_scratch;
  const ScoredQueries scored = ArrangeQueries(kernels, args);
  int64_t chunks = 0;
  for (int64_t i = 0; i < args.count; ++i) chunks += args.items[i].chunk_count;
  auto* queries = query_scratch.Get<ChunkQuery>(chunks);
  int64_t count = 0;
  for (int64_t i = 0; i < args.count; ++i) {
    const ScoreItem& item = args.items[i];
    float* out = item.out;
    for (int64_t c = 0; c < item.chunk_count; ++c) {
      const RepresentativeChunk& chunk = item.chunks[c];
      if (chunk.blocks == 0) continue;
      queries[count++] = {chunk.data, chunk.blocks, scored.arranged(i), out};
      out += chunk.blocks;
    }
  }
  ScoreChunks(pool, kernels, args.dtype, scored.width, queries, count);
}

}  // namespace

// The mean score is linear in the representative, so the heads that share a row are summed first.
// max(q min, q max) is q max for q > 0 and q min otherwise: the query of bounds is the negative
// parts, then the positive parts.
ScoredQueries ArrangeQueries(const SelectKernels& kernels, const ScoreBlocksArgs& args) {
  static thread_local Scratch summed_scratch;
  static thread_local Scratch arranged_scratch;
  const int64_t width = ShapeOf(args.kind, args.q_heads, args.kv_heads).rows() * args.head_dim;
  ScoredQueries queries{.width = width};
  auto* summed = summed_scratch.Get<float>(args.count * width);
  auto* arranged = arranged_scratch.Get<float>(args.count * ArrangedWidth(width));
  queries.all_summed = summed;
  queries.all_arranged = arranged;
  for (int64_t i = 0; i < args.count; ++i) {
    const float* query = args.items[i].query;
    if (args.kind == RepresentativeKind::kBounds) {
      float* const split = summed + i * width;
      kernels.split_query(query, args.q_heads, args.kv_heads, args.head_dim, split);
      query = split;
    }
    kernels.arrange_query(query, width, args.dtype == DType::kBF16,
                          arranged + i * ArrangedWidth(width));
  }
  return queries;
}

void ScoreChunks(ThreadPool& pool, const SelectKernels& kernels, DType dtype, int64_t width,
                 ChunkQuery* queries, int64_t count) {
  const int64_t grain = RangeItems(width * static_cast<int64_t>(SizeOf(dtype)));
  ForStrips(pool, queries, count, grain,
            [&](const ChunkQuery* shared, int64_t sharing, int64_t first, int64_t end) {
              kernels.dots(shared, sharing, dtype == DType::kBF16, width, first, end);
            });
}

void CpuScoreBlocks(ThreadPool& pool, Isa isa, const ScoreBlocksArgs& args) {
  if (args.scoring == Scoring::kMean) return ScoreByMean(pool, SelectKernelsFor(isa), args);
  // Bound by its exponentials rather than by memory: nothing is gained by several queries at once.
  for (int64_t i = 0; i < args.count; ++i) CpuHeadVote(pool, isa, args, args.items[i]);
}

}  // namespace infllm::kernels
