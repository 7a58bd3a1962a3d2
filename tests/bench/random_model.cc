#include "tests/bench/random_model.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/dtype.h"
#include "kernels/core/status_macros.h"

namespace infllm::bench {
namespace {

struct Tensor {
  std::string name;
  std::vector<int64_t> shape;
  int64_t elements() const { return shape.size() == 2 ? shape[0] * shape[1] : shape[0]; }
};

std::vector<Tensor> Tensors(const worker::ModelConfig& config) {
  const int64_t hidden = config.hidden_size, mlp = config.intermediate_size;
  const int64_t q = config.q_heads * config.head_dim, kv = config.kv_heads * config.head_dim;
  std::vector<Tensor> tensors = {{"model.embed_tokens.weight", {config.vocab_size, hidden}}};
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const auto add = [&](const char* part, std::vector<int64_t> shape) {
      tensors.push_back({absl::StrCat("model.layers.", layer, ".", part), std::move(shape)});
    };
    add("input_layernorm.weight", {hidden});
    add("self_attn.q_proj.weight", {q, hidden});
    add("self_attn.k_proj.weight", {kv, hidden});
    add("self_attn.v_proj.weight", {kv, hidden});
    add("self_attn.o_proj.weight", {hidden, q});
    add("post_attention_layernorm.weight", {hidden});
    add("mlp.gate_proj.weight", {mlp, hidden});
    add("mlp.up_proj.weight", {mlp, hidden});
    add("mlp.down_proj.weight", {hidden, mlp});
  }
  tensors.push_back({"model.norm.weight", {hidden}});
  tensors.push_back({"lm_head.weight", {config.vocab_size, hidden}});
  return tensors;
}

// Norms are one. Matrices keep the variance of what they multiply: uniform of variance 1/in.
void Fill(const Tensor& tensor, uint64_t& state, std::vector<uint16_t>& out) {
  out.resize(static_cast<size_t>(tensor.elements()));
  const float most =
      tensor.shape.size() == 2 ? std::sqrt(3.0f / static_cast<float>(tensor.shape[1])) : 0;
  for (uint16_t& value : out) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const float unit = static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31f;
    value = std::bit_cast<uint16_t>(kernels::BF16(most > 0 ? most * unit : 1.0f));
  }
}

nlohmann::json ConfigJson(const worker::ModelConfig& config) {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"hidden_act", "silu"},
          {"hidden_size", config.hidden_size},
          {"intermediate_size", config.intermediate_size},
          {"num_hidden_layers", config.layers},
          {"num_attention_heads", config.q_heads},
          {"num_key_value_heads", config.kv_heads},
          {"head_dim", config.head_dim},
          {"vocab_size", config.vocab_size},
          {"max_position_embeddings", 4096},
          {"rms_norm_eps", config.rms_norm_eps},
          {"rope_theta", config.rope_theta},
          {"bos_token_id", 1},
          {"eos_token_id", 2},
          {"tie_word_embeddings", false}};
}

}  // namespace

absl::Status WriteRandomModel(const worker::ModelConfig& config, const std::string& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  std::ofstream(directory + "/config.json") << ConfigJson(config).dump(2) << "\n";

  const std::vector<Tensor> tensors = Tensors(config);
  nlohmann::ordered_json header;
  int64_t end = 0;
  for (const Tensor& tensor : tensors) {
    const int64_t begin = std::exchange(end, end + 2 * tensor.elements());
    header[tensor.name] = {
        {"dtype", "BF16"}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::ofstream file(directory + "/model.safetensors", std::ios::binary);
  const uint64_t size = text.size();
  file.write(reinterpret_cast<const char*>(&size), sizeof(size));
  file << text;
  std::vector<uint16_t> values;
  uint64_t state = 1;
  for (const Tensor& tensor : tensors) {
    Fill(tensor, state, values);
    file.write(reinterpret_cast<const char*>(values.data()),
               static_cast<std::streamsize>(values.size() * sizeof(uint16_t)));
  }
  file.close();
  if (file) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("cannot write ", end, " bytes to ", directory, "/model.safetensors"));
}

TemporaryDirectory::TemporaryDirectory() {
  path_ = (std::filesystem::temp_directory_path() / "infllm-bench-XXXXXX").string();
  INFLLM_CHECK(::mkdtemp(path_.data()) != nullptr);
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

}  // namespace infllm::bench
