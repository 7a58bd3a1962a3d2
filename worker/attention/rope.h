#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "worker/attention/attention_options.h"
#include "worker/model/model_config.h"

namespace infllm::worker {

// The angles of the rotary embedding under a scaling: position p turns pair i by
// p / linear_factor * base^(-2i/D). Immutable, thread-safe.
// Angles are computed in double, because positions here reach tens of millions.
class Rope {
 public:
  Rope(const ModelConfig& model, const AttentionOptions& options);

  // Rows of kernels::RotateAndStoreArgs::angles for positions first, first + 1, ...
  // REQUIRES: rows.size() is a multiple of the head dim.
  void Fill(int64_t first_position, std::span<float> rows) const;

 private:
  std::vector<double> inverse_frequency_;  // [head_dim / 2], per unit of position
};

}  // namespace infllm::worker
