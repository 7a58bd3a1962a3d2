// Queries that meet the same chunks, and how their common pass over them is cut for the thread
// pool.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/select_ranges.h"
#include "kernels/cpu/select_simd.h"

namespace infllm::kernels {

// Blocks of one chunk that the same queries meet.
struct Strip {
  const ChunkQuery* queries = nullptr;
  int64_t count = 0;
  int64_t first = 0;  // block of the chunk
  int64_t begin = 0;  // of all strips' blocks, one after the other
};

// Cuts the blocks of queries[count], sorted by chunk and then by falling number of blocks, into
// strips: where a chunk has fewer blocks for some queries, the others go on alone. There are
// at most `count`; returns how many.
inline int64_t MakeStrips(const ChunkQuery* queries, int64_t count, Strip* strips) {
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

// body(queries, count, first, end): the blocks [first, end) of the chunk that these queries share.
// Sorts `queries`, each of at least one block.
template <typename Body>
void ForStrips(ThreadPool& pool, ChunkQuery* queries, int64_t count, int64_t grain, Body body) {
  static thread_local Scratch strip_scratch;
  if (count == 0) return;
  std::sort(queries, queries + count, [](const ChunkQuery& a, const ChunkQuery& b) {
    if (a.rows != b.rows) return std::less<>()(a.rows, b.rows);
    return a.blocks > b.blocks;
  });
  auto* strips = strip_scratch.Get<Strip>(count);
  const int64_t strip_count = MakeStrips(queries, count, strips);
  const Strip& last = strips[strip_count - 1];
  const int64_t blocks = last.begin + last.queries[last.count - 1].blocks - last.first;
  ForRanges(pool, blocks, grain, [&](int64_t begin, int64_t end) {
    const Strip* strip =
        std::upper_bound(strips, strips + strip_count, begin,
                         [](int64_t block, const Strip& s) { return block < s.begin; }) -
        1;
    for (; begin < end; ++strip) {
      const int64_t strip_end = strip + 1 < strips + strip_count ? strip[1].begin : blocks;
      const int64_t here = std::min(end, strip_end);
      const int64_t to_chunk = strip->first - strip->begin;
      body(strip->queries, strip->count, begin + to_chunk, here + to_chunk);
      begin = here;
    }
  });
}

}  // namespace infllm::kernels
