// Vector types of the instruction set that this translation unit is compiled for. A *_simd.cc file
// is compiled once per set (see kernels/CMakeLists.txt) and puts everything into
// `namespace infllm::kernels::INFLLM_ISA`, so that the copies never mix. Such a file must not
// include headers with inline functions that other objects may share beyond this one and the
// plain-data ones of kernels/: the linker could keep the AVX-512 copy for everybody.
#pragma once

#include <cstdint>
#include <cstring>

#ifndef INFLLM_ISA
#error "simd.h is for sources compiled per instruction set"
#endif

namespace infllm::kernels::INFLLM_ISA {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;
#endif

typedef float VecF __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecI __attribute__((vector_size(kLanes * 4)));
typedef uint32_t VecU __attribute__((vector_size(kLanes * 4)));
typedef uint16_t VecH __attribute__((vector_size(kLanes * 2)));  // bf16 bits

static inline VecF Set(float x) { return VecF{} + x; }
static inline VecF Load(const float* p) {
  VecF v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
static inline void Store(float* p, VecF v) { std::memcpy(p, &v, sizeof(v)); }

// bf16 bits to float: exact.
static inline VecF LoadBf16(const uint16_t* p) {
  VecH h;
  std::memcpy(&h, p, sizeof(h));
  return (VecF)(__builtin_convertvector(h, VecU) << 16);
}

static inline VecF Max(VecF a, VecF b) { return a > b ? a : b; }

static inline float ReduceAdd(VecF v) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}
static inline float ReduceMax(VecF v) {
  float best = v[0];
  for (int i = 1; i < kLanes; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

}  // namespace infllm::kernels::INFLLM_ISA
