#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "worker/attention/attention_policy.h"
#include "worker/attention/shared_scratch.h"
#include "worker/model/model_config.h"
#include "worker/transformer/weights.h"

namespace infllm::worker {

// The layers of a Llama-family decoder, written in backend operations only: all rows of a step, of
// whatever sequences, go through each operation at once. Every call enqueues. Owns the activations:
// one step at a time, so not thread-safe.
class Decoder {
 public:
  // `weights` and `backend` must outlive the object.
  Decoder(const ModelConfig& config, const DecoderWeights& weights, kernels::Backend& backend,
          kernels::Stream stream)
      : config_(config), weights_(weights), backend_(backend), stream_(stream) {}

  // Makes room for the activations of so many rows; `keep_inputs` as for RunLayer.
  absl::Status Reserve(int64_t rows, bool keep_inputs);
  // Begins a step: x becomes the embedding of `tokens`. REQUIRES: they are in the vocabulary, there
  // are as many as reserved rows, and the step before has been waited for.
  absl::Status Embed(std::span<const int32_t> tokens);
  // x after layer `layer`. With keep_inputs x is kept as it was before: see Restore.
  absl::Status RunLayer(int64_t layer, AttentionPolicy& policy, bool keep_inputs);
  // x as it was before `layer`.
  absl::Status Restore(int64_t layer);

  // Rows whose logits are made at a time: vocabularies of 128K would cost gigabytes for a chunk.
  static constexpr int64_t kLogitsRows = 32;
  // The logits [count, vocab] that follow some rows of the step, f32, device memory; overwritten by
  // the next call. index: [count] rows, shared memory; count <= kLogitsRows.
  absl::StatusOr<const float*> Logits(const int32_t* index, int64_t count);

 private:
  float* Kept(int64_t layer) const {
    return kept_.as<float>() + layer * rows_ * config_.hidden_size;
  }

  int64_t qkv_width() const { return (config_.q_heads + 2 * config_.kv_heads) * config_.head_dim; }

  const ModelConfig config_;
  const DecoderWeights& weights_;
  kernels::Backend& backend_;
  const kernels::Stream stream_;
  int64_t rows_ = 0;
  kernels::Buffer embedded_;  // [rows, hidden], shared memory
  kernels::Buffer x_;         // [rows, hidden]: the residual stream
  kernels::Buffer normed_;    // [rows, hidden]
  // [rows, (q_heads + 2 kv_heads) head_dim], then `attended`: [rows, q_heads, head_dim]; both done
  // with, [rows, 2 intermediate].
  kernels::Buffer wide_;
  kernels::Buffer gated_;   // [rows, intermediate]
  kernels::Buffer kept_;    // [layers, rows, hidden]
  kernels::Buffer wanted_;  // [kLogitsRows, hidden]
  kernels::Buffer logits_;  // [kLogitsRows, vocab]
};

}  // namespace infllm::worker
