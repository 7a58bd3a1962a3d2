// What all policies do to a layer's projections before anything else: rotate them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "worker/attention/attention_policy.h"
#include "worker/attention/rope.h"

namespace infllm::worker {

// Makes `buffer` hold at least `bytes`; contents are lost when it grows.
absl::Status Reserve(kernels::Backend& backend, size_t bytes, kernels::Buffer& buffer);

// The rows of `rope` for positions first, ..., first + tokens - 1, device memory. They are computed
// only if `table` does not hold them yet: layers of one pass share them, often passes too.
absl::StatusOr<const float*> RopeRows(kernels::Backend& backend, const Rope& rope,
                                      int64_t first_position, int64_t tokens, RopeTable& table);

// Fills scratch.q_near and scratch.k_near with q and k at their own positions and, if `far_angle`
// (one row of a rope table, device memory) is given, scratch.q_far with q at that one angle.
absl::Status RotateInput(kernels::Backend& backend, const Rope& rope, const float* far_angle,
                         int64_t q_heads, int64_t kv_heads, const AttentionInput& input,
                         AttentionScratch& scratch);

}  // namespace infllm::worker
