#include "kernels/cpu/head_vote_simd.h"

#include "kernels/cpu/simd.h"

// T is the element of a row: float, or the bits of bf16.
namespace infllm::kernels::INFLLM_ISA {
namespace {

// A wide row has enough work for several sums of its own; narrow rows are taken kLanes at a time
// and share one reduction.
constexpr int64_t kWideRow = 512;

int LanesLeft(int64_t n, int64_t i) { return static_cast<int>(n - i < kLanes ? n - i : kLanes); }

// Lanes whose sum is a . b.
template <typename T>
inline VecF Products(const float* a, const T* b, int64_t width) {
  constexpr int kSums = 4;
  VecF sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums * kLanes <= width; i += kSums * kLanes) {
#pragma GCC unroll 4
    for (int s = 0; s < kSums; ++s) sums[s] += Load(a + i + s * kLanes) * Load(b + i + s * kLanes);
  }
  for (; i < width; i += kLanes) {
    const int here = LanesLeft(width, i);
    sums[0] += LoadPartial(a + i, here) * LoadPartial(b + i, here);
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Lane r is the sum of the lanes of rows[r].
inline VecF ReduceRows(VecF (&rows)[kLanes]) {
  Transpose(rows);
  VecF total = rows[0];
#pragma GCC unroll 16
  for (int r = 1; r < kLanes; ++r) total += rows[r];
  return total;
}

// Lane r is a[r * a_stride ...] . row_of(r)[...] for r < count <= kLanes; the others are anything.
// kFull says that count is kLanes.
template <bool kFull, typename RowOf>
inline VecF NarrowDots(const float* a, int64_t a_stride, RowOf row_of, int64_t count,
                       int64_t width) {
  if (width > 4 * kLanes) {  // row by row, as memory likes it best
    VecF sums[kLanes] = {};
    for (int r = 0; r < (kFull ? kLanes : count); ++r) {
      sums[r] = Products(a + r * a_stride, row_of(r), width);
    }
    return ReduceRows(sums);
  }
  VecF sums[kLanes] = {};
  const auto add = [&](int64_t i, auto load) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int64_t r = 0; r < kLanes; ++r) {
      const int64_t row = kFull || r < count ? r : count - 1;
      sums[r] += load(a + row * a_stride + i) * load(row_of(row) + i);
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) add(i, [](const auto* p) { return Load(p); });
  if (i < width) {
    add(i, [n = static_cast<int>(width - i)](const auto* p) { return LoadPartial(p, n); });
  }
  return ReduceRows(sums);
}
template <typename RowOf>
inline VecF NarrowDots(const float* a, int64_t a_stride, RowOf row_of, int64_t count,
                       int64_t width) {
  return count >= kLanes ? NarrowDots<true>(a, a_stride, row_of, kLanes, width)
                         : NarrowDots<false>(a, a_stride, row_of, count, width);
}

// The products of the heads h, h + 1, ... with their rows of one slot, in lanes.
template <typename T>
inline VecF SlotDots(const HeadQueries& queries, const float* query, const T* slot, int64_t h) {
  const int64_t dim = queries.head_dim, count = queries.heads - h;
  if (count <= 0) return VecF{};
  if (queries.heads_per_row > 1) {
    const T* rows[kLanes];
    for (int i = 0; i < LanesLeft(queries.heads, h); ++i) {
      rows[i] = slot + (h + i) / queries.heads_per_row * dim;
    }
    return NarrowDots(
        query + h * dim, dim, [&](int64_t i) { return rows[i]; }, count, dim);
  }
  if (dim >= kWideRow) {
    VecF dots = {};
    for (int i = 0; i < LanesLeft(queries.heads, h); ++i) {
      dots[i] = ReduceAdd(Products(query + (h + i) * dim, slot + (h + i) * dim, dim));
    }
    return dots;
  }
  const T* first = slot + h * dim;
  return NarrowDots(
      query + h * dim, dim, [=](int64_t i) { return first + i * dim; }, count, dim);
}

template <typename T>
void HeadDotsOf(const HeadQueries& queries, const T* rows, int64_t blocks, float* logits) {
  const int64_t width = PaddedHeads(queries.heads);
  const int64_t slot_size = queries.heads / queries.heads_per_row * queries.head_dim;
  const int64_t query_size = queries.heads * queries.head_dim;
  for (int64_t b = 0; b < blocks; ++b, logits += width) {
    for (int64_t s = 0; s < queries.slots; ++s, rows += slot_size) {
      for (int64_t h = 0; h < width; h += kLanes) {
        VecF dots = SlotDots(queries, queries.query + s * query_size, rows, h);
        if (s > 0) dots = Load(logits + h) + dots;
        if (s == queries.slots - 1) dots *= Set(queries.scale);
        Store(logits + h, dots);
      }
    }
  }
}

void HeadDots(const HeadQueries& queries, const void* rows, bool bf16, int64_t blocks,
              float* logits) {
  if (bf16) {
    HeadDotsOf(queries, static_cast<const uint16_t*>(rows), blocks, logits);
  } else {
    HeadDotsOf(queries, static_cast<const float*>(rows), blocks, logits);
  }
}

void Exponentials(float* x, int64_t blocks, int64_t width, float* max, float* sum) {
  for (int64_t h = 0; h < width; h += kLanes) {
    VecF best = Load(x + h);
    for (int64_t b = 1; b < blocks; ++b) best = Max(best, Load(x + b * width + h));
    VecF total = {};
    for (int64_t b = 0; b < blocks; ++b) {
      const VecF e = Exp(Load(x + b * width + h) - best);
      Store(x + b * width + h, e);
      total += e;
    }
    Store(max + h, best);
    Store(sum + h, total);
  }
}

void ExpDifference(const float* x, const float* y, int64_t width, float* out) {
  for (int64_t h = 0; h < width; h += kLanes) Store(out + h, Exp(Load(x + h) - Load(y + h)));
}

// Blocks lie in lanes, so that the sums of kLanes of them are stored at once.
void HeadSums(const float* x, const float* weight, int64_t blocks, int64_t heads, float* out) {
  const int64_t width = PaddedHeads(heads);
  for (int64_t b = 0; b < blocks; b += kLanes) {
    const int here = LanesLeft(blocks, b);
    VecF by_head[kLanes];
    VecF sum = {};
    for (int64_t h = 0; h < heads; ++h) {
      if (h % kLanes == 0) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          by_head[i] = Load(x + (b + (i < here ? i : 0)) * width + h);
        }
        Transpose(by_head);
      }
      sum += Set(weight[h]) * by_head[h % kLanes];
    }
    StorePartial(out + b, sum, here);
  }
}

}  // namespace

const HeadVoteKernels kHeadVoteKernels = {HeadDots, Exponentials, ExpDifference, HeadSums};

}  // namespace infllm::kernels::INFLLM_ISA
