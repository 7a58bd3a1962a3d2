#include "tests/kernels/simd_functions.h"

#include "kernels/cpu/simd.h"

namespace infllm::kernels::INFLLM_ISA {
namespace {

void ExpOf(const float* x, float* y) { Store(y, Exp(Load(x))); }
void ToBf16Of(const float* x, uint16_t* y) {
  const VecH bits = ToBf16(Load(x));
  std::memcpy(y, &bits, sizeof(bits));
}
void LoadBf16Of(const uint16_t* x, float* y) { Store(y, LoadBf16(x)); }
void CopyPartial(const float* x, float* y, int n) {
  const VecF v = LoadPartial(x, n);
  Store(y, v);
  StorePartial(y + kLanes, v, n);
}
void CopyPartialBf16(const uint16_t* x, float* y, uint16_t* stored, int n) {
  const VecF v = LoadPartial(x, n);
  Store(y, v);
  StorePartial(stored, v, n);
}
float ReduceAddOf(const float* x) { return ReduceAdd(Load(x)); }
float ReduceMaxOf(const float* x) { return ReduceMax(Load(x)); }
void TransposeOf(const float* x, float* y) {
  VecF rows[kLanes];
  for (int i = 0; i < kLanes; ++i) rows[i] = Load(x + i * kLanes);
  Transpose(rows);
  for (int i = 0; i < kLanes; ++i) Store(y + i * kLanes, rows[i]);
}
void SetOf(float x, float* y) { Store(y, Set(x)); }

}  // namespace

const SimdFunctions kSimdFunctions = {
    kLanes,          ExpOf,       ToBf16Of,    LoadBf16Of,  CopyPartial,
    CopyPartialBf16, ReduceAddOf, ReduceMaxOf, TransposeOf, SetOf};

}  // namespace infllm::kernels::INFLLM_ISA
