// Operations of a decoder layer beside the matrix products and attention.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/core/dtype.h"

namespace infllm::kernels {

// y = x / sqrt(mean(x^2) + eps) * weight, per row.
struct RmsNormArgs {
  const void* x = nullptr;        // [rows, width]
  const float* weight = nullptr;  // [width]
  void* y = nullptr;              // [rows, width]; may be x
  int64_t rows = 0;
  int64_t width = 0;
  float eps = 0;
  DType x_dtype = DType::kF32;
  DType y_dtype = DType::kF32;
};

// out[r, i] = silu(gate_up[r, i]) * gate_up[r, width + i].
struct SiluMulArgs {
  const void* gate_up = nullptr;  // [rows, 2 * width]
  void* out = nullptr;            // [rows, width]
  int64_t rows = 0;
  int64_t width = 0;
  DType gate_up_dtype = DType::kF32;
  DType out_dtype = DType::kF32;
};

// out[i] = x[index[i]]: the rows whose logits are wanted.
struct GatherRowsArgs {
  const void* x = nullptr;         // [any, width]
  const int32_t* index = nullptr;  // [rows], shared memory
  void* out = nullptr;             // [rows, width]; apart from x
  int64_t rows = 0;
  int64_t width = 0;
  DType dtype = DType::kF32;
};

}  // namespace infllm::kernels
