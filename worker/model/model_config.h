#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace infllm::worker {

// A decoder of the Llama family, as its Hugging Face config.json describes it.
struct ModelConfig {
  std::string model_type;  // "llama", "mistral", "qwen2"
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t layers = 0;
  int64_t q_heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;  // trained length; 0 if the file does not say
  float rms_norm_eps = 0;
  double rope_theta = 10000;
  double rope_linear_factor = 1;  // positions are divided by this (rope_scaling "linear")
  bool tied_embeddings = false;
  bool qkv_bias = false;
  // The model was trained to see only this many tokens, the current one included (Mistral v0.1).
  std::optional<int64_t> sliding_window;
  std::optional<int32_t> bos_id;
  std::vector<int32_t> eos_ids;
};

// Refuses by name every feature that changes the computation and that we do not implement. What
// the file leaves out has the default of transformers 4.46 for its model_type.
//   INVALID_ARGUMENT  malformed JSON, a missing or out-of-range field, an unsupported feature
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json);
// Reads DIR/config.json (NOT_FOUND) and, if there, the token ids of DIR/generation_config.json,
// which go before those of config.json.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& directory);

}  // namespace infllm::worker
