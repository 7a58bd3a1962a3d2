#include "worker/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"

namespace infllm::worker {

absl::Status SamplingOptions::Validate() const {
  if (!(temperature >= 0 && temperature <= 100)) {
    return absl::InvalidArgumentError(
        absl::StrCat("temperature is ", temperature, ", must be in [0, 100]"));
  }
  if (top_k < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("top-k-sampling is ", top_k, ", must be 0 (all tokens) or more"));
  }
  if (!(top_p > 0 && top_p <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("top-p is ", top_p, ", must be in (0, 1]"));
  }
  return absl::OkStatus();
}

int32_t Argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

double NegativeLogLikelihood(std::span<const float> logits, int32_t token) {
  if (token < 0 || static_cast<size_t>(token) >= logits.size()) {
    return std::numeric_limits<double>::infinity();
  }
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - top);
  return std::log(sum) + (top - logits[static_cast<size_t>(token)]);
}

int32_t Sampler::Sample(std::span<const float> logits) {
  if (options_.temperature == 0) return Argmax(logits);
  order_.resize(logits.size());
  std::iota(order_.begin(), order_.end(), 0);
  const auto likelier = [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  if (options_.top_k > 0 && static_cast<size_t>(options_.top_k) < order_.size()) {
    std::nth_element(order_.begin(), order_.begin() + options_.top_k, order_.end(), likelier);
    order_.resize(static_cast<size_t>(options_.top_k));
  }
  std::sort(order_.begin(), order_.end(), likelier);

  const double top = logits[order_[0]];
  weights_.clear();
  double total = 0;
  for (const int32_t token : order_) {
    weights_.push_back(std::exp((logits[token] - top) / options_.temperature));
    total += weights_.back();
  }
  double kept = 0;
  size_t count = 0;
  while (count < order_.size() && (count == 0 || kept < options_.top_p * total)) {
    kept += weights_[count++];
  }
  // std::uniform_real_distribution is not the same everywhere; 53 random bits are.
  double draw = static_cast<double>(random_() >> 11) * 0x1p-53 * kept;
  for (size_t i = 0; i + 1 < count; ++i) {
    draw -= weights_[i];
    if (draw < 0) return order_[i];
  }
  return order_[count - 1];
}

}  // namespace infllm::worker
