// What kernels/cpu/simd.h offers, behind plain functions: compiled once per instruction set.
#pragma once

#include <cstdint>

namespace infllm::kernels {

struct SimdFunctions {
  int lanes;
  void (*exp)(const float* x, float* y);           // [lanes]
  void (*to_bf16)(const float* x, uint16_t* y);    // [lanes]
  void (*load_bf16)(const uint16_t* x, float* y);  // [lanes]
  // y[0, lanes) = the n loaded, y[lanes, 2 lanes) = the n stored.
  void (*copy_partial)(const float* x, float* y, int n);
  // The same of bf16 bits; those stored are the floats rounded again.
  void (*copy_partial_bf16)(const uint16_t* x, float* y, uint16_t* stored, int n);
  float (*reduce_add)(const float* x);          // [lanes]
  float (*reduce_max)(const float* x);          // [lanes]
  void (*transpose)(const float* x, float* y);  // [lanes, lanes]
  void (*set)(float x, float* y);               // [lanes]
};

namespace generic {
extern const SimdFunctions kSimdFunctions;
}
namespace avx2 {
extern const SimdFunctions kSimdFunctions;
}
namespace avx512 {
extern const SimdFunctions kSimdFunctions;
}
namespace avx512bf16 {
extern const SimdFunctions kSimdFunctions;
}

}  // namespace infllm::kernels
