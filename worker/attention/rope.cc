#include "worker/attention/rope.h"

#include <cmath>

namespace infllm::worker {

Rope::Rope(const ModelConfig& model, const AttentionOptions& options) {
  const double dim = static_cast<double>(model.head_dim);
  double base = model.rope_theta;
  double factor = model.rope_linear_factor;
  if (options.rope_scaling == RopeScaling::kLinear) factor *= options.rope_factor;
  if (options.rope_scaling == RopeScaling::kNtk) {
    base *= std::pow(options.rope_factor, dim / (dim - 2));
  }
  for (int64_t i = 0; i < model.head_dim / 2; ++i) {
    inverse_frequency_.push_back(std::pow(base, -2.0 * static_cast<double>(i) / dim) / factor);
  }
}

void Rope::Fill(int64_t first_position, std::span<float> rows) const {
  const size_t half = inverse_frequency_.size();
  for (size_t row = 0; row < rows.size() / (2 * half); ++row) {
    float* out = rows.data() + row * 2 * half;
    const double position = static_cast<double>(first_position + static_cast<int64_t>(row));
    for (size_t i = 0; i < half; ++i) {
      const double angle = position * inverse_frequency_[i];
      out[i] = static_cast<float>(std::cos(angle));
      out[half + i] = static_cast<float>(std::sin(angle));
    }
  }
}

}  // namespace infllm::worker
