#pragma once

#include <cstdint>
#include <random>

#include "absl/status/status.h"

namespace infllm::worker {

// How a token is chosen from logits; kernels/ops/sample.h says exactly.
struct SamplingOptions {
  double temperature = 0;  // 0 is greedy
  int64_t top_k = 0;       // sample among the k likeliest tokens; 0 is all
  double top_p = 1;        // ... among the fewest whose probability sums to at least top_p
  uint64_t seed = 0;

  // INVALID_ARGUMENT names the parameter, its value and the limit.
  absl::Status Validate() const;
};

// The random numbers behind the tokens of one sequence: the same for the same seed on every
// machine. Not thread-safe.
class Draws {
 public:
  explicit Draws(uint64_t seed) : random_(seed) {}
  // In [0, 1). std::uniform_real_distribution is not the same everywhere; 53 random bits are.
  double Next() { return static_cast<double>(random_() >> 11) * 0x1p-53; }

 private:
  std::mt19937_64 random_;
};

}  // namespace infllm::worker
