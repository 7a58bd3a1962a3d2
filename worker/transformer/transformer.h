#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "kernels/backend.h"
#include "worker/attention/attention_policy.h"
#include "worker/model/model_config.h"
#include "worker/transformer/weights.h"

namespace infllm::worker {

// Sees the logits [vocab_size] that follow token `row` of a forward pass; valid during the call.
using LogitsVisitor = absl::FunctionRef<void(int64_t row, std::span<const float> logits)>;

// The forward pass of a Llama-family decoder, written in backend operations only. Owns the
// activation buffers: one pass at a time, so not thread-safe.
class Transformer {
 public:
  // `weights` and `backend` must outlive the object.
  Transformer(const ModelConfig& config, const DecoderWeights& weights, kernels::Backend& backend)
      : config_(config), weights_(weights), backend_(backend) {}

  struct Pass {
    std::span<const int32_t> tokens;
    int64_t first_position = 0;    // tokens that `state` has seen
    int64_t first_logits_row = 0;  // logits are computed for this row of `tokens` and later ones
    const std::atomic<bool>* cancel = nullptr;  // looked at between layers; may be null
  };
  // Runs the tokens through all layers, appending them to `state`.
  //   INVALID_ARGUMENT  a token is not in the vocabulary (checked first: the state is unchanged)
  //   CANCELLED         *cancel became true; the state is then unusable
  // Other errors are the backend's and the memory store's; the state is then unusable.
  absl::Status Forward(const Pass& pass, AttentionState& state, LogitsVisitor visit);

 private:
  absl::Status Embed(std::span<const int32_t> tokens);
  absl::Status RunLayer(int64_t layer, int64_t first_position, int64_t rows, AttentionState& state);
  absl::Status Logits(int64_t first_row, int64_t rows, LogitsVisitor visit);

  const ModelConfig config_;
  const DecoderWeights& weights_;
  kernels::Backend& backend_;
  AttentionScratch attention_scratch_;
  kernels::Buffer x_;                     // [rows, hidden]: the residual stream
  kernels::Buffer normed_;                // [rows, hidden]
  kernels::Buffer qkv_;                   // [rows, (q_heads + 2 kv_heads) head_dim]
  kernels::Buffer q_, k_, v_, attended_;  // [rows, heads, head_dim]
  kernels::Buffer gate_up_;               // [rows, 2 intermediate]
  kernels::Buffer gated_;                 // [rows, intermediate]
  kernels::Buffer logits_;                // [kLogitsRows, vocab]
};

}  // namespace infllm::worker
