// What all policies do to a layer's projections before anything else: rotate them.
#pragma once

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "worker/attention/attention_policy.h"
#include "worker/attention/rope.h"

namespace infllm::worker {

// Makes `buffer` hold at least `bytes`; contents are lost when it grows.
absl::Status Reserve(kernels::Backend& backend, size_t bytes, kernels::Buffer& buffer);

// Fills scratch.q_near and scratch.k_near with q and k at their own positions and, if `far_angle`
// (one row of a rope table, device memory) is given, scratch.q_far with q at that one angle.
absl::Status RotateInput(kernels::Backend& backend, const Rope& rope, const float* far_angle,
                         int64_t q_heads, int64_t kv_heads, const AttentionInput& input,
                         AttentionScratch& scratch);

}  // namespace infllm::worker
