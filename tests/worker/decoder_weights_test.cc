#include <bit>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <system_error>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"
#include "worker/model/available_memory.h"
#include "worker/model/model_config.h"
#include "worker/model/safetensors.h"
#include "worker/transformer/weights.h"

namespace infllm::worker {
namespace {

using infllm::testing::StatusIs;
using infllm::testing::TempDir;
using kernels::DType;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using Shape = std::vector<int64_t>;

// Any tensor of a file as floats, whatever its shape.
std::vector<float> ReadTensor(const ModelFiles& files, const std::string& name,
                              const Shape& shape) {
  const TensorView view = files.Get(name, shape).value();
  std::vector<float> out;
  for (size_t at = 0; at < view.data.size(); at += kernels::SizeOf(view.dtype)) {
    uint32_t bits = 0;
    std::memcpy(&bits, view.data.data() + at, kernels::SizeOf(view.dtype));
    out.push_back(view.dtype == DType::kF16    ? kernels::HalfToFloat(static_cast<uint16_t>(bits))
                  : view.dtype == DType::kBF16 ? std::bit_cast<float>(bits << 16)
                                               : std::bit_cast<float>(bits));
  }
  return out;
}

// The matrix that a packed weight stands for: what it makes of the unit vectors.
std::vector<float> Unpack(kernels::Backend& backend, const kernels::Weight& weight) {
  const int64_t in = weight.packed.in_features, out = weight.packed.out_features;
  std::vector<float> identity(static_cast<size_t>(in * in));
  for (int64_t i = 0; i < in; ++i) identity[static_cast<size_t>(i * in + i)] = 1;
  std::vector<float> columns(static_cast<size_t>(in * out));
  EXPECT_OK(backend.Linear(
      kernels::Backend::kMainStream,
      {.x = identity.data(), .weight = weight.packed, .y = columns.data(), .rows = in}));
  std::vector<float> rows(columns.size());
  for (int64_t i = 0; i < in; ++i) {
    for (int64_t o = 0; o < out; ++o) {
      rows[static_cast<size_t>(o * in + i)] = columns[static_cast<size_t>(i * out + o)];
    }
  }
  return rows;
}

std::vector<float> Values(const kernels::Buffer& buffer) {
  const float* data = buffer.as<float>();
  return {data, data + buffer.size_bytes() / sizeof(float)};
}

class LoadFixtureTest : public ::testing::TestWithParam<const char*> {
 protected:
  // The tensors' values, one after the other.
  std::vector<float> Stacked(const std::vector<std::pair<std::string, Shape>>& tensors) const {
    std::vector<float> all;
    for (const auto& [name, shape] : tensors) {
      const std::vector<float> part = ReadTensor(*files_, name, shape);
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }
  const std::string directory_ = std::string(INFLLM_TEST_DATA) + "/" + GetParam();
  const ModelConfig config_ = LoadModelConfig(directory_).value();
  const std::unique_ptr<ModelFiles> files_ = ModelFiles::Open(directory_).value();
  const std::unique_ptr<kernels::Backend> backend_ = kernels::NewReferenceBackend();
};

TEST_P(LoadFixtureTest, EveryWeightEndsUpInItsPlace) {
  ASSERT_OK_AND_ASSIGN(const auto weights,
                       LoadDecoderWeights(config_, *files_, *backend_, DType::kF32));
  const int64_t hidden = config_.hidden_size, mlp = config_.intermediate_size;
  const int64_t q = config_.q_heads * config_.head_dim, kv = config_.kv_heads * config_.head_dim;
  ASSERT_EQ(weights->layers.size(), static_cast<size_t>(config_.layers));
  for (int64_t i = 0; i < config_.layers; ++i) {
    const LayerWeights& layer = weights->layers[static_cast<size_t>(i)];
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    const std::string attn = prefix + "self_attn.";
    EXPECT_EQ(Unpack(*backend_, layer.qkv), Stacked({{attn + "q_proj.weight", {q, hidden}},
                                                     {attn + "k_proj.weight", {kv, hidden}},
                                                     {attn + "v_proj.weight", {kv, hidden}}}));
    EXPECT_EQ(Unpack(*backend_, layer.o), Stacked({{attn + "o_proj.weight", {hidden, q}}}));
    EXPECT_EQ(Unpack(*backend_, layer.gate_up),
              Stacked({{prefix + "mlp.gate_proj.weight", {mlp, hidden}},
                       {prefix + "mlp.up_proj.weight", {mlp, hidden}}}));
    EXPECT_EQ(Unpack(*backend_, layer.down),
              Stacked({{prefix + "mlp.down_proj.weight", {hidden, mlp}}}));
    EXPECT_EQ(Values(layer.attention_norm),
              Stacked({{prefix + "input_layernorm.weight", {hidden}}}));
    EXPECT_EQ(Values(layer.mlp_norm),
              Stacked({{prefix + "post_attention_layernorm.weight", {hidden}}}));
    if (config_.qkv_bias) {
      EXPECT_EQ(Values(layer.qkv_bias), Stacked({{attn + "q_proj.bias", {q}},
                                                 {attn + "k_proj.bias", {kv}},
                                                 {attn + "v_proj.bias", {kv}}}));
    } else {
      EXPECT_EQ(layer.qkv_bias.data(), nullptr);
    }
  }
  EXPECT_EQ(Values(weights->final_norm), Stacked({{"model.norm.weight", {hidden}}}));
  const Shape vocab_shape = {config_.vocab_size, hidden};
  const std::vector<float> embedding = Stacked({{"model.embed_tokens.weight", vocab_shape}});
  EXPECT_EQ(Unpack(*backend_, weights->lm_head),
            config_.tied_embeddings ? embedding : Stacked({{"lm_head.weight", vocab_shape}}));
  std::vector<float> rows(embedding.size());
  for (int64_t token = 0; token < config_.vocab_size; ++token) {
    weights->embedding.EmbedRow(static_cast<int32_t>(token), rows.data() + token * hidden);
  }
  EXPECT_EQ(rows, embedding);
}

TEST_P(LoadFixtureTest, PackedBytesAreWhatTheEstimateSays) {
  // The reference backend's layout has no padding.
  ASSERT_OK_AND_ASSIGN(const auto weights,
                       LoadDecoderWeights(config_, *files_, *backend_, DType::kF32));
  EXPECT_EQ(weights->packed_bytes, DecoderWeightBytes(config_, DType::kF32));
}

TEST_P(LoadFixtureTest, AnUnalignedFileGivesTheSameWeights) {
  if (!std::filesystem::exists(directory_ + "/model.safetensors")) return;  // in shards
  // One more space after the header moves all data to odd addresses.
  std::ifstream stream(directory_ + "/model.safetensors", std::ios::binary);
  std::string file((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  file.insert(8 + header_bytes, " ");
  ++header_bytes;
  std::memcpy(file.data(), &header_bytes, sizeof(header_bytes));
  const TempDir dir;
  dir.Write("model.safetensors", file);
  ASSERT_OK_AND_ASSIGN(const auto moved_files, ModelFiles::Open(dir.path()));
  ASSERT_OK_AND_ASSIGN(const auto moved,
                       LoadDecoderWeights(config_, *moved_files, *backend_, DType::kF32));
  ASSERT_OK_AND_ASSIGN(const auto weights,
                       LoadDecoderWeights(config_, *files_, *backend_, DType::kF32));
  EXPECT_EQ(Unpack(*backend_, moved->lm_head), Unpack(*backend_, weights->lm_head));
  EXPECT_EQ(Unpack(*backend_, moved->layers[0].qkv), Unpack(*backend_, weights->layers[0].qkv));
  EXPECT_EQ(Values(moved->final_norm), Values(weights->final_norm));
  std::vector<float> moved_row(static_cast<size_t>(config_.hidden_size)), row = moved_row;
  moved->embedding.EmbedRow(5, moved_row.data());
  weights->embedding.EmbedRow(5, row.data());
  EXPECT_EQ(moved_row, row);
}

INSTANTIATE_TEST_SUITE_P(Models, LoadFixtureTest,
                         ::testing::Values("stories260K", "paged-infer", "tiny-llama",
                                           "tiny-mistral", "tiny-qwen2"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::erase(name, '-');
                           return name;
                         });

// A model directory made here, with zero weights, to be broken in one way or another.
class MadeModelTest : public ::testing::Test {
 protected:
  MadeModelTest() { Describe(/*hidden=*/8, /*vocab=*/6); }

  void Describe(int64_t hidden, int64_t vocab) {
    config_ = {.model_type = "llama",
               .hidden_size = hidden,
               .intermediate_size = 12,
               .layers = 2,
               .q_heads = 2,
               .kv_heads = 1,
               .head_dim = 4,
               .vocab_size = vocab,
               .rms_norm_eps = 1e-5f};
    tensors_ = {{"model.embed_tokens.weight", {vocab, hidden}},
                {"model.norm.weight", {hidden}},
                {"lm_head.weight", {vocab, hidden}}};
    for (const std::string layer : {"model.layers.0.", "model.layers.1."}) {
      tensors_[layer + "input_layernorm.weight"] = {hidden};
      tensors_[layer + "post_attention_layernorm.weight"] = {hidden};
      tensors_[layer + "self_attn.q_proj.weight"] = {8, hidden};
      tensors_[layer + "self_attn.k_proj.weight"] = {4, hidden};
      tensors_[layer + "self_attn.v_proj.weight"] = {4, hidden};
      tensors_[layer + "self_attn.o_proj.weight"] = {hidden, 8};
      tensors_[layer + "mlp.gate_proj.weight"] = {12, hidden};
      tensors_[layer + "mlp.up_proj.weight"] = {12, hidden};
      tensors_[layer + "mlp.down_proj.weight"] = {hidden, 12};
    }
  }

  // Large files are sparse.
  absl::Status Load() {
    nlohmann::json header = nlohmann::json::object();
    int64_t end = 0;
    for (const auto& [name, shape] : tensors_) {
      int64_t bytes = 4;
      for (const int64_t dim : shape) bytes *= dim;
      header[name] = {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {end, end + bytes}}};
      end += bytes;
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    const uint64_t size = text.size();
    const std::string path = dir_.file("model.safetensors");
    std::ofstream(path, std::ios::binary)
        << std::string(reinterpret_cast<const char*>(&size), sizeof(size)) << text;
    std::filesystem::resize_file(path, 8 + text.size() + static_cast<size_t>(end));
    files_ = ModelFiles::Open(dir_.path()).value();
    absl::StatusOr<std::unique_ptr<DecoderWeights>> weights =
        LoadDecoderWeights(config_, *files_, *backend_, DType::kF32);
    return weights.status();
  }

  TempDir dir_;
  ModelConfig config_;
  std::map<std::string, Shape> tensors_;
  std::unique_ptr<kernels::Backend> backend_ = kernels::NewReferenceBackend();
  std::unique_ptr<ModelFiles> files_;
};

TEST_F(MadeModelTest, LoadsAsItIs) { EXPECT_OK(Load()); }

TEST_F(MadeModelTest, MissingTensorsAreNamed) {
  tensors_.erase("lm_head.weight");
  tensors_.erase("model.layers.1.mlp.up_proj.weight");
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kInvalidArgument,
                               AllOf(HasSubstr("missing"), HasSubstr("\"lm_head.weight\""),
                                     HasSubstr("\"model.layers.1.mlp.up_proj.weight\""))));
}

TEST_F(MadeModelTest, ALongListOfNamesIsCutShort) {
  config_.layers = 4;  // 18 tensors too few
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kInvalidArgument,
                               AllOf(HasSubstr("model.layers.2."), HasSubstr(" and 13 more"),
                                     Not(HasSubstr("model.layers.3.")))));
}

TEST_F(MadeModelTest, TiedEmbeddingsNeedNoHeadAndIgnoreOne) {
  config_.tied_embeddings = true;
  EXPECT_OK(Load());
  tensors_.erase("lm_head.weight");
  EXPECT_OK(Load());
}

TEST_F(MadeModelTest, ExtraTensorsAreNamed) {
  tensors_["model.layers.1.self_attn.q_proj.bias"] = {8};
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kInvalidArgument,
                               HasSubstr("\"model.layers.1.self_attn.q_proj.bias\"")));
}

TEST_F(MadeModelTest, AConfigOfTooFewLayersIsNoticed) {
  config_.layers = 1;
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kInvalidArgument,
                               AllOf(HasSubstr("a llama of 1 layers"), HasSubstr("model.layers.1."),
                                     HasSubstr(" and 4 more"))));
}

TEST_F(MadeModelTest, RotaryFrequenciesOfOldExportsAreIgnored) {
  tensors_["model.layers.0.self_attn.rotary_emb.inv_freq"] = {2};
  EXPECT_OK(Load());
}

TEST_F(MadeModelTest, BiasesAreRequiredWhereTheFamilyHasThem) {
  config_.qkv_bias = true;
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kInvalidArgument,
                               HasSubstr("\"model.layers.0.self_attn.q_proj.bias\"")));
}

TEST_F(MadeModelTest, WrongShapesAreNamed) {
  tensors_["model.layers.0.self_attn.k_proj.weight"] = {8, 8};
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kInvalidArgument,
                               AllOf(HasSubstr("\"model.layers.0.self_attn.k_proj.weight\""),
                                     HasSubstr("[8, 8] instead of [4, 8]"))));
}

TEST_F(MadeModelTest, UnknownComputeDtypesAreRefused) {
  ASSERT_OK(Load());
  EXPECT_THAT(LoadDecoderWeights(config_, *files_, *backend_, DType::kF16),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(MadeModelTest, AModelLargerThanMemoryIsRefusedBeforeItIsRead) {
  constexpr int64_t kVocab = 1 << 18, kHidden = 1 << 18;
  constexpr int64_t kBytes = kVocab * kHidden * 4;  // 256 GiB, nearly all of it a hole in the file
  if (AvailableMemoryBytes().value_or(kBytes) >= kBytes) GTEST_SKIP() << "too much memory";
  std::error_code error;
  std::filesystem::resize_file(dir_.Write("probe", ""), 2 * kBytes, error);
  if (error) GTEST_SKIP() << "no sparse files in " << dir_.path() << ": " << error.message();
  Describe(kHidden, kVocab);
  config_.tied_embeddings = true;
  tensors_.erase("lm_head.weight");
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kResourceExhausted,
                               AllOf(HasSubstr("GiB"), HasSubstr("available"))));
}

TEST(CheckWeightsFitTest, SaysWhatIsNeededAndWhatIsThere) {
  constexpr int64_t kGiB = 1 << 30;
  EXPECT_OK(CheckWeightsFit(16 * kGiB, 17 * kGiB, DType::kF32));
  EXPECT_THAT(CheckWeightsFit(16 * kGiB, 17 * kGiB - 1, DType::kF32),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       AllOf(HasSubstr("need 17.00 GiB of memory as f32"),
                             HasSubstr("only 17.00 GiB are available"),
                             HasSubstr("or bf16 on a device that computes in it (8.50 GiB)"))));
  EXPECT_THAT(CheckWeightsFit(16 * kGiB, 3 * kGiB, DType::kBF16),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       AllOf(HasSubstr("as bf16"), Not(HasSubstr("or bf16")))));
}

TEST(DecoderWeightBytesTest, CountsTheParametersOfAKnownModel) {
  // Llama 3 8B has 8,030,261,248 parameters, of which 128256 * 4096 are the input embedding.
  const ModelConfig config = {.hidden_size = 4096,
                              .intermediate_size = 14336,
                              .layers = 32,
                              .q_heads = 32,
                              .kv_heads = 8,
                              .head_dim = 128,
                              .vocab_size = 128256};
  EXPECT_EQ(DecoderWeightBytes(config, DType::kF32), (8'030'261'248 - int64_t{128256} * 4096) * 4);
  const int64_t norms = (2 * 32 + 1) * 4096;  // fp32 always
  EXPECT_EQ(DecoderWeightBytes(config, DType::kBF16),
            (8'030'261'248 - int64_t{128256} * 4096 - norms) * 2 + norms * 4);
}

}  // namespace
}  // namespace infllm::worker
