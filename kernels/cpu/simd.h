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

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// AVX-512 intrinsics are used in their maskz form: the others draw a false -Wuninitialized from
// GCC 12 (PR 105593), and the code is the same.
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

// x - 0 is x for every x, so this compiles to a mere broadcast (0 + x would not: it turns -0 to 0).
static inline VecF Set(float x) { return x - VecF{}; }
static inline VecF Load(const float* p) {
  VecF v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
static inline void Store(float* p, VecF v) { std::memcpy(p, &v, sizeof(v)); }

static inline VecI LaneNumbers() {
  VecI v;
  for (int i = 0; i < kLanes; ++i) v[i] = i;
  return v;
}

// The first n (0 <= n <= kLanes) lanes; the others load as zero and are not touched in memory.
static inline VecF LoadPartial(const float* p, int n) {
#if defined(__AVX512F__)
  return (VecF)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#elif defined(__AVX2__)
  return (VecF)_mm256_maskload_ps(p, (__m256i)(LaneNumbers() < n));
#else
  VecF v = {};
  std::memcpy(&v, p, static_cast<size_t>(n) * sizeof(float));
  return v;
#endif
}
static inline void StorePartial(float* p, VecF v, int n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
#elif defined(__AVX2__)
  _mm256_maskstore_ps(p, (__m256i)(LaneNumbers() < n), (__m256)v);
#else
  std::memcpy(p, &v, static_cast<size_t>(n) * sizeof(float));
#endif
}

// bf16 bits to float: exact.
static inline VecF LoadBf16(const uint16_t* p) {
#if defined(__AVX512F__)
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (VecF)((VecU)_mm512_maskz_cvtepu16_epi32(0xffff, h) << 16);
#elif defined(__AVX2__)
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (VecF)((VecU)_mm256_cvtepu16_epi32(h) << 16);
#else
  VecH h;
  std::memcpy(&h, p, sizeof(h));
  return (VecF)(__builtin_convertvector(h, VecU) << 16);
#endif
}

// Float to bf16 bits as BF16(float) does it: to nearest even, a NaN stays a NaN, subnormals are
// kept (which vcvtneps2bf16 would flush).
static inline VecH ToBf16(VecF v) {
  const VecU u = (VecU)v;
  const VecU rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const VecU quiet = (u >> 16) | 0x40u;
  return __builtin_convertvector((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded, VecH);
}

// bf16 bits like floats, for code that is written once for both.
static inline VecF Load(const uint16_t* p) { return LoadBf16(p); }
static inline VecF LoadPartial(const uint16_t* p, int n) {
  if (n == kLanes) return LoadBf16(p);
  uint16_t lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof(uint16_t));
  return LoadBf16(lanes);
}
static inline void StorePartial(uint16_t* p, VecF v, int n) {
  const VecH bits = ToBf16(v);
  if (n == kLanes) {
    std::memcpy(p, &bits, sizeof(bits));
  } else {
    std::memcpy(p, &bits, static_cast<size_t>(n) * sizeof(uint16_t));
  }
}

static inline VecF Max(VecF a, VecF b) { return a > b ? a : b; }
static inline VecF Min(VecF a, VecF b) { return a < b ? a : b; }

// The lanes rotated by `n`: what the log-step reductions below add to themselves.
template <int n>
static inline VecF Rotate(VecF v) {
  VecI index;
  for (int i = 0; i < kLanes; ++i) index[i] = (i + n) % kLanes;
  return __builtin_shuffle(v, index);
}

// Two vectors of consecutive elements. Those of bf16 are the even, then the odd ones, which takes
// two instructions where widening in order takes four; what they meet is arranged likewise.
struct Pair {
  VecF first, second;
};
static inline Pair LoadPair(const float* p) { return {Load(p), Load(p + kLanes)}; }
static inline Pair LoadPair(const uint16_t* p) {
  VecU bits;
  std::memcpy(&bits, p, sizeof(bits));
  return {(VecF)(bits << 16), (VecF)(bits & 0xffff0000u)};
}

// Lane i < 4 is the sum of the lanes of a, b, c, d: halves are added to halves.
static inline VecF AddLanes(VecF a, VecF b, VecF c, VecF d) {
  VecI halves, quarters, fours;
  for (int i = 0; i < kLanes; ++i) {
    const int half = i / (kLanes / 2), quarter = i / (kLanes / 4);
    halves[i] = half * kLanes + i % (kLanes / 2);
    quarters[i] = quarter / 2 * kLanes + quarter % 2 * (kLanes / 2) + i % (kLanes / 4);
    fours[i] = i * (kLanes / 4) % kLanes;
  }
  const VecF ab = __builtin_shuffle(a, b, halves) + __builtin_shuffle(a, b, halves + kLanes / 2);
  const VecF cd = __builtin_shuffle(c, d, halves) + __builtin_shuffle(c, d, halves + kLanes / 2);
  VecF sum = __builtin_shuffle(ab, cd, quarters) + __builtin_shuffle(ab, cd, quarters + kLanes / 4);
  if constexpr (kLanes >= 16) sum += __builtin_shuffle(sum, LaneNumbers() ^ 2);
  if constexpr (kLanes >= 8) sum += __builtin_shuffle(sum, LaneNumbers() ^ 1);
  return __builtin_shuffle(sum, fours);
}

static inline float ReduceAdd(VecF v) {
  if constexpr (kLanes >= 16) v += Rotate<8>(v);
  if constexpr (kLanes >= 8) v += Rotate<4>(v);
  v += Rotate<2>(v);
  v += Rotate<1>(v);
  return v[0];
}
static inline float ReduceMax(VecF v) {
  if constexpr (kLanes >= 16) v = Max(v, Rotate<8>(v));
  if constexpr (kLanes >= 8) v = Max(v, Rotate<4>(v));
  v = Max(v, Rotate<2>(v));
  v = Max(v, Rotate<1>(v));
  return v[0];
}

// A square transpose: log2(kLanes) perfect shuffles.
static inline void Transpose(VecF (&rows)[kLanes]) {
  VecI low, high;
  for (int i = 0; i < kLanes; ++i) {
    low[i] = i / 2 + (i % 2) * kLanes;
    high[i] = low[i] + kLanes / 2;
  }
#pragma GCC unroll 4
  for (int step = 1; step < kLanes; step *= 2) {
    VecF next[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], low);
      next[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

// e^x to 2 ulp. Below ln(FLT_MIN), -inf included, it is exactly zero (subnormals would only slow
// the sums down); above ln(FLT_MAX) it is +inf; NaN stays NaN.
//   x = n ln2 + r, |r| <= ln2/2;  e^x = 2^n (1 + r + r^2 P(r)), P as in Cephes expf
static inline VecF Exp(VecF x) {
  constexpr float kLowest = -87.336544f;
  constexpr float kToInfinity = 89.0f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the low bits
  const VecI underflow = x < Set(kLowest);
  x = x < Set(kLowest) ? Set(kLowest) : x;
  x = x > Set(kToInfinity) ? Set(kToInfinity) : x;

  const VecF shifted = x * Set(1.44269504f) + Set(kRound);
  const VecF n = shifted - Set(kRound);
  VecF r = x - n * Set(0.693359375f);
  r = r - n * Set(-2.12194440e-4f);

  VecF p = Set(1.9875691500e-4f);
  p = p * r + Set(1.3981999507e-3f);
  p = p * r + Set(8.3334519073e-3f);
  p = p * r + Set(4.1665795894e-2f);
  p = p * r + Set(1.6666665459e-1f);
  p = p * r + Set(5.0000001201e-1f);
  p = p * (r * r) + r + Set(1.0f);

#if defined(__AVX512F__)
  p = (VecF)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)n);
#else
  // In two factors, since 2^128 is not a float.
  const VecI exponent = (VecI)shifted - (VecI)Set(kRound);
  const VecI half = exponent >> 1;
  p = p * (VecF)((half + 127) << 23) * (VecF)((exponent - half + 127) << 23);
#endif
  return underflow ? VecF{} : p;
}

}  // namespace infllm::kernels::INFLLM_ISA
