#include "worker/model/model_config.h"

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::worker {
namespace {

using infllm::testing::StatusIs;
using infllm::testing::TempDir;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Json = nlohmann::json;

// Only what has no default.
Json Minimal(const std::string& model_type) {
  return {{"model_type", model_type}, {"hidden_size", 64}, {"intermediate_size", 96},
          {"num_hidden_layers", 3},   {"vocab_size", 320}, {"num_attention_heads", 32}};
}
Json Llama() { return Minimal("llama"); }

// `base` with the fields of `patch` set; a field "-" is removed.
Json With(Json base, const Json& patch) {
  for (const auto& [key, value] : patch.items()) {
    base[key] = value;
    if (value == "-") base.erase(key);
  }
  return base;
}

absl::StatusOr<ModelConfig> Parse(const Json& json) { return ParseModelConfig(json.dump()); }

TEST(ModelConfigTest, LlamaDefaultsAreThoseOfTransformers) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, Parse(Llama()));
  EXPECT_EQ(config.model_type, "llama");
  EXPECT_EQ(config.hidden_size, 64);
  EXPECT_EQ(config.intermediate_size, 96);
  EXPECT_EQ(config.layers, 3);
  EXPECT_EQ(config.q_heads, 32);
  EXPECT_EQ(config.kv_heads, 32);
  EXPECT_EQ(config.head_dim, 2);
  EXPECT_EQ(config.vocab_size, 320);
  EXPECT_EQ(config.max_position_embeddings, 0);
  EXPECT_EQ(config.rms_norm_eps, 1e-6f);
  EXPECT_EQ(config.rope_theta, 10000);
  EXPECT_EQ(config.rope_linear_factor, 1);
  EXPECT_FALSE(config.tied_embeddings);
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_EQ(config.sliding_window, std::nullopt);
  EXPECT_EQ(config.bos_id, 1);
  EXPECT_THAT(config.eos_ids, ElementsAre(2));
}

TEST(ModelConfigTest, MistralDefaultsAreThoseOfTransformers) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, Parse(Minimal("mistral")));
  EXPECT_EQ(config.kv_heads, 8);
  EXPECT_EQ(config.sliding_window, 4096);
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_EQ(config.bos_id, 1);
  EXPECT_THAT(config.eos_ids, ElementsAre(2));
}

TEST(ModelConfigTest, Qwen2DefaultsAreThoseOfTransformers) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, Parse(Minimal("qwen2")));
  EXPECT_EQ(config.kv_heads, 32);
  EXPECT_TRUE(config.qkv_bias);
  EXPECT_EQ(config.sliding_window, std::nullopt);
  EXPECT_EQ(config.bos_id, std::nullopt);
  EXPECT_THAT(config.eos_ids, IsEmpty());
}

TEST(ModelConfigTest, NullKvHeadsMeansAsManyAsQueryHeads) {
  for (const char* type : {"llama", "mistral", "qwen2"}) {
    ASSERT_OK_AND_ASSIGN(
        const ModelConfig config,
        Parse(With(Minimal(type), {{"num_key_value_heads", nullptr}, {"num_attention_heads", 4}})));
    EXPECT_EQ(config.kv_heads, 4) << type;
  }
}

TEST(ModelConfigTest, EveryFieldIsRead) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig config,
                       Parse(With(Llama(), {{"architectures", {"LlamaForCausalLM"}},
                                            {"num_key_value_heads", 4},
                                            {"head_dim", 16},
                                            {"max_position_embeddings", 8192},
                                            {"rms_norm_eps", 1e-5},
                                            {"rope_theta", 500000},
                                            {"tie_word_embeddings", true},
                                            {"hidden_act", "silu"},
                                            {"bos_token_id", 7},
                                            {"eos_token_id", {8, 9}}})));
  EXPECT_EQ(config.kv_heads, 4);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.max_position_embeddings, 8192);
  EXPECT_EQ(config.rms_norm_eps, 1e-5f);
  EXPECT_EQ(config.rope_theta, 500000);
  EXPECT_TRUE(config.tied_embeddings);
  EXPECT_EQ(config.bos_id, 7);
  EXPECT_THAT(config.eos_ids, ElementsAre(8, 9));
}

TEST(ModelConfigTest, FieldsWithoutEffectAreIgnored) {
  EXPECT_OK(Parse(With(Llama(), {{"pretraining_tp", 4},
                                 {"attention_dropout", 0.1},
                                 {"torch_dtype", "float16"},
                                 {"use_cache", false},
                                 {"attention_bias", false},
                                 {"mlp_bias", false},
                                 {"quantization_config", nullptr},
                                 {"partial_rotary_factor", 1.0},
                                 {"num_experts_per_tok", 0},
                                 {"auto_map", {{"AutoTokenizer", "own.Tokenizer"}}},
                                 {"rope_scaling", nullptr}})));
}

TEST(ModelConfigTest, RopeIsReadFromOldAndNewFields) {
  struct Case {
    Json patch;
    double theta;
    double factor;
  };
  const Case kCases[] = {
      {{{"rope_scaling", {{"type", "default"}}}}, 10000, 1},
      {{{"rope_scaling", {{"type", "linear"}, {"factor", 4.0}}}}, 10000, 4},
      {{{"rope_scaling", {{"rope_type", "linear"}, {"factor", 8}}}, {"rope_theta", 1e6}}, 1e6, 8},
      {{{"rope_scaling", {{"rope_type", "linear"}, {"type", "linear"}, {"factor", 2.5}}}},
       10000,
       2.5},
      {{{"rope_parameters", {{"rope_theta", 5e5}, {"rope_type", "default"}}}}, 5e5, 1},
      {{{"rope_parameters", {{"rope_theta", 5e5}}}, {"rope_theta", 5e5}}, 5e5, 1},
      {{{"rope_parameters", {{"rope_type", "linear"}, {"factor", 2}, {"rope_theta", 1e5}}}},
       1e5,
       2},
      {{{"rope_parameters", {{"rope_type", "linear"}, {"factor", 2}, {"rope_theta", 1e5}}},
        {"rope_scaling", {{"type", "linear"}, {"factor", 2}}}},
       1e5,
       2},
  };
  for (const Case& c : kCases) {
    ASSERT_OK_AND_ASSIGN(const ModelConfig config, Parse(With(Llama(), c.patch)));
    EXPECT_EQ(config.rope_theta, c.theta) << c.patch;
    EXPECT_EQ(config.rope_linear_factor, c.factor) << c.patch;
  }
}

TEST(ModelConfigTest, SlidingWindowFollowsItsFamily) {
  struct Case {
    const char* type;
    Json patch;
    std::optional<int64_t> window;
  };
  const Case kCases[] = {
      {"mistral", {{"sliding_window", nullptr}}, std::nullopt},
      {"mistral", {{"sliding_window", 128}}, 128},
      {"qwen2", {{"use_sliding_window", false}, {"sliding_window", 131072}}, std::nullopt},
      {"qwen2", {{"sliding_window", 131072}, {"max_window_layers", 21}}, std::nullopt},
      {"qwen2",
       {{"use_sliding_window", true}, {"sliding_window", 64}, {"max_window_layers", 0}},
       64},
      {"qwen2", {{"use_sliding_window", true}, {"sliding_window", nullptr}}, std::nullopt},
      {"qwen2",
       {{"layer_types", {"full_attention", "full_attention", "full_attention"}}},
       std::nullopt},
      {"mistral",
       {{"sliding_window", 128},
        {"layer_types", {"sliding_attention", "sliding_attention", "sliding_attention"}}},
       128},
      {"llama", {{"sliding_window", nullptr}}, std::nullopt},
  };
  for (const Case& c : kCases) {
    ASSERT_OK_AND_ASSIGN(const ModelConfig config, Parse(With(Minimal(c.type), c.patch)));
    EXPECT_EQ(config.sliding_window, c.window) << c.type << c.patch;
  }
}

TEST(ModelConfigTest, TokenIdsMayBeNull) {
  ASSERT_OK_AND_ASSIGN(
      const ModelConfig config,
      Parse(With(Llama(), {{"bos_token_id", nullptr}, {"eos_token_id", nullptr}})));
  EXPECT_EQ(config.bos_id, std::nullopt);
  EXPECT_THAT(config.eos_ids, IsEmpty());
}

TEST(ModelConfigTest, DefaultTokenIdsBeyondTheVocabularyAreDropped) {
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, Parse(With(Llama(), {{"vocab_size", 2}})));
  EXPECT_EQ(config.bos_id, 1);
  EXPECT_THAT(config.eos_ids, IsEmpty());
}

TEST(ModelConfigTest, BadFieldsAreRefusedWithNameAndValue) {
  struct Case {
    Json patch;
    std::vector<const char*> texts;
  };
  const Json huge = 1e30;
  const Case kCases[] = {
      {{{"model_type", "-"}}, {"model_type is missing", "qwen2"}},
      {{{"model_type", "gemma2"}}, {"model_type \"gemma2\"", "llama, mistral and qwen2"}},
      {{{"model_type", 3}}, {"model_type 3"}},
      {{{"architectures", {"LlamaForSequenceClassification"}}},
       {"LlamaForSequenceClassification", "LlamaForCausalLM"}},
      {{{"architectures", {"MistralForCausalLM"}}}, {"MistralForCausalLM", "model_type llama"}},
      {{{"architectures", Json::array()}}, {"architectures is an array of 0"}},
      {{{"architectures", "LlamaForCausalLM"}}, {"architectures is \"LlamaForCausalLM\""}},
      {{{"architectures", Json::array({1})}}, {"architectures is [1]"}},
      {{{"hidden_size", "-"}}, {"hidden_size is missing"}},
      {{{"hidden_size", nullptr}}, {"hidden_size is missing"}},
      {{{"hidden_size", -4}}, {"hidden_size is -4", "from 1 to 1048576"}},
      {{{"hidden_size", 0}}, {"hidden_size is 0"}},
      {{{"hidden_size", "64"}}, {"hidden_size is \"64\"", "must be an integer"}},
      {{{"hidden_size", 64.0}}, {"hidden_size is 64.0"}},
      {{{"hidden_size", true}}, {"hidden_size is true"}},
      {{{"hidden_size", Json::array({64})}}, {"hidden_size is an array of 1"}},
      {{{"hidden_size", Json::object()}}, {"hidden_size is an object of 0 fields"}},
      {{{"hidden_size", 18446744073709551615u}}, {"hidden_size is 18446744073709551615"}},
      {{{"hidden_size", huge}}, {"hidden_size is 1e+30"}},
      {{{"hidden_size", 1048577}}, {"hidden_size is 1048577"}},
      {{{"intermediate_size", 0}}, {"intermediate_size is 0"}},
      {{{"num_hidden_layers", 0}}, {"num_hidden_layers is 0"}},
      {{{"num_hidden_layers", 2000}}, {"num_hidden_layers is 2000", "1024"}},
      {{{"vocab_size", -1}}, {"vocab_size is -1"}},
      {{{"num_attention_heads", 0}}, {"num_attention_heads is 0"}},
      {{{"num_attention_heads", 24}}, {"hidden_size = 64", "num_attention_heads = 24"}},
      {{{"num_key_value_heads", 5}}, {"num_attention_heads = 32", "num_key_value_heads = 5"}},
      {{{"num_key_value_heads", 64}}, {"num_key_value_heads = 64"}},
      {{{"num_key_value_heads", 0}}, {"num_key_value_heads is 0"}},
      {{{"head_dim", 7}}, {"head_dim is 7", "even"}},
      {{{"head_dim", 0}}, {"head_dim is 0"}},
      {{{"num_attention_heads", 64}}, {"head_dim is 1", "even"}},
      {{{"num_attention_heads", 1}, {"hidden_size", 8192}}, {"head_dim is 8192", "at most 4096"}},
      {{{"max_position_embeddings", 0}}, {"max_position_embeddings is 0"}},
      {{{"rms_norm_eps", -1e-6}}, {"rms_norm_eps is -1e-06"}},
      {{{"rms_norm_eps", "1e-6"}}, {"rms_norm_eps is \"1e-6\"", "must be a number"}},
      {{{"rope_theta", 0}}, {"rope_theta is 0"}},
      {{{"rope_theta", "10000"}}, {"rope_theta is \"10000\""}},
      {{{"tie_word_embeddings", 1}}, {"tie_word_embeddings is 1", "true or false"}},
      {{{"bos_token_id", 320}}, {"bos_token_id is 320", "from 0 to 319"}},
      {{{"bos_token_id", {1, 2}}}, {"bos_token_id is an array of 2", "one id"}},
      {{{"eos_token_id", -1}}, {"eos_token_id is -1"}},
      {{{"eos_token_id", {2, 320}}}, {"eos_token_id is 320"}},
      {{{"eos_token_id", "</s>"}}, {"eos_token_id is \"</s>\""}},

      {{{"hidden_act", "gelu"}}, {"hidden_act is \"gelu\"", "silu"}},
      {{{"attention_bias", true}}, {"attention_bias is true", "llama"}},
      {{{"attention_bias", "yes"}}, {"attention_bias is \"yes\""}},
      {{{"mlp_bias", true}}, {"mlp_bias is true"}},
      {{{"quantization_config", {{"bits", 4}}}}, {"quantization_config is an object of 1"}},
      {{{"final_logit_softcapping", 30.0}}, {"final_logit_softcapping is 30.0"}},
      {{{"attn_logit_softcapping", 50.0}}, {"attn_logit_softcapping is 50.0"}},
      {{{"partial_rotary_factor", 0.5}}, {"partial_rotary_factor is 0.5"}},
      {{{"num_local_experts", 8}}, {"num_local_experts is 8"}},
      {{{"use_qk_norm", true}}, {"use_qk_norm is true"}},
      {{{"scale_emb", 12}}, {"scale_emb is 12"}},
      {{{"auto_map", {{"AutoModelForCausalLM", "own.Model"}}}}, {"auto_map names \"own.Model\""}},
      {{{"sliding_window", 4096}}, {"sliding_window is 4096", "llama"}},
      {{{"layer_types", {"full_attention", "full_attention"}}},
       {"layer_types is an array of 2", "num_hidden_layers = 3"}},
      {{{"layer_types", {"full_attention", "sliding_attention", "full_attention"}}},
       {"layer_types has \"sliding_attention\"", "mixing"}},

      {{{"rope_scaling", "linear"}}, {"rope_scaling is \"linear\"", "object"}},
      {{{"rope_scaling", Json::object()}}, {"rope_scaling.rope_type is missing"}},
      {{{"rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}}}},
       {"rope_scaling.rope_type is \"dynamic\"", "linear"}},
      {{{"rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}}}}, {"\"yarn\""}},
      {{{"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8.0}, {"low_freq_factor", 1.0}}}},
       {"rope_scaling", "\"low_freq_factor\"", "1.0"}},
      {{{"rope_scaling", {{"type", "default"}, {"mrope_section", {16, 24, 24}}}}},
       {"mrope_section"}},
      {{{"rope_scaling", {{"type", "linear"}}}}, {"rope_scaling.factor is missing"}},
      {{{"rope_scaling", {{"type", "linear"}, {"factor", 0.5}}}},
       {"rope_scaling.factor is 0.5", "from 1"}},
      {{{"rope_scaling", {{"type", "linear"}, {"factor", "4"}}}}, {"rope_scaling.factor is \"4\""}},
      {{{"rope_scaling", {{"type", "linear"}, {"rope_type", "default"}, {"factor", 4}}}},
       {"rope_scaling.type is \"linear\"", "rope_scaling.rope_type is \"default\""}},
      {{{"rope_parameters", {{"full_attention", {{"rope_type", "default"}}}}}},
       {"rope_parameters", "\"full_attention\""}},
      {{{"rope_parameters", {{"rope_theta", -1}}}}, {"rope_parameters.rope_theta is -1"}},
      {{{"rope_parameters", {{"rope_theta", 5e5}}}, {"rope_theta", 1e4}},
       {"rope_theta is 10000", "500000"}},
      {{{"rope_parameters", {{"partial_rotary_factor", 0.25}}}},
       {"rope_parameters.partial_rotary_factor is 0.25"}},
      {{{"rope_parameters", {{"rope_type", "default"}}},
        {"rope_scaling", {{"type", "linear"}, {"factor", 4}}}},
       {"rope_scaling and rope_parameters differ"}},
  };
  for (const Case& c : kCases) {
    const absl::StatusOr<ModelConfig> config = Parse(With(Llama(), c.patch));
    for (const char* text : c.texts) {
      EXPECT_THAT(config, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(text))) << c.patch;
    }
  }
}

TEST(ModelConfigTest, FamilySpecificFieldsAreRefused) {
  EXPECT_THAT(Parse(With(Minimal("mistral"), {{"attention_bias", true}})),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("mistral")));
  EXPECT_THAT(Parse(With(Minimal("mistral"), {{"num_attention_heads", 4}})),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("num_key_value_heads = 8"), HasSubstr("default"))));
  EXPECT_THAT(Parse(With(Minimal("mistral"), {{"sliding_window", 0}})),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("sliding_window is 0")));
  EXPECT_THAT(Parse(With(Minimal("qwen2"), {{"use_sliding_window", true}})),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("use_sliding_window is true with max_window_layers 28")));
}

TEST(ModelConfigTest, MalformedJsonIsRefused) {
  const std::string deep(1000000, '[');
  const std::string deep_value = deep + std::string(deep.size(), ']');
  struct Case {
    std::string text;
    const char* message;
  };
  const Case kCases[] = {
      {"", "not valid JSON"},
      {"{", "not valid JSON"},
      {"[]", "not a JSON object but an array of 0"},
      {"null", "not a JSON object but null"},
      {"{} {}", "not valid JSON"},
      {R"({"hidden_size": NaN})", "not valid JSON"},
      {R"({"rope_theta": 1e999})", "not valid JSON"},
      {"{\"model_type\": \"\xff\"}", "not valid JSON"},
      {deep, "nested deeper than 64 levels"},
      {R"({"model_type": "llama", "hidden_size": )" + deep_value + "}",
       "nested deeper than 64 levels at byte 102"},
      {R"({"rope_scaling": {"type": )" + deep_value + R"(, "rope_type": )" + deep_value + "}}",
       "nested deeper than 64 levels"},
  };
  for (const Case& c : kCases) {
    EXPECT_THAT(ParseModelConfig(c.text),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(c.message)))
        << c.text.substr(0, 100);
  }
}

TEST(ModelConfigTest, TextFromTheFileIsEscapedAndShortenedInMessages) {
  const absl::StatusOr<ModelConfig> config =
      Parse(With(Llama(), {{"model_type", "x\n\x1b[31m\"" + std::string(5000, 'y')}}));
  EXPECT_THAT(config, StatusIs(absl::StatusCode::kInvalidArgument,
                               AllOf(HasSubstr(R"(x\n\x1b[31m\"yyy)"), HasSubstr("yyy...\""))));
  EXPECT_LT(config.status().message().size(), 300u);
}

TEST(LoadModelConfigTest, ReadsEveryModelOfTheTestData) {
  for (const char* name :
       {"stories260K", "paged-infer", "tiny-llama", "tiny-mistral", "tiny-qwen2"}) {
    EXPECT_OK(LoadModelConfig(std::string(INFLLM_TEST_DATA) + "/" + name)) << name;
  }
}

TEST(LoadModelConfigTest, GenerationConfigGoesFirst) {
  const TempDir dir;
  dir.Write("config.json", With(Llama(), {{"bos_token_id", 5}, {"eos_token_id", 6}}).dump());
  dir.Write("generation_config.json", R"({"eos_token_id": [7, 8], "bos_token_id": null})");
  ASSERT_OK_AND_ASSIGN(const ModelConfig config, LoadModelConfig(dir.path()));
  EXPECT_EQ(config.bos_id, 5);
  EXPECT_THAT(config.eos_ids, ElementsAre(7, 8));
}

TEST(LoadModelConfigTest, ErrorsNameTheFile) {
  const TempDir dir;
  EXPECT_THAT(LoadModelConfig(dir.path()),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr(dir.file("config.json"))));

  dir.Write("config.json", "{");
  EXPECT_THAT(LoadModelConfig(dir.path()),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr(dir.file("config.json")), HasSubstr("line 1"))));

  dir.Write("config.json", With(Llama(), {{"vocab_size", 0}}).dump());
  EXPECT_THAT(LoadModelConfig(dir.path()),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr(dir.file("config.json") + ": vocab_size is 0")));

  dir.Write("config.json", Llama().dump());
  dir.Write("generation_config.json", R"({"eos_token_id": 999})");
  EXPECT_THAT(LoadModelConfig(dir.path()),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr(dir.file("generation_config.json") + ": eos_token_id is 999")));
}

TEST(LoadModelConfigTest, WhatIsNotAFileIsRefused) {
  const TempDir dir;
  std::filesystem::create_directory(dir.file("config.json"));
  EXPECT_THAT(LoadModelConfig(dir.path()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("is a directory")));
  EXPECT_THAT(LoadModelConfig(dir.file("config.json")), StatusIs(absl::StatusCode::kNotFound));
}

TEST(LoadModelConfigTest, AnEndlessFileIsRefused) {
  const TempDir dir;
  dir.Write("config.json", "{");
  std::filesystem::resize_file(dir.file("config.json"), uint64_t{1} << 32);
  EXPECT_THAT(LoadModelConfig(dir.path()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("larger than 16777216")));
}

}  // namespace
}  // namespace infllm::worker
