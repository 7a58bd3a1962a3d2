#include "worker/transformer/transformer.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "worker/attention/rotation.h"

namespace infllm::worker {
namespace {

// Logits of a chunk are made in slices, so that 128K vocabularies do not cost gigabytes.
constexpr int64_t kLogitsRows = 32;

}  // namespace

absl::Status Transformer::Forward(const Pass& pass, AttentionState& state, LogitsVisitor visit) {
  const int64_t rows = static_cast<int64_t>(pass.tokens.size());
  for (size_t i = 0; i < pass.tokens.size(); ++i) {
    if (pass.tokens[i] < 0 || pass.tokens[i] >= config_.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("token ", pass.first_position + static_cast<int64_t>(i), " is ",
                       pass.tokens[i], ", the vocabulary has ids 0 to ", config_.vocab_size - 1));
    }
  }
  auto reserve = [&](int64_t width, kernels::Buffer& buffer) {
    return Reserve(backend_, static_cast<size_t>(rows * width) * sizeof(float), buffer);
  };
  const int64_t q_width = config_.q_heads * config_.head_dim;
  const int64_t kv_width = config_.kv_heads * config_.head_dim;
  INFLLM_RETURN_IF_ERROR(reserve(config_.hidden_size, x_));
  INFLLM_RETURN_IF_ERROR(reserve(config_.hidden_size, normed_));
  INFLLM_RETURN_IF_ERROR(reserve(q_width + 2 * kv_width, qkv_));
  INFLLM_RETURN_IF_ERROR(reserve(q_width, q_));
  INFLLM_RETURN_IF_ERROR(reserve(kv_width, k_));
  INFLLM_RETURN_IF_ERROR(reserve(kv_width, v_));
  INFLLM_RETURN_IF_ERROR(reserve(q_width, attended_));
  INFLLM_RETURN_IF_ERROR(reserve(2 * config_.intermediate_size, gate_up_));
  INFLLM_RETURN_IF_ERROR(reserve(config_.intermediate_size, gated_));

  INFLLM_RETURN_IF_ERROR(Embed(pass.tokens));
  for (int64_t layer = 0; layer < config_.layers; ++layer) {
    if (pass.cancel != nullptr && pass.cancel->load(std::memory_order_relaxed)) {
      return absl::CancelledError("interrupted");
    }
    INFLLM_RETURN_IF_ERROR(RunLayer(layer, pass.first_position, rows, state));
  }
  return Logits(pass.first_logits_row, rows, visit);
}

absl::Status Transformer::Embed(std::span<const int32_t> tokens) {
  const size_t hidden = static_cast<size_t>(config_.hidden_size);
  if (backend_.host_accessible()) {
    for (size_t i = 0; i < tokens.size(); ++i) {
      weights_.embedding.EmbedRow(tokens[i], x_.as<float>() + i * hidden);
    }
    return absl::OkStatus();
  }
  std::vector<float> rows(tokens.size() * hidden);
  for (size_t i = 0; i < tokens.size(); ++i) {
    weights_.embedding.EmbedRow(tokens[i], rows.data() + i * hidden);
  }
  return backend_.Upload(x_.data(), rows.data(), rows.size() * sizeof(float));
}

absl::Status Transformer::RunLayer(int64_t layer, int64_t first_position, int64_t rows,
                                   AttentionState& state) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const int64_t hidden = config_.hidden_size;
  const int64_t q_width = config_.q_heads * config_.head_dim;
  const int64_t kv_width = config_.kv_heads * config_.head_dim;
  const int64_t qkv_width = q_width + 2 * kv_width;
  float* x = x_.as<float>();
  float* normed = normed_.as<float>();

  auto norm = [&](const kernels::Buffer& weight) {
    return backend_.RmsNorm({.x = x,
                             .weight = weight.as<float>(),
                             .y = normed,
                             .rows = rows,
                             .width = hidden,
                             .eps = config_.rms_norm_eps});
  };
  auto split = [&](int64_t column, int64_t width, const kernels::Buffer& to) {
    return backend_.CopyColumns(qkv_.as<float>(), qkv_width, column, to.as<float>(), width, 0, rows,
                                width);
  };

  INFLLM_RETURN_IF_ERROR(norm(w.attention_norm));
  INFLLM_RETURN_IF_ERROR(backend_.Linear({.x = normed,
                                          .weight = w.qkv.get(),
                                          .bias = w.qkv_bias.as<float>(),
                                          .y = qkv_.as<float>(),
                                          .rows = rows}));
  INFLLM_RETURN_IF_ERROR(split(0, q_width, q_));
  INFLLM_RETURN_IF_ERROR(split(q_width, kv_width, k_));
  INFLLM_RETURN_IF_ERROR(split(q_width + kv_width, kv_width, v_));
  INFLLM_RETURN_IF_ERROR(state.Attend({.layer = layer,
                                       .first_position = first_position,
                                       .tokens = rows,
                                       .q = q_.as<float>(),
                                       .k = k_.as<float>(),
                                       .v = v_.as<float>(),
                                       .out = attended_.as<float>()},
                                      attention_scratch_));
  INFLLM_RETURN_IF_ERROR(backend_.Linear(
      {.x = attended_.as<float>(), .weight = w.o.get(), .y = x, .rows = rows, .accumulate = true}));

  INFLLM_RETURN_IF_ERROR(norm(w.mlp_norm));
  INFLLM_RETURN_IF_ERROR(backend_.Linear(
      {.x = normed, .weight = w.gate_up.get(), .y = gate_up_.as<float>(), .rows = rows}));
  INFLLM_RETURN_IF_ERROR(
      backend_.SiluMul(gate_up_.as<float>(), gated_.as<float>(), rows, config_.intermediate_size));
  return backend_.Linear(
      {.x = gated_.as<float>(), .weight = w.down.get(), .y = x, .rows = rows, .accumulate = true});
}

absl::Status Transformer::Logits(int64_t first_row, int64_t rows, LogitsVisitor visit) {
  const int64_t vocab = config_.vocab_size;
  std::vector<float> host;
  for (int64_t begin = first_row; begin < rows; begin += kLogitsRows) {
    const int64_t count = std::min(kLogitsRows, rows - begin);
    const size_t bytes = static_cast<size_t>(count * vocab) * sizeof(float);
    INFLLM_RETURN_IF_ERROR(Reserve(backend_, bytes, logits_));
    INFLLM_RETURN_IF_ERROR(backend_.RmsNorm({.x = x_.as<float>() + begin * config_.hidden_size,
                                             .weight = weights_.final_norm.as<float>(),
                                             .y = normed_.as<float>(),
                                             .rows = count,
                                             .width = config_.hidden_size,
                                             .eps = config_.rms_norm_eps}));
    INFLLM_RETURN_IF_ERROR(backend_.Linear({.x = normed_.as<float>(),
                                            .weight = weights_.lm_head.get(),
                                            .y = logits_.as<float>(),
                                            .rows = count}));
    const float* logits = logits_.as<float>();
    if (!backend_.host_accessible()) {
      host.resize(static_cast<size_t>(count * vocab));
      INFLLM_RETURN_IF_ERROR(backend_.Download(host.data(), logits, bytes));
      logits = host.data();
    }
    for (int64_t row = 0; row < count; ++row) {
      visit(begin + row, {logits + row * vocab, static_cast<size_t>(vocab)});
    }
  }
  return absl::OkStatus();
}

}  // namespace infllm::worker
