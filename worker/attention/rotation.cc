#include "worker/attention/rotation.h"

#include <vector>

#include "kernels/core/status_macros.h"

namespace infllm::worker {

absl::Status Reserve(kernels::Backend& backend, size_t bytes, kernels::Buffer& buffer) {
  if (buffer.size_bytes() >= bytes) return absl::OkStatus();
  buffer = kernels::Buffer();  // free first: the two need not fit at once
  INFLLM_ASSIGN_OR_RETURN(buffer, backend.Allocate(bytes));
  return absl::OkStatus();
}

absl::Status RotateInput(kernels::Backend& backend, const Rope& rope, const float* far_angle,
                         int64_t q_heads, int64_t kv_heads, const AttentionInput& input,
                         AttentionScratch& scratch) {
  const int64_t dim = rope.head_dim();
  const size_t table_bytes = size_t(input.tokens * dim) * sizeof(float);
  INFLLM_RETURN_IF_ERROR(Reserve(backend, table_bytes * size_t(q_heads), scratch.q_near));
  INFLLM_RETURN_IF_ERROR(Reserve(backend, table_bytes * size_t(kv_heads), scratch.k_near));
  if (scratch.rope_id != rope.id() || scratch.rope_position != input.first_position ||
      scratch.rope_tokens != input.tokens) {
    INFLLM_RETURN_IF_ERROR(Reserve(backend, table_bytes, scratch.rope));
    if (backend.host_accessible()) {
      rope.Fill(input.first_position, {scratch.rope.as<float>(), size_t(input.tokens * dim)});
    } else {
      std::vector<float> table(size_t(input.tokens * dim));
      rope.Fill(input.first_position, table);
      INFLLM_RETURN_IF_ERROR(backend.Upload(scratch.rope.data(), table.data(), table_bytes));
    }
    scratch.rope_id = rope.id();
    scratch.rope_position = input.first_position;
    scratch.rope_tokens = input.tokens;
  }
  INFLLM_RETURN_IF_ERROR(backend.Rope({.x = input.q,
                                       .table = scratch.rope.as<float>(),
                                       .y = scratch.q_near.as<float>(),
                                       .rows = input.tokens,
                                       .heads = q_heads,
                                       .head_dim = dim}));
  INFLLM_RETURN_IF_ERROR(backend.Rope({.x = input.k,
                                       .table = scratch.rope.as<float>(),
                                       .y = scratch.k_near.as<float>(),
                                       .rows = input.tokens,
                                       .heads = kv_heads,
                                       .head_dim = dim}));
  if (far_angle == nullptr) return absl::OkStatus();
  INFLLM_RETURN_IF_ERROR(Reserve(backend, table_bytes * size_t(q_heads), scratch.q_far));
  return backend.Rope({.x = input.q,
                       .table = far_angle,
                       .y = scratch.q_far.as<float>(),
                       .rows = input.tokens,
                       .heads = q_heads,
                       .head_dim = dim,
                       .table_step = 0});
}

}  // namespace infllm::worker
