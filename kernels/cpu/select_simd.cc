#include "kernels/cpu/select_simd.h"

#include "kernels/cpu/simd.h"

namespace infllm::kernels::INFLLM_ISA {
namespace {

// A wide row has enough work for several sums of its own; narrow rows are taken kLanes at a time
// and share one reduction.
constexpr int64_t kWideRow = 512;

float WideDot(const float* a, const float* b, int64_t width) {
  constexpr int kSums = 4;
  VecF sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums * kLanes <= width; i += kSums * kLanes) {
#pragma GCC unroll 4
    for (int s = 0; s < kSums; ++s) sums[s] += Load(a + i + s * kLanes) * Load(b + i + s * kLanes);
  }
  for (; i < width; i += kLanes) {
    const int here = static_cast<int>(width - i < kLanes ? width - i : kLanes);
    sums[0] += LoadPartial(a + i, here) * LoadPartial(b + i, here);
  }
  return ReduceAdd((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// Lane r is a[r * a_stride ...] . b[r * b_stride ...] for r < count <= kLanes; others repeat the
// last. kFull says that count is kLanes.
template <bool kFull>
inline VecF NarrowDots(const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                       int64_t count, int64_t width) {
  VecF sums[kLanes] = {};
  const auto add = [&](int64_t i, auto load) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int64_t r = 0; r < kLanes; ++r) {
      const int64_t row = kFull || r < count ? r : count - 1;
      sums[r] += load(a + row * a_stride + i) * load(b + row * b_stride + i);
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) add(i, [](const float* p) { return Load(p); });
  if (i < width) {
    add(i, [n = static_cast<int>(width - i)](const float* p) { return LoadPartial(p, n); });
  }
  Transpose(sums);
  VecF total = sums[0];
#pragma GCC unroll 16
  for (int r = 1; r < kLanes; ++r) total += sums[r];
  return total;
}

void Dots(const float* query, const float* rows, int64_t count, int64_t width, float* out) {
  if (width >= kWideRow) {
    for (int64_t r = 0; r < count; ++r) out[r] = WideDot(query, rows + r * width, width);
    return;
  }
  int64_t r = 0;
  for (; r + kLanes <= count; r += kLanes) {
    Store(out + r, NarrowDots<true>(query, 0, rows + r * width, width, kLanes, width));
  }
  if (r < count) {
    const VecF dots = NarrowDots<false>(query, 0, rows + r * width, width, count - r, width);
    StorePartial(out + r, dots, static_cast<int>(count - r));
  }
}

void HeadDots(const float* query, const float* rows, int64_t blocks, int64_t heads,
              int64_t head_dim, float scale, float* logits) {
  for (int64_t b = 0; b < blocks; ++b) {
    const float* block = rows + b * heads * head_dim;
    float* out = logits + b * PaddedHeads(heads);
    for (int64_t h = 0; h < PaddedHeads(heads); h += kLanes) {
      VecF dots = {};
      if (h + kLanes <= heads) {
        dots = NarrowDots<true>(query + h * head_dim, head_dim, block + h * head_dim, head_dim,
                                kLanes, head_dim);
      } else if (h < heads) {
        dots = NarrowDots<false>(query + h * head_dim, head_dim, block + h * head_dim, head_dim,
                                 heads - h, head_dim);
      }
      Store(out + h, dots * Set(scale));
    }
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

template <bool kBf16, int kVectors>
void MeanOfVectors(const void* const* rows, int64_t count, int64_t column, float* out) {
  VecF sums[kVectors] = {};
  for (int64_t r = 0; r < count; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (kBf16) {
        sums[v] += LoadBf16(static_cast<const uint16_t*>(rows[r]) + column + v * kLanes);
      } else {
        sums[v] += Load(static_cast<const float*>(rows[r]) + column + v * kLanes);
      }
    }
  }
  const VecF inverse = Set(1.0f / static_cast<float>(count));
  for (int v = 0; v < kVectors; ++v) Store(out + column + v * kLanes, sums[v] * inverse);
}

template <bool kBf16>
void MeanRowsOf(const void* const* rows, int64_t count, int64_t width, float* out) {
  int64_t c = 0;
  for (; c + 8 * kLanes <= width; c += 8 * kLanes) MeanOfVectors<kBf16, 8>(rows, count, c, out);
  for (; c + kLanes <= width; c += kLanes) MeanOfVectors<kBf16, 1>(rows, count, c, out);
  for (; c < width; ++c) {
    float sum = 0;
    for (int64_t r = 0; r < count; ++r) {
      if constexpr (kBf16) {
        const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(rows[r])[c]) << 16;
        float x;
        std::memcpy(&x, &bits, sizeof(x));
        sum += x;
      } else {
        sum += static_cast<const float*>(rows[r])[c];
      }
    }
    out[c] = sum / static_cast<float>(count);
  }
}

void MeanRows(const void* const* rows, int64_t count, bool bf16, int64_t width, float* out) {
  if (bf16) {
    MeanRowsOf<true>(rows, count, width, out);
  } else {
    MeanRowsOf<false>(rows, count, width, out);
  }
}

}  // namespace

const SelectKernels kSelectKernels = {Dots, HeadDots, Exponentials, ExpDifference, MeanRows};

}  // namespace infllm::kernels::INFLLM_ISA
