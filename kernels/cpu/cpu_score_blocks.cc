// ScoreBlocks of the CPU backend. Bound by memory for a few queries and by its products for many,
// so all queries that meet a chunk are scored while a part of it is in a core's cache.
#include <algorithm>
#include <functional>

#include "kernels/cpu/cpu_select.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/select_ranges.h"

namespace infllm::kernels {
namespace {

// Blocks of one chunk that the same queries meet.
struct Strip {
  const ChunkQuery* queries = nullptr;
  int64_t count = 0;
  int64_t first = 0;  // block of the chunk
  int64_t begin = 0;  // of all strips' blocks, one after the other
};

// The queries as their products with a block are: the mean score is linear in the representative,
// so the heads that share a row are summed first. max(q min, q max) is q max for q > 0 and q min
// otherwise: the query of bounds is the negative parts, then the positive parts.
const float* ArrangeQueries(const SelectKernels& kernels, const ScoreBlocksArgs& args,
                            int64_t width) {
  static thread_local Scratch arranged_scratch;
  static thread_local Scratch split_scratch;
  const int64_t size = ArrangedWidth(width);
  float* arranged = arranged_scratch.Get<float>(args.count * size);
  for (int64_t i = 0; i < args.count; ++i) {
    const float* query = args.items[i].query;
    if (args.kind == RepresentativeKind::kBounds) {
      float* split = split_scratch.Get<float>(width);
      kernels.split_query(query, args.q_heads, args.kv_heads, args.head_dim, split);
      query = split;
    }
    kernels.arrange_query(query, width, args.dtype == DType::kBF16, arranged + i * size);
  }
  return arranged;
}

// Cuts the blocks of queries[count], sorted by chunk and then by falling number of blocks, into
// strips: where a chunk has fewer blocks for some queries, the others go on alone. There are
// at most `count`; returns how many.
int64_t MakeStrips(const ChunkQuery* queries, int64_t count, Strip* strips) {
  int64_t made = 0, blocks = 0;
  for (int64_t begin = 0, end; begin < count; begin = end) {
    end = begin + 1;
    while (end < count && queries[end].rows == queries[begin].rows) ++end;
    int64_t first = 0;
    for (int64_t last = end; last > begin; --last) {  // from the fewest blocks
      const int64_t here = queries[last - 1].blocks - first;
      if (here == 0) continue;
      strips[made++] = {queries + begin, last - begin, first, blocks};
      first += here;
      blocks += here;
    }
  }
  return made;
}

void ScoreByMean(ThreadPool& pool, const SelectKernels& kernels, const ScoreBlocksArgs& args) {
  static thread_local Scratch query_scratch;
  static thread_local Scratch strip_scratch;
  const bool bf16 = args.dtype == DType::kBF16;
  const int64_t width = ShapeOf(args.kind, args.q_heads, args.kv_heads).rows() * args.head_dim;
  const float* arranged = ArrangeQueries(kernels, args, width);

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
      queries[count++] = {chunk.data, chunk.blocks, arranged + i * ArrangedWidth(width), out};
      out += chunk.blocks;
    }
  }
  if (count == 0) return;
  std::sort(queries, queries + count, [](const ChunkQuery& a, const ChunkQuery& b) {
    if (a.rows != b.rows) return std::less<>()(a.rows, b.rows);
    return a.blocks > b.blocks;
  });
  auto* strips = strip_scratch.Get<Strip>(count);
  const int64_t strip_count = MakeStrips(queries, count, strips);
  const Strip& last = strips[strip_count - 1];
  const int64_t blocks = last.begin + last.queries[last.count - 1].blocks - last.first;

  const int64_t block_bytes = width * static_cast<int64_t>(SizeOf(args.dtype));
  ForRanges(pool, blocks, RangeItems(block_bytes), [&](int64_t begin, int64_t end) {
    const Strip* strip =
        std::upper_bound(strips, strips + strip_count, begin,
                         [](int64_t block, const Strip& s) { return block < s.begin; }) -
        1;
    for (; begin < end; ++strip) {
      const int64_t strip_end = strip + 1 < strips + strip_count ? strip[1].begin : blocks;
      const int64_t here = std::min(end, strip_end);
      const int64_t to_chunk = strip->first - strip->begin;
      kernels.dots(strip->queries, strip->count, bf16, width, begin + to_chunk, here + to_chunk);
      begin = here;
    }
  });
}

}  // namespace

void CpuScoreBlocks(ThreadPool& pool, Isa isa, const ScoreBlocksArgs& args) {
  if (args.scoring == Scoring::kMean) return ScoreByMean(pool, SelectKernelsFor(isa), args);
  // Bound by its exponentials rather than by memory: nothing is gained by several queries at once.
  for (int64_t i = 0; i < args.count; ++i) CpuHeadVote(pool, isa, args, args.items[i]);
}

}  // namespace infllm::kernels
