#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "absl/status/status.h"

namespace infllm::worker {

struct SamplingOptions {
  double temperature = 0;  // 0 is greedy
  int64_t top_k = 0;       // sample among the k likeliest tokens; 0 is all
  double top_p = 1;        // ... among the fewest whose probability sums to at least top_p
  uint64_t seed = 0;

  // INVALID_ARGUMENT names the parameter, its value and the limit.
  absl::Status Validate() const;
};

// The likeliest token; ties go to the smaller id. REQUIRES: !logits.empty().
int32_t Argmax(std::span<const float> logits);

// -ln softmax(logits)[token], in double; infinite for a token that has no logit.
double NegativeLogLikelihood(std::span<const float> logits, int32_t token);

// Chooses tokens from logits. The same seed and logits give the same tokens on every machine.
// Not thread-safe.
class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) {}
  int32_t Sample(std::span<const float> logits);

 private:
  const SamplingOptions options_;
  std::mt19937_64 random_;
  std::vector<int32_t> order_;  // reused between calls
  std::vector<double> weights_;
};

}  // namespace infllm::worker
