// What the benches of the kernels share.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/core/status_macros.h"

namespace infllm::bench {

inline std::vector<float> Random(int64_t n, uint32_t seed) {
  std::vector<float> x(static_cast<size_t>(n));
  std::minstd_rand random(seed);
  for (float& value : x) value = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
  return x;
}

// REQUIRES: `op` succeeds.
template <typename Op>
double SecondsOf(Op op) {
  const auto start = std::chrono::steady_clock::now();
  INFLLM_CHECK(op().ok());
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Runs `op` in the benchmark's loop. Returns the seconds of the best iteration: other tenants of
// the machine only ever add to a time.
template <typename Op>
double BestSeconds(benchmark::State& state, Op op) {
  using Clock = std::chrono::steady_clock;
  double best = std::numeric_limits<double>::infinity();
  for (auto _ : state) {
    const Clock::time_point start = Clock::now();
    const absl::Status status = op();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
    if (!status.ok()) {
      state.SkipWithError(std::string(status.message()).c_str());
      break;
    }
  }
  return best;
}

}  // namespace infllm::bench
