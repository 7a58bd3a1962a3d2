#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "memstore/block.h"
#include "worker/model/model_config.h"
#include "worker/model/safetensors.h"
#include "worker/tokenizer/tokenizer.h"
#include "worker/transformer/weights.h"

namespace infllm::worker {

// A model directory, ready to run. Immutable, thread-safe.
struct LoadedModel {
  ModelConfig config;
  std::unique_ptr<ModelFiles> files;  // the embedding is read from its mapping
  std::unique_ptr<DecoderWeights> weights;
  std::unique_ptr<Tokenizer> tokenizer;  // null if the directory has none: ids only
  bool add_bos = false;                  // texts begin with BOS
  memstore::Fingerprint fingerprint;

  // The text as the model expects a prompt: BOS first, if it has one. REQUIRES: tokenizer.
  std::vector<int32_t> EncodePrompt(std::string_view text) const;
  // Ids that end a generation.
  std::vector<int32_t> StopIds() const;
};

// Loads DIR/config.json, weights and, if there, tokenizer.model and tokenizer_config.json, and
// packs the weights for `backend` in `compute` dtype. Errors name the file.
absl::StatusOr<std::unique_ptr<LoadedModel>> LoadModel(const std::string& directory,
                                                       kernels::Backend& backend,
                                                       kernels::DType compute);

}  // namespace infllm::worker
