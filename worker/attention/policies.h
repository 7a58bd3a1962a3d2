// The implementations behind NewAttentionPolicy.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "worker/attention/attention_policy.h"
#include "worker/attention/rope.h"

namespace infllm::worker {

// What every policy knows. `model`, `options` are validated.
struct PolicyContext {
  ModelConfig model;
  AttentionOptions options;
  kernels::DType kv_dtype;
  memstore::Fingerprint fingerprint;
  kernels::Backend* backend;     // not owned
  memstore::MemoryStore* store;  // not owned; may be null but for infllm
  Rope rope;
  float scale;                // 1 / sqrt(head_dim)
  kernels::Buffer far_angle;  // one rope row: the angle of every query towards far keys
};

// full, streaming-llm, lm-infinite: a window and perhaps sinks; what leaves both is gone.
absl::StatusOr<std::unique_ptr<AttentionState>> NewWindowedState(const PolicyContext& context);
// infllm: what leaves the window becomes memory blocks.
absl::StatusOr<std::unique_ptr<AttentionState>> NewInfLlmState(const PolicyContext& context);

}  // namespace infllm::worker
