// The inner loops of the small ops between the products, one table per instruction set. Plain data
// only: this header is also compiled for AVX-512. See kernels/ops/ for what each computes.
// Nothing here is validated; cpu_backend.cc is the only caller.
#pragma once

#include <cstdint>

namespace infllm::kernels {

struct LayerKernels {
  void (*rms_norm)(const float* x, const float* weight, float* y, int64_t rows, int64_t width,
                   float eps);
  // Rotates each head by `angle` [head_dim]. Heads of y are `y_stride` elements apart.
  void (*rotate)(const float* x, const float* angle, int64_t heads, int64_t head_dim, float* y,
                 int64_t y_stride);
  void (*rotate_to_bf16)(const float* x, const float* angle, int64_t heads, int64_t head_dim,
                         uint16_t* y, int64_t y_stride);
  void (*silu_mul)(const float* gate_up, float* out, int64_t rows, int64_t width);
  // dst[i] = bf16(src[i]), to nearest even.
  void (*to_bf16)(const float* src, int64_t n, uint16_t* dst);
};

namespace generic {
extern const LayerKernels kLayerKernels;
}
namespace avx2 {
extern const LayerKernels kLayerKernels;
}
namespace avx512 {
extern const LayerKernels kLayerKernels;
}
namespace avx512bf16 {
extern const LayerKernels kLayerKernels;
}

}  // namespace infllm::kernels
