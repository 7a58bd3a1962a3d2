#include "worker/engine/loaded_model.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "worker/model/json_depth.h"
#include "worker/model/read_file.h"

namespace infllm::worker {
namespace {

constexpr size_t kMaxTokenizerConfigBytes = 16 << 20;

// SentencePiece models put BOS before a text unless tokenizer_config.json says otherwise.
absl::StatusOr<bool> ReadAddBos(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadFile(path, kMaxTokenizerConfigBytes);
  if (absl::IsNotFound(text.status())) return true;
  INFLLM_RETURN_IF_ERROR(text.status());
  if (const absl::Status depth = CheckJsonDepth(*text); !depth.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", depth.message()));
  }
  const auto json = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a JSON object"));
  }
  const auto add_bos = json.find("add_bos_token");
  return add_bos == json.end() || !add_bos->is_boolean() || add_bos->get<bool>();
}

}  // namespace

absl::StatusOr<std::unique_ptr<LoadedModel>> LoadModel(const std::string& directory,
                                                       kernels::Backend& backend,
                                                       kernels::DType compute) {
  auto model = std::make_unique<LoadedModel>();
  INFLLM_ASSIGN_OR_RETURN(model->config, LoadModelConfig(directory));
  INFLLM_ASSIGN_OR_RETURN(model->files, ModelFiles::Open(directory));
  const std::string tokenizer_path = directory + "/tokenizer.model";
  if (std::filesystem::exists(tokenizer_path)) {
    INFLLM_ASSIGN_OR_RETURN(model->tokenizer, LoadSentencePiece(tokenizer_path));
    if (model->tokenizer->vocab_size() > model->config.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat(tokenizer_path, " has ", model->tokenizer->vocab_size(),
                       " pieces, but vocab_size in config.json is ", model->config.vocab_size));
    }
    INFLLM_ASSIGN_OR_RETURN(const bool add_bos, ReadAddBos(directory + "/tokenizer_config.json"));
    model->add_bos = add_bos && model->tokenizer->bos_id() >= 0;
  }
  INFLLM_ASSIGN_OR_RETURN(model->weights,
                          LoadDecoderWeights(model->config, *model->files, backend, compute));
  model->fingerprint = model->files->fingerprint();
  model->files->DropPages();
  return model;
}

std::vector<int32_t> LoadedModel::EncodePrompt(std::string_view text) const {
  std::vector<int32_t> ids = tokenizer->Encode(text);
  if (add_bos) ids.insert(ids.begin(), tokenizer->bos_id());
  return ids;
}

std::vector<int32_t> LoadedModel::StopIds() const {
  std::vector<int32_t> ids = config.eos_ids;
  if (ids.empty() && tokenizer != nullptr && tokenizer->eos_id() >= 0) {
    ids.push_back(tokenizer->eos_id());
  }
  return ids;
}

}  // namespace infllm::worker
