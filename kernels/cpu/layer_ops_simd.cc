#include "kernels/cpu/layer_ops_simd.h"

#include "kernels/cpu/simd.h"

namespace infllm::kernels::INFLLM_ISA {
namespace {

int LanesLeft(int64_t n, int64_t i) { return static_cast<int>(n - i < kLanes ? n - i : kLanes); }

// The sum of x^2 in four independent chains per lane.
float SumOfSquares(const float* x, int64_t n) {
  VecF sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) {
      const VecF v = Load(x + i + j * kLanes);
      sum[j] += v * v;
    }
  }
  for (; i < n; i += kLanes) {
    const VecF v = LoadPartial(x + i, LanesLeft(n, i));
    sum[0] += v * v;
  }
  return ReduceAdd((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

void RmsNorm(const float* x, const float* weight, float* y, int64_t rows, int64_t width,
             float eps) {
  for (int64_t r = 0; r < rows; ++r, x += width, y += width) {
    const float mean = SumOfSquares(x, width) / static_cast<float>(width);
    const VecF scale = Set(1.0f / __builtin_sqrtf(mean + eps));
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) Store(y + i, Load(x + i) * scale * Load(weight + i));
    if (i < width) {
      const int left = LanesLeft(width, i);
      StorePartial(y + i, LoadPartial(x + i, left) * scale * LoadPartial(weight + i, left), left);
    }
  }
}

template <typename T>
void Rotate(const float* x, const float* angle, int64_t heads, int64_t head_dim, T* y,
            int64_t y_stride) {
  const int64_t half = head_dim / 2;
  for (int64_t h = 0; h < heads; ++h, x += head_dim, y += y_stride) {
    for (int64_t i = 0; i < half; i += kLanes) {
      const int here = LanesLeft(half, i);
      const VecF c = LoadPartial(angle + i, here), s = LoadPartial(angle + half + i, here);
      const VecF low = LoadPartial(x + i, here), high = LoadPartial(x + half + i, here);
      StorePartial(y + i, low * c - high * s, here);
      StorePartial(y + half + i, high * c + low * s, here);
    }
  }
}

void SiluMul(const float* gate_up, float* out, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r, gate_up += 2 * width, out += width) {
    for (int64_t i = 0; i < width; i += kLanes) {
      const int here = LanesLeft(width, i);
      const VecF gate = LoadPartial(gate_up + i, here);
      const VecF up = LoadPartial(gate_up + width + i, here);
      StorePartial(out + i, gate / (Set(1.0f) + Exp(-gate)) * up, here);
    }
  }
}

void RowToBf16(const float* src, int64_t n, uint16_t* dst) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int here = LanesLeft(n, i);
    StorePartial(dst + i, LoadPartial(src + i, here), here);
  }
}

}  // namespace

const LayerKernels kLayerKernels = {RmsNorm, Rotate<float>, Rotate<uint16_t>, SiluMul, RowToBf16};

}  // namespace infllm::kernels::INFLLM_ISA
