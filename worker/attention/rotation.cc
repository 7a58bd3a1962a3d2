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

absl::StatusOr<const float*> RopeRows(kernels::Backend& backend, const Rope& rope,
                                      int64_t first_position, int64_t tokens, RopeTable& table) {
  const int64_t dim = rope.head_dim();
  const int64_t offset = first_position - table.first_position;
  if (table.rope_id == rope.id() && offset >= 0 && offset + tokens <= table.tokens) {
    return table.rows.as<float>() + offset * dim;
  }
  const size_t floats = static_cast<size_t>(tokens * dim);
  table.rope_id = 0;  // whatever fails below, the old rows are gone
  INFLLM_RETURN_IF_ERROR(Reserve(backend, floats * sizeof(float), table.rows));
  if (backend.host_accessible()) {
    rope.Fill(first_position, {table.rows.as<float>(), floats});
  } else {
    std::vector<float> rows(floats);
    rope.Fill(first_position, rows);
    INFLLM_RETURN_IF_ERROR(backend.Upload(table.rows.data(), rows.data(), floats * sizeof(float)));
  }
  table.rope_id = rope.id();
  table.first_position = first_position;
  table.tokens = tokens;
  return table.rows.as<float>();
}

absl::Status RotateInput(kernels::Backend& backend, const Rope& rope, const float* far_angle,
                         int64_t q_heads, int64_t kv_heads, const AttentionInput& input,
                         AttentionScratch& scratch) {
  const int64_t dim = rope.head_dim();
  const size_t head_bytes = size_t(input.tokens * dim) * sizeof(float);
  INFLLM_RETURN_IF_ERROR(Reserve(backend, head_bytes * size_t(q_heads), scratch.q_near));
  INFLLM_RETURN_IF_ERROR(Reserve(backend, head_bytes * size_t(kv_heads), scratch.k_near));
  INFLLM_ASSIGN_OR_RETURN(const float* table, RopeRows(backend, rope, input.first_position,
                                                       input.tokens, scratch.rope));
  INFLLM_RETURN_IF_ERROR(backend.Rope({.x = input.q,
                                       .table = table,
                                       .y = scratch.q_near.as<float>(),
                                       .rows = input.tokens,
                                       .heads = q_heads,
                                       .head_dim = dim}));
  INFLLM_RETURN_IF_ERROR(backend.Rope({.x = input.k,
                                       .table = table,
                                       .y = scratch.k_near.as<float>(),
                                       .rows = input.tokens,
                                       .heads = kv_heads,
                                       .head_dim = dim}));
  if (far_angle == nullptr) return absl::OkStatus();
  INFLLM_RETURN_IF_ERROR(Reserve(backend, head_bytes * size_t(q_heads), scratch.q_far));
  return backend.Rope({.x = input.q,
                       .table = far_angle,
                       .y = scratch.q_far.as<float>(),
                       .rows = input.tokens,
                       .heads = q_heads,
                       .head_dim = dim,
                       .table_step = 0});
}

}  // namespace infllm::worker
