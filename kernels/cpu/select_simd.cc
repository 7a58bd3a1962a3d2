#include "kernels/cpu/select_simd.h"

#include "kernels/cpu/simd.h"

// T is the element of a row: float, or the bits of bf16.
namespace infllm::kernels::INFLLM_ISA {
namespace {

int LanesLeft(int64_t n, int64_t i) { return static_cast<int>(n - i < kLanes ? n - i : kLanes); }

// ---- dots ----
//
// A tile of kRows rows by up to kQueries queries has one sum of kLanes lanes each, in registers;
// rows are loaded (and widened) once per tile, queries once per kRows rows. The lanes of a sum are
// added in one order, so it does not matter which tile a row or a query is in.
// Of AVX-512 tiles, 8 rows by 3 queries took about a third longer than 4 by 6.

constexpr int kStep = 2 * kLanes;  // elements per turn
constexpr int kRows = 4;
constexpr int kQueries = kLanes >= 16 ? 6 : 2;  // the sums and a row's vectors fill the registers

template <typename T>
inline Pair LoadPairPartial(const T* p, int n) {
#if defined(__AVX512BW__)
  if constexpr (sizeof(T) == 2) {
    const VecU bits = (VecU)_mm512_maskz_loadu_epi16((1u << n) - 1, p);  // n < kStep
    return {(VecF)(bits << 16), (VecF)(bits & 0xffff0000u)};
  }
#endif
  T elements[kStep] = {};
  std::memcpy(elements, p, static_cast<size_t>(n) * sizeof(T));
  return LoadPair(elements);
}

void ArrangeQuery(const float* query, int64_t width, bool bf16, float* out) {
  for (int64_t i = 0; i < ArrangedWidth(width); ++i) {
    const int64_t at = i % kStep;
    const int64_t from = bf16 ? i - at + at % kLanes * 2 + at / kLanes : i;
    out[i] = from < width ? query[from] : 0.0f;
  }
}

void SplitQuery(const float* query, int64_t q_heads, int64_t kv_heads, int64_t head_dim,
                float* out) {
  const int64_t size = kv_heads * head_dim;
  std::memset(out, 0, static_cast<size_t>(2 * size) * sizeof(float));
  for (int64_t h = 0; h < q_heads; ++h) {
    const float* q = query + h * head_dim;
    float* least = out + h / (q_heads / kv_heads) * head_dim;
    float* largest = least + size;
    for (int64_t d = 0; d < head_dim; ++d) {
      least[d] += q[d] > 0 ? 0 : q[d];
      largest[d] += q[d] > 0 ? q[d] : 0;
    }
  }
}

// The row of block b is row_of(b).
template <int kCount, typename T, typename Row>
void Tile(const ChunkQuery* queries, int64_t width, int64_t first, int64_t end, Row row_of) {
  const float* query[kCount];
  for (int q = 0; q < kCount; ++q) query[q] = queries[q].query;
  for (int64_t b = first; b < end; b += kRows) {
    const T* rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = row_of(b + r < end ? b + r : end - 1);
    VecF sums[kRows][kCount] = {};
    const auto add = [&](int64_t i, auto load) __attribute__((always_inline)) {
      Pair row[kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) row[r] = load(rows[r] + i);
#pragma GCC unroll 8
      for (int q = 0; q < kCount; ++q) {
        const VecF x = Load(query[q] + i);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sums[r][q] += x * row[r].first;
      }
#pragma GCC unroll 8
      for (int q = 0; q < kCount; ++q) {
        const VecF x = Load(query[q] + i + kLanes);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sums[r][q] += x * row[r].second;
      }
    };
    int64_t i = 0;
    for (; i + kStep <= width; i += kStep) add(i, [](const T* p) { return LoadPair(p); });
    if (i < width) {
      add(i, [n = static_cast<int>(width - i)](const T* p) { return LoadPairPartial(p, n); });
    }
    const int here = static_cast<int>(end - b < kRows ? end - b : kRows);
#pragma GCC unroll 8
    for (int q = 0; q < kCount; ++q) {
      const VecF dots = AddLanes(sums[0][q], sums[1][q], sums[2][q], sums[3][q]);
      StorePartial(queries[q].out + b, dots, here);
    }
  }
}

template <typename T>
void DotsOf(const ChunkQuery* queries, int64_t count, int64_t width, int64_t first, int64_t end) {
  const auto row_of = [width, rows = static_cast<const T*>(queries->rows)](int64_t b) {
    return rows + b * width;
  };
  while (count > 0) {
    const int64_t groups = (count + kQueries - 1) / kQueries;
    const int64_t here = (count + groups - 1) / groups;  // groups of about one size
    switch (here) {
      case 1:
        Tile<1, T>(queries, width, first, end, row_of);
        break;
      case 2:
        Tile<2, T>(queries, width, first, end, row_of);
        break;
#if defined(__AVX512F__)
      case 3:
        Tile<3, T>(queries, width, first, end, row_of);
        break;
      case 4:
        Tile<4, T>(queries, width, first, end, row_of);
        break;
      case 5:
        Tile<5, T>(queries, width, first, end, row_of);
        break;
      case 6:
        Tile<6, T>(queries, width, first, end, row_of);
        break;
#endif
    }
    queries += here;
    count -= here;
  }
}

void Dots(const ChunkQuery* queries, int64_t count, bool bf16, int64_t width, int64_t first,
          int64_t end) {
  if (bf16) {
    DotsOf<uint16_t>(queries, count, width, first, end);
  } else {
    DotsOf<float>(queries, count, width, first, end);
  }
}

template <typename T>
void DotsAt(const void* const* rows, int64_t count, int64_t width, const float* query, float* out) {
  constexpr int64_t kAhead = 2 * kRows;  // rows lie anywhere, so no prefetcher finds them
  const auto row_of = [=](int64_t i) {
    if (i + kAhead < count) {
      const auto* next = static_cast<const T*>(rows[i + kAhead]);
      for (int64_t c = 0; c < width; c += 64 / sizeof(T)) __builtin_prefetch(next + c);
    }
    return static_cast<const T*>(rows[i]);
  };
  const ChunkQuery one = {nullptr, count, query, out};
  Tile<1, T>(&one, width, 0, count, row_of);
}

void DotsOfRows(const void* const* rows, int64_t count, bool bf16, int64_t width,
                const float* query, float* out) {
  if (bf16) {
    DotsAt<uint16_t>(rows, count, width, query, out);
  } else {
    DotsAt<float>(rows, count, width, query, out);
  }
}

// ---- what stands for a block ----

template <typename T>
void MeanRowsOf(const void* const* rows, int64_t count, int64_t width, float* out) {
  const auto row = [=](int64_t r) { return static_cast<const T*>(rows[r]); };
  const VecF inverse = Set(1.0f / static_cast<float>(count));
  constexpr int kVectors = 8;
  int64_t c = 0;
  for (; c + kVectors * kLanes <= width; c += kVectors * kLanes) {
    VecF sums[kVectors] = {};
    for (int64_t r = 0; r < count; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[v] += Load(row(r) + c + v * kLanes);
    }
    for (int v = 0; v < kVectors; ++v) Store(out + c + v * kLanes, sums[v] * inverse);
  }
  for (; c < width; c += kLanes) {
    const int here = LanesLeft(width, c);
    VecF sum = {};
    for (int64_t r = 0; r < count; ++r) sum += LoadPartial(row(r) + c, here);
    StorePartial(out + c, sum * inverse, here);
  }
}

void MeanRows(const void* const* rows, int64_t count, bool bf16, int64_t width, float* out) {
  if (bf16) {
    MeanRowsOf<uint16_t>(rows, count, width, out);
  } else {
    MeanRowsOf<float>(rows, count, width, out);
  }
}

template <typename T>
void BoundsOf(const T* rows, int64_t count, int64_t width, float* least, float* largest) {
  for (int64_t c = 0; c < width; c += kLanes) {
    const int here = LanesLeft(width, c);
    VecF low = LoadPartial(rows + c, here), high = low;
    for (int64_t r = 1; r < count; ++r) {
      const VecF next = LoadPartial(rows + r * width + c, here);
      low = Min(low, next);
      high = Max(high, next);
    }
    StorePartial(least + c, low, here);
    StorePartial(largest + c, high, here);
  }
}

void Bounds(const void* rows, int64_t count, bool bf16, int64_t width, float* least,
            float* largest) {
  if (bf16) {
    BoundsOf(static_cast<const uint16_t*>(rows), count, width, least, largest);
  } else {
    BoundsOf(static_cast<const float*>(rows), count, width, least, largest);
  }
}

}  // namespace

const SelectKernels kSelectKernels = {ArrangeQuery, SplitQuery, Dots, DotsOfRows, MeanRows, Bounds};

}  // namespace infllm::kernels::INFLLM_ISA
