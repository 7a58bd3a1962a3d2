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

  // Differs between any two objects of the process: identifies cached rows.
  uint64_t id() const { return id_; }
  int64_t head_dim() const { return 2 * static_cast<int64_t>(inverse_frequency_.size()); }
  // Rows of kernels::RotateAndStoreArgs::angles for positions first, first + 1, ...
  // REQUIRES: rows.size() is a multiple of head_dim().
  void Fill(int64_t first_position, std::span<float> rows) const;

 private:
  uint64_t id_;
  std::vector<double> inverse_frequency_;  // [head_dim / 2], per unit of position
};

}  // namespace infllm::worker
