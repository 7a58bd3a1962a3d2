#include "worker/transformer/decoder.h"

#include <algorithm>

#include "kernels/core/status_macros.h"

namespace infllm::worker {

absl::Status Decoder::Reserve(int64_t rows, bool keep_inputs) {
  rows_ = rows;
  const auto reserve = [&](int64_t count, int64_t width, kernels::Buffer& buffer) {
    return worker::Reserve(backend_, static_cast<size_t>(count * width) * sizeof(float), buffer);
  };
  const int64_t attended_width = config_.q_heads * config_.head_dim;
  const size_t embedded_bytes = static_cast<size_t>(rows * config_.hidden_size) * sizeof(float);
  if (embedded_.size_bytes() < embedded_bytes) {
    embedded_ = kernels::Buffer();
    INFLLM_ASSIGN_OR_RETURN(embedded_, backend_.AllocateHost(embedded_bytes));
  }
  INFLLM_RETURN_IF_ERROR(reserve(rows, config_.hidden_size, x_));
  INFLLM_RETURN_IF_ERROR(reserve(rows, config_.hidden_size, normed_));
  INFLLM_RETURN_IF_ERROR(
      reserve(rows, std::max(qkv_width() + attended_width, 2 * config_.intermediate_size), wide_));
  INFLLM_RETURN_IF_ERROR(reserve(rows, config_.intermediate_size, gated_));
  if (keep_inputs) {
    INFLLM_RETURN_IF_ERROR(reserve(config_.layers * rows, config_.hidden_size, kept_));
  }
  INFLLM_RETURN_IF_ERROR(reserve(kLogitsRows, config_.hidden_size, wanted_));
  return reserve(kLogitsRows, config_.vocab_size, logits_);
}

absl::Status Decoder::Embed(std::span<const int32_t> tokens) {
  const auto hidden = static_cast<size_t>(config_.hidden_size);
  for (size_t i = 0; i < tokens.size(); ++i) {
    weights_.embedding.EmbedRow(tokens[i], embedded_.as<float>() + i * hidden);
  }
  return backend_.Copy(stream_, x_.data(), embedded_.data(),
                       tokens.size() * hidden * sizeof(float));
}

absl::Status Decoder::RunLayer(int64_t layer, AttentionPolicy& policy, bool keep_inputs) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  if (keep_inputs) {
    INFLLM_RETURN_IF_ERROR(
        backend_.Copy(stream_, Kept(layer), x_.data(),
                      static_cast<size_t>(rows_ * config_.hidden_size) * sizeof(float)));
  }
  const auto norm = [&](const kernels::Buffer& weight) {
    return backend_.RmsNorm(stream_, {.x = x_.data(),
                                      .weight = weight.as<float>(),
                                      .y = normed_.data(),
                                      .rows = rows_,
                                      .width = config_.hidden_size,
                                      .eps = config_.rms_norm_eps});
  };
  float* const qkv = wide_.as<float>();
  float* const attended = qkv + rows_ * qkv_width();
  float* const gate_up = wide_.as<float>();
  INFLLM_RETURN_IF_ERROR(norm(w.attention_norm));
  INFLLM_RETURN_IF_ERROR(backend_.Linear(stream_, {.x = normed_.data(),
                                                   .weight = w.qkv.packed,
                                                   .bias = w.qkv_bias.as<float>(),
                                                   .y = qkv,
                                                   .rows = rows_}));
  INFLLM_RETURN_IF_ERROR(policy.Attend(layer, qkv, attended));
  INFLLM_RETURN_IF_ERROR(backend_.Linear(
      stream_,
      {.x = attended, .weight = w.o.packed, .y = x_.data(), .rows = rows_, .accumulate = true}));
  INFLLM_RETURN_IF_ERROR(norm(w.mlp_norm));
  INFLLM_RETURN_IF_ERROR(backend_.Linear(
      stream_, {.x = normed_.data(), .weight = w.gate_up.packed, .y = gate_up, .rows = rows_}));
  INFLLM_RETURN_IF_ERROR(backend_.SiluMul(stream_, {.gate_up = gate_up,
                                                    .out = gated_.data(),
                                                    .rows = rows_,
                                                    .width = config_.intermediate_size}));
  return backend_.Linear(stream_, {.x = gated_.data(),
                                   .weight = w.down.packed,
                                   .y = x_.data(),
                                   .rows = rows_,
                                   .accumulate = true});
}

absl::Status Decoder::Restore(int64_t layer) {
  return backend_.Copy(stream_, x_.data(), Kept(layer),
                       static_cast<size_t>(rows_ * config_.hidden_size) * sizeof(float));
}

absl::StatusOr<const float*> Decoder::Logits(const int32_t* index, int64_t count) {
  INFLLM_RETURN_IF_ERROR(backend_.GatherRows(stream_, {.x = x_.data(),
                                                       .index = index,
                                                       .out = wanted_.data(),
                                                       .rows = count,
                                                       .width = config_.hidden_size}));
  INFLLM_RETURN_IF_ERROR(backend_.RmsNorm(stream_, {.x = wanted_.data(),
                                                    .weight = weights_.final_norm.as<float>(),
                                                    .y = wanted_.data(),
                                                    .rows = count,
                                                    .width = config_.hidden_size,
                                                    .eps = config_.rms_norm_eps}));
  INFLLM_RETURN_IF_ERROR(backend_.Linear(stream_, {.x = wanted_.data(),
                                                   .weight = weights_.lm_head.packed,
                                                   .y = logits_.data(),
                                                   .rows = count}));
  return logits_.as<float>();
}

}  // namespace infllm::worker
