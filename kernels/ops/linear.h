#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/device.h"

namespace infllm::kernels {

// A weight in the layout that its backend multiplies fastest: what operations are given.
struct PackedWeight {
  const void* data = nullptr;
  int64_t out_features = 0;
  int64_t in_features = 0;
  uint64_t layout = 0;  // the backend's own mark: another backend refuses the weight
};
// Owns it. Made by Backend::PackWeight.
struct Weight {
  Buffer buffer;
  PackedWeight packed;
  size_t size_bytes() const { return buffer.size_bytes(); }
};
// Rows of host memory, [out_features, in_features], from which a weight is packed.
struct WeightSource {
  const void* host = nullptr;
  DType dtype = DType::kF32;
  int64_t out_features = 0;
};

// y[r, o] = sum_i x[r, i] w[o, i] + bias[o] (+ y[r, o] if accumulate)
// The order of the sum over i does not depend on `rows`, nor on r.
struct LinearArgs {
  const void* x = nullptr;  // [rows, in_features]
  PackedWeight weight;
  const float* bias = nullptr;  // [out_features], or null
  void* y = nullptr;            // [rows, out_features]
  int64_t rows = 0;
  bool accumulate = false;
  DType x_dtype = DType::kF32;
  DType y_dtype = DType::kF32;
};

}  // namespace infllm::kernels
