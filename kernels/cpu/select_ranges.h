// How the operations of block selection and sampling are cut into ranges for the thread pool.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/core/thread_pool.h"

namespace infllm::kernels {

// Bytes that a thread reads for one range of work, and below which waking others costs more.
inline constexpr int64_t kRangeBytes = 256 << 10;

// Items of about this many bytes each that make a range.
constexpr int64_t RangeItems(int64_t item_bytes) {
  return std::max<int64_t>(kRangeBytes / std::max<int64_t>(item_bytes, 1), 1);
}

// body(begin, end) over fixed ranges of `grain`. A single one is run at once: the pool serves one
// caller after the other.
template <typename Body>
void ForRanges(ThreadPool& pool, int64_t items, int64_t grain, Body body) {
  if (items <= grain) {
    if (items > 0) body(int64_t{0}, items);
  } else {
    pool.ParallelFor(items, grain, [&](int64_t begin, int64_t end, int) { body(begin, end); });
  }
}

}  // namespace infllm::kernels
