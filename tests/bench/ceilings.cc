#include "tests/bench/ceilings.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <map>
#include <utility>

#include "kernels/host_memory.h"

namespace infllm::bench {
namespace {

using kernels::Isa;
using kernels::ThreadPool;

constexpr int kTries = 40;  // short ones: on a shared machine only some are undisturbed
constexpr int64_t kFmaRounds = 1 << 15;
constexpr int kChains = 12;  // enough to hide the latency of two units

double Seconds(std::chrono::steady_clock::duration time) {
  return std::chrono::duration<double>(time).count();
}

typedef float Vec4 __attribute__((vector_size(16)));
typedef float Vec8 __attribute__((vector_size(32)));
typedef float Vec16 __attribute__((vector_size(64)));

// kChains independent accumulators, `rounds` times.
template <typename Vec>
[[gnu::always_inline]] inline float FmaChains(int64_t rounds) {
  Vec sums[kChains];
  for (int c = 0; c < kChains; ++c) sums[c] = Vec{} + static_cast<float>(c);
  Vec a = Vec{} + 0.999f, b = Vec{} + 0.5f;
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sums[c] = sums[c] * a + b;
    asm volatile("" : "+x"(a), "+x"(b));  // keeps the loop from being folded
  }
  float total = 0;
  for (int c = 0; c < kChains; ++c) total += sums[c][0];
  return total;
}

#if defined(__x86_64__)
[[gnu::target("avx512f,fma,prefer-vector-width=512")]] float Fma512(int64_t rounds) {
  return FmaChains<Vec16>(rounds);
}
[[gnu::target("avx2,fma")]] float Fma256(int64_t rounds) { return FmaChains<Vec8>(rounds); }
#endif
float Fma128(int64_t rounds) { return FmaChains<Vec4>(rounds); }

#if defined(__x86_64__)
[[gnu::target("avx512f,avx512bf16,prefer-vector-width=512")]] float Bf16Chains(int64_t rounds) {
  __m512 sums[kChains];
  for (int c = 0; c < kChains; ++c) sums[c] = _mm512_setzero_ps();
  __m512bh a = (__m512bh)_mm512_set1_epi32(0x3c003c00);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) sums[c] = _mm512_dpbf16_ps(sums[c], a, a);
    asm volatile("" : "+v"(a));
  }
  float total = 0;
  for (int c = 0; c < kChains; ++c) total += sums[c][0];
  return total;
}

// Tiles of 16 rows of 16 sums, a step of 32 values each, which all are zero.
constexpr double kTileFlops = 2.0 * 16 * 16 * 32;
constexpr int kTileChains = 4;
float TileChains(int64_t rounds) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16};
  } config;
  asm volatile("ldtilecfg %0" ::"m"(config));  // zeroes the tiles, too
  for (int64_t i = 0; i < rounds; ++i) {
    asm volatile(
        "tdpbf16ps %tmm5, %tmm4, %tmm0\n\ttdpbf16ps %tmm5, %tmm4, %tmm1\n\t"
        "tdpbf16ps %tmm5, %tmm4, %tmm2\n\ttdpbf16ps %tmm5, %tmm4, %tmm3");
  }
  asm volatile("tilerelease");
  return 0;
}
#endif

// The best rate of several tries of `run` on all threads, which does `flops` per round.
double PeakFlops(ThreadPool& pool, float (*run)(int64_t), double flops) {
  double best = 0;
  for (int i = 0; i < kTries; ++i) {
    std::atomic<float> sink = 0;
    const int64_t items = pool.threads() * 4;
    const auto start = std::chrono::steady_clock::now();
    pool.ParallelFor(items, 1, [&](int64_t, int64_t, int) { sink = run(kFmaRounds); });
    const double seconds = Seconds(std::chrono::steady_clock::now() - start);
    best = std::max(best, flops * kFmaRounds * items / seconds);
  }
  return best;
}

}  // namespace

double FmaPeakFlops(ThreadPool& pool, Isa isa) {
  static std::map<std::pair<Isa, int>, double> measured;
  double& best = measured[{isa, pool.threads()}];
  if (best > 0) return best;
  int lanes = 4;
  float (*run)(int64_t) = Fma128;
#if defined(__x86_64__)
  if (isa == Isa::kAvx2) {
    lanes = 8;
    run = Fma256;
  } else if (isa != Isa::kGeneric) {
    lanes = 16;
    run = Fma512;
  }
#endif
  return best = PeakFlops(pool, run, 2.0 * lanes * kChains);
}

double Bf16PeakFlops(ThreadPool& pool, Isa isa) {
  static std::map<std::pair<Isa, int>, double> measured;
  double& best = measured[{isa, pool.threads()}];
#if defined(__x86_64__)
  if (best == 0 && isa == Isa::kAvx512Bf16) {
    best = PeakFlops(pool, Bf16Chains, 4.0 * 16 * kChains);
  }
  if (best == 0 && isa == Isa::kAmx) best = PeakFlops(pool, TileChains, kTileFlops * kTileChains);
#endif
  return best;
}

double ReadBandwidth(ThreadPool& pool) {
  static std::map<int, double> measured;
  double& best = measured[pool.threads()];
  if (best == 0) {
    best = ReadBandwidthNow(
        pool, kTries, [] { return Seconds(std::chrono::steady_clock::now().time_since_epoch()); });
  }
  return best;
}

double ReadBandwidthNow(ThreadPool& pool, int tries, absl::FunctionRef<double()> clock) {
  typedef uint64_t Vec __attribute__((vector_size(16)));
  constexpr int64_t kVecs = int64_t{16} << 20;  // 256 MiB, far larger than the caches
  constexpr int64_t kGrain = 64 << 10;
  // A core reads several streams at once 1.4 times as fast as one.
  constexpr int kStreams = 4;
  constexpr int kTurn = 8;  // of one stream: two cache lines
  static const kernels::Buffer data = [] {
    kernels::Buffer buffer = kernels::AllocateHost(kVecs * sizeof(Vec)).value();
    std::memset(buffer.data(), 1, buffer.size_bytes());
    return buffer;
  }();
  double best = 0;
  for (int i = 0; i < tries; ++i) {
    std::atomic<uint64_t> sink = 0;
    const double start = clock();
    pool.ParallelFor(kVecs, kGrain, [&](int64_t begin, int64_t end, int) {
      const Vec* const from = data.as<Vec>() + begin;
      const int64_t part = (end - begin) / kStreams;
      Vec sums[kStreams] = {};
      for (int64_t v = 0; v < part; v += kTurn) {
#pragma GCC unroll 4
        for (int s = 0; s < kStreams; ++s) {
#pragma GCC unroll 8
          for (int t = 0; t < kTurn; ++t) sums[s] += from[s * part + v + t];
        }
      }
      for (int s = 1; s < kStreams; ++s) sums[0] += sums[s];
      sink += sums[0][0] + sums[0][1];
    });
    best = std::max(best, static_cast<double>(kVecs * sizeof(Vec)) / (clock() - start));
  }
  return best;
}

}  // namespace infllm::bench
