#include "worker/model/model_config.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "worker/model/json_depth.h"
#include "worker/model/quote.h"
#include "worker/model/read_file.h"

namespace infllm::worker {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxFileBytes = 16 << 20;

// Far above every real model; they keep all sizes derived from them within int64_t.
constexpr int64_t kMaxHidden = 1 << 20;
constexpr int64_t kMaxIntermediate = 1 << 22;
constexpr int64_t kMaxLayers = 1 << 10;
constexpr int64_t kMaxHeads = 1 << 12;
constexpr int64_t kMaxHeadDim = 1 << 12;
constexpr int64_t kMaxVocab = 1 << 24;
constexpr int64_t kMaxPositions = int64_t{1} << 40;
constexpr double kMaxRopeTheta = 1e15;
constexpr double kMaxRopeFactor = 1e6;

// What transformers 4.46 takes for a field that config.json leaves out.
struct Family {
  const char* model_type;
  const char* architecture;
  std::optional<int64_t> kv_heads;  // nullopt: as many as query heads
  std::optional<int64_t> sliding_window;
  std::optional<int32_t> bos_id;
  std::optional<int32_t> eos_id;
  bool qkv_bias = false;
};
constexpr Family kFamilies[] = {
    {.model_type = "llama", .architecture = "LlamaForCausalLM", .bos_id = 1, .eos_id = 2},
    {.model_type = "mistral",
     .architecture = "MistralForCausalLM",
     .kv_heads = 8,
     .sliding_window = 4096,
     .bos_id = 1,
     .eos_id = 2},
    {.model_type = "qwen2",
     .architecture = "Qwen2ForCausalLM",
     .kv_heads = 32,
     .sliding_window = 4096,
     .qkv_bias = true},
};

// Fields of other architectures, and what of them leaves a Llama decoder as it is. Such fields do
// turn up under these model types: in merged, converted and hand-edited models.
enum class Neutral { kNull, kFalseOrZero, kOne };
struct Feature {
  const char* key;
  Neutral neutral;
};
constexpr Feature kUnsupportedFeatures[] = {
    {"quantization_config", Neutral::kNull},
    {"compression_config", Neutral::kNull},
    {"attn_logit_softcapping", Neutral::kNull},
    {"final_logit_softcapping", Neutral::kNull},
    {"query_pre_attn_scalar", Neutral::kNull},
    {"clip_qkv", Neutral::kNull},
    {"attention_multiplier", Neutral::kNull},
    {"scale_emb", Neutral::kOne},
    {"scale_depth", Neutral::kNull},
    {"dim_model_base", Neutral::kNull},
    {"sliding_window_pattern", Neutral::kNull},
    {"attention_chunk_size", Neutral::kNull},
    {"no_rope_layers", Neutral::kNull},
    {"partial_rotary_factor", Neutral::kOne},
    {"rotary_pct", Neutral::kOne},
    {"embedding_multiplier", Neutral::kOne},
    {"residual_multiplier", Neutral::kOne},
    {"logits_scaling", Neutral::kOne},
    {"logit_scale", Neutral::kOne},
    {"mlp_bias", Neutral::kFalseOrZero},
    {"lm_head_bias", Neutral::kFalseOrZero},
    {"use_qk_norm", Neutral::kFalseOrZero},
    {"qk_norm", Neutral::kFalseOrZero},
    {"qk_layernorm", Neutral::kFalseOrZero},
    {"alibi", Neutral::kFalseOrZero},
    {"parallel_attn", Neutral::kFalseOrZero},
    {"use_parallel_residual", Neutral::kFalseOrZero},
    {"rope_interleaved", Neutral::kFalseOrZero},
    {"use_mrope", Neutral::kFalseOrZero},
    {"is_encoder_decoder", Neutral::kFalseOrZero},
    {"add_cross_attention", Neutral::kFalseOrZero},
    {"num_local_experts", Neutral::kFalseOrZero},
    {"num_experts", Neutral::kFalseOrZero},
    {"num_experts_per_tok", Neutral::kFalseOrZero},
    {"n_routed_experts", Neutral::kFalseOrZero},
    {"n_shared_experts", Neutral::kFalseOrZero},
    {"moe_intermediate_size", Neutral::kFalseOrZero},
};

// A value as it stands in the file. Arrays and objects are only named: they may be huge.
std::string Show(const Json& value) {
  if (value.is_string()) return Quote(value.get_ref<const std::string&>());
  if (value.is_object()) return absl::StrCat("an object of ", value.size(), " fields");
  if (value.is_array()) return absl::StrCat("an array of ", value.size());
  return value.dump();
}

template <typename... Parts>
absl::Status Invalid(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

// The field, or null if it is absent or null: Hugging Face treats both alike nearly everywhere.
const Json* Find(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

std::optional<int64_t> IntegerIn(const Json& value, int64_t min, int64_t max) {
  if (value.is_number_unsigned()) {
    const uint64_t number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(max)) return std::nullopt;
  } else if (!value.is_number_integer()) {
    return std::nullopt;
  }
  const int64_t number = value.get<int64_t>();
  if (number < min || number > max) return std::nullopt;
  return number;
}

absl::StatusOr<std::optional<int64_t>> ReadInt(const Json& object, const char* key, int64_t min,
                                               int64_t max) {
  const Json* value = Find(object, key);
  if (value == nullptr) return std::nullopt;
  const std::optional<int64_t> number = IntegerIn(*value, min, max);
  if (!number.has_value()) {
    return Invalid(key, " is ", Show(*value), ", but must be an integer from ", min, " to ", max);
  }
  return number;
}

absl::StatusOr<int64_t> RequireInt(const Json& object, const char* key, int64_t max) {
  INFLLM_ASSIGN_OR_RETURN(const std::optional<int64_t> number, ReadInt(object, key, 1, max));
  if (!number.has_value()) return Invalid(key, " is missing");
  return *number;
}

absl::StatusOr<std::optional<double>> ReadNumber(const Json& object, const char* key, double min,
                                                 double max) {
  const Json* value = Find(object, key);
  if (value == nullptr) return std::nullopt;
  const double number = value->is_number() ? value->get<double>() : std::nan("");
  if (!(number >= min && number <= max)) {
    return Invalid(key, " is ", Show(*value), ", but must be a number from ", min, " to ", max);
  }
  return number;
}

absl::StatusOr<bool> ReadBool(const Json& object, const char* key, bool otherwise) {
  const Json* value = Find(object, key);
  if (value == nullptr) return otherwise;
  if (!value->is_boolean())
    return Invalid(key, " is ", Show(*value), ", but must be true or false");
  return value->get<bool>();
}

absl::StatusOr<Json> ParseObject(std::string_view text) {
  INFLLM_RETURN_IF_ERROR(CheckJsonDepth(text));
  try {
    Json json = Json::parse(text.begin(), text.end());
    if (!json.is_object()) return Invalid("not a JSON object but ", Show(json));
    return json;
  } catch (const Json::exception& error) {
    return Invalid("not valid JSON: ", Escape(error.what(), 300));
  }
}

absl::StatusOr<const Family*> ReadFamily(const Json& json) {
  constexpr char kSupported[] = "llama, mistral and qwen2 are implemented";
  const Json* type = Find(json, "model_type");
  if (type == nullptr) return Invalid("model_type is missing (", kSupported, ")");
  const Family* family = nullptr;
  for (const Family& candidate : kFamilies) {
    if (type->is_string() && type->get_ref<const std::string&>() == candidate.model_type) {
      family = &candidate;
    }
  }
  if (family == nullptr)
    return Invalid("model_type ", Show(*type), " is unknown (", kSupported, ")");
  // Which head the decoder has: a classifier has the same model_type.
  if (const Json* architectures = Find(json, "architectures"); architectures != nullptr) {
    if (!architectures->is_array() || architectures->size() != 1) {
      return Invalid("architectures is ", Show(*architectures), ", but must be a list of one name");
    }
    const Json& name = architectures->front();
    if (!name.is_string() || name.get_ref<const std::string&>() != family->architecture) {
      return Invalid("architectures is [", Show(name), "], but for model_type ", family->model_type,
                     " only ", family->architecture, " is implemented");
    }
  }
  return family;
}

absl::Status CheckFeatures(const Json& json, const Family& family) {
  for (const Feature& feature : kUnsupportedFeatures) {
    const Json* value = Find(json, feature.key);
    if (value == nullptr) continue;
    const bool neutral =
        feature.neutral == Neutral::kOne
            ? value->is_number() && value->get<double>() == 1
            : feature.neutral == Neutral::kFalseOrZero &&
                  (*value == false || (value->is_number() && value->get<double>() == 0));
    if (!neutral) {
      return Invalid(feature.key, " is ", Show(*value),
                     ": this changes the computation and is not implemented");
    }
  }
  // In Llama it also adds a bias to o_proj; in Mistral there is no such code to be faithful to.
  INFLLM_ASSIGN_OR_RETURN(const bool attention_bias, ReadBool(json, "attention_bias", false));
  if (attention_bias && !family.qkv_bias) {
    return Invalid("attention_bias is true, which is not implemented for ", family.model_type);
  }
  if (const Json* act = Find(json, "hidden_act");
      act != nullptr && *act != "silu" && *act != "swish") {
    return Invalid("hidden_act is ", Show(*act), ", but only \"silu\" is implemented");
  }
  if (const Json* map = Find(json, "auto_map"); map != nullptr && map->is_object()) {
    if (const Json* code = Find(*map, "AutoModelForCausalLM"); code != nullptr) {
      return Invalid("auto_map names ", Show(*code), ": models with code of their own are not run");
    }
  }
  return absl::OkStatus();
}

struct RopeFields {
  std::optional<double> theta;
  double linear_factor = 1;
};

// `rope_scaling`, or `rope_parameters` of transformers >= 5, which holds the base as well.
absl::StatusOr<RopeFields> ReadRopeObject(const Json& json, const char* key) {
  RopeFields fields;
  const Json* rope = Find(json, key);
  if (rope == nullptr) return fields;
  if (!rope->is_object()) return Invalid(key, " is ", Show(*rope), ", but must be an object");
  const auto annotate = [key](const absl::Status& status) {
    return Invalid(key, ".", status.message());
  };
  for (const auto& [name, value] : rope->items()) {
    if (name != "type" && name != "rope_type" && name != "factor" && name != "rope_theta" &&
        name != "partial_rotary_factor" && name != "original_max_position_embeddings") {
      return Invalid(key, " has a field ", Quote(name), " with value ", Show(value),
                     ", which is not implemented");
    }
  }
  const Json* type = Find(*rope, "rope_type");
  const Json* old_type = Find(*rope, "type");
  if (type != nullptr && old_type != nullptr && *type != *old_type) {
    return Invalid(key, ".type is ", Show(*old_type), ", but ", key, ".rope_type is ", Show(*type));
  }
  if (type == nullptr) type = old_type;
  const bool linear = type != nullptr && *type == "linear";
  if (type == nullptr ? std::string_view(key) == "rope_scaling" : !linear && *type != "default") {
    return Invalid(key, ".rope_type is ", type == nullptr ? "missing" : Show(*type),
                   "; only \"default\" and \"linear\" are implemented");
  }
  if (const Json* part = Find(*rope, "partial_rotary_factor"); part != nullptr && *part != 1) {
    return Invalid(key, ".partial_rotary_factor is ", Show(*part), ", but only 1 is implemented");
  }
  const auto theta = ReadNumber(*rope, "rope_theta", 1, kMaxRopeTheta);
  if (!theta.ok()) return annotate(theta.status());
  fields.theta = *theta;
  if (linear) {
    const auto factor = ReadNumber(*rope, "factor", 1, kMaxRopeFactor);
    if (!factor.ok()) return annotate(factor.status());
    if (!factor->has_value()) return Invalid(key, ".factor is missing");
    fields.linear_factor = **factor;
  }
  return fields;
}

absl::Status ReadRope(const Json& json, ModelConfig& config) {
  INFLLM_ASSIGN_OR_RETURN(const RopeFields scaling, ReadRopeObject(json, "rope_scaling"));
  INFLLM_ASSIGN_OR_RETURN(const RopeFields parameters, ReadRopeObject(json, "rope_parameters"));
  INFLLM_ASSIGN_OR_RETURN(const std::optional<double> theta,
                          ReadNumber(json, "rope_theta", 1, kMaxRopeTheta));
  for (const std::optional<double>& other : {scaling.theta, parameters.theta}) {
    if (theta.has_value() && other.has_value() && *theta != *other) {
      return Invalid("rope_theta is ", *theta, ", but rope_parameters say ", *other);
    }
  }
  const bool has_both =
      Find(json, "rope_scaling") != nullptr && Find(json, "rope_parameters") != nullptr;
  const bool thetas_differ = scaling.theta.has_value() && parameters.theta.has_value() &&
                             *scaling.theta != *parameters.theta;
  if (has_both && (scaling.linear_factor != parameters.linear_factor || thetas_differ)) {
    return Invalid("rope_scaling and rope_parameters differ; remove one of them");
  }
  config.rope_theta =
      theta.value_or(parameters.theta.value_or(scaling.theta.value_or(config.rope_theta)));
  config.rope_linear_factor = std::max(scaling.linear_factor, parameters.linear_factor);
  return absl::OkStatus();
}

absl::Status ReadSlidingWindow(const Json& json, const Family& family, ModelConfig& config) {
  INFLLM_ASSIGN_OR_RETURN(std::optional<int64_t> window,
                          ReadInt(json, "sliding_window", 1, kMaxPositions));
  // A field that is there and null means no window; one that is absent, the family's default.
  if (!json.contains("sliding_window")) window = family.sliding_window;
  if (config.model_type == "llama" && window.has_value()) {
    return Invalid("sliding_window is ", *window,
                   ", which llama models do not have; set it to null if the model was trained "
                   "without one");
  }
  if (config.model_type == "qwen2") {
    INFLLM_ASSIGN_OR_RETURN(const bool use, ReadBool(json, "use_sliding_window", false));
    if (!use) window.reset();
    INFLLM_ASSIGN_OR_RETURN(const std::optional<int64_t> full_layers,
                            ReadInt(json, "max_window_layers", 0, kMaxPositions));
    // From which layer on there is a window, and whether it is "from" or "up to", differs between
    // releases of transformers.
    if (window.has_value() && full_layers.value_or(28) != 0) {
      return Invalid("use_sliding_window is true with max_window_layers ", full_layers.value_or(28),
                     ": layers with and without a window are not implemented; only "
                     "max_window_layers 0, or use_sliding_window false");
    }
  }
  config.sliding_window = window;

  const Json* types = Find(json, "layer_types");
  if (types == nullptr) return absl::OkStatus();
  const char* expected = window.has_value() ? "sliding_attention" : "full_attention";
  if (!types->is_array() || types->size() != static_cast<size_t>(config.layers)) {
    return Invalid("layer_types is ", Show(*types),
                   ", but must be an array of num_hidden_layers = ", config.layers);
  }
  for (const Json& type : *types) {
    if (type != expected) {
      return Invalid("layer_types has ", Show(type), ", but sliding_window makes every layer \"",
                     expected, "\"; mixing is not implemented");
    }
  }
  return absl::OkStatus();
}

// Token ids of a field that holds one or several.
absl::StatusOr<std::vector<int32_t>> ReadIds(const Json& value, const char* key, int64_t vocab) {
  std::vector<int32_t> ids;
  const auto add = [&](const Json& id) -> absl::Status {
    const std::optional<int64_t> number = IntegerIn(id, 0, vocab - 1);
    if (!number.has_value()) {
      return Invalid(key, " is ", Show(id), ", but must be an integer from 0 to ", vocab - 1,
                     " (vocab_size - 1)");
    }
    ids.push_back(static_cast<int32_t>(*number));
    return absl::OkStatus();
  };
  if (!value.is_array()) {
    INFLLM_RETURN_IF_ERROR(add(value));
    return ids;
  }
  for (const Json& id : value) INFLLM_RETURN_IF_ERROR(add(id));
  return ids;
}

// Sets the ids that `json` gives; leaves the others.
absl::Status ReadTokenIds(const Json& json, ModelConfig& config) {
  if (const Json* bos = Find(json, "bos_token_id"); bos != nullptr) {
    INFLLM_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                            ReadIds(*bos, "bos_token_id", config.vocab_size));
    if (ids.size() != 1) return Invalid("bos_token_id is ", Show(*bos), ", but must be one id");
    config.bos_id = ids[0];
  }
  if (const Json* eos = Find(json, "eos_token_id"); eos != nullptr) {
    INFLLM_ASSIGN_OR_RETURN(config.eos_ids, ReadIds(*eos, "eos_token_id", config.vocab_size));
  }
  return absl::OkStatus();
}

absl::Status ReadShape(const Json& json, const Family& family, ModelConfig& config) {
  INFLLM_ASSIGN_OR_RETURN(config.hidden_size, RequireInt(json, "hidden_size", kMaxHidden));
  INFLLM_ASSIGN_OR_RETURN(config.intermediate_size,
                          RequireInt(json, "intermediate_size", kMaxIntermediate));
  INFLLM_ASSIGN_OR_RETURN(config.layers, RequireInt(json, "num_hidden_layers", kMaxLayers));
  INFLLM_ASSIGN_OR_RETURN(config.q_heads, RequireInt(json, "num_attention_heads", kMaxHeads));
  INFLLM_ASSIGN_OR_RETURN(config.vocab_size, RequireInt(json, "vocab_size", kMaxVocab));
  INFLLM_ASSIGN_OR_RETURN(const std::optional<int64_t> positions,
                          ReadInt(json, "max_position_embeddings", 1, kMaxPositions));
  config.max_position_embeddings = positions.value_or(0);

  INFLLM_ASSIGN_OR_RETURN(const std::optional<int64_t> kv_heads,
                          ReadInt(json, "num_key_value_heads", 1, kMaxHeads));
  const bool by_default = !json.contains("num_key_value_heads") && family.kv_heads.has_value();
  config.kv_heads = by_default ? *family.kv_heads : kv_heads.value_or(config.q_heads);
  if (config.q_heads % config.kv_heads != 0) {
    return Invalid("num_attention_heads = ", config.q_heads,
                   " is not a multiple of num_key_value_heads = ", config.kv_heads,
                   by_default ? " (the default of this model_type)" : "");
  }
  INFLLM_ASSIGN_OR_RETURN(const std::optional<int64_t> head_dim,
                          ReadInt(json, "head_dim", 2, kMaxHeadDim));
  if (!head_dim.has_value() && config.hidden_size % config.q_heads != 0) {
    return Invalid("hidden_size = ", config.hidden_size,
                   " is not a multiple of num_attention_heads = ", config.q_heads,
                   ", and there is no head_dim");
  }
  config.head_dim = head_dim.value_or(config.hidden_size / config.q_heads);
  if (config.head_dim % 2 != 0 || config.head_dim > kMaxHeadDim) {
    return Invalid("head_dim is ", config.head_dim, ", but must be even and at most ", kMaxHeadDim,
                   ": rotary embedding turns pairs");
  }
  return absl::OkStatus();
}

absl::StatusOr<Json> LoadObject(const std::string& path) {
  INFLLM_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxFileBytes));
  absl::StatusOr<Json> json = ParseObject(text);
  if (!json.ok()) return Invalid(path, ": ", json.status().message());
  return json;
}

absl::StatusOr<ModelConfig> FromJson(const Json& json) {
  INFLLM_ASSIGN_OR_RETURN(const Family* family, ReadFamily(json));
  INFLLM_RETURN_IF_ERROR(CheckFeatures(json, *family));
  ModelConfig config;
  config.model_type = family->model_type;
  config.qkv_bias = family->qkv_bias;
  INFLLM_RETURN_IF_ERROR(ReadShape(json, *family, config));
  INFLLM_ASSIGN_OR_RETURN(const std::optional<double> eps, ReadNumber(json, "rms_norm_eps", 0, 1));
  config.rms_norm_eps = static_cast<float>(eps.value_or(1e-6));
  INFLLM_ASSIGN_OR_RETURN(config.tied_embeddings, ReadBool(json, "tie_word_embeddings", false));
  INFLLM_RETURN_IF_ERROR(ReadRope(json, config));
  INFLLM_RETURN_IF_ERROR(ReadSlidingWindow(json, *family, config));
  if (!json.contains("bos_token_id") && family->bos_id < config.vocab_size) {
    config.bos_id = family->bos_id;
  }
  if (!json.contains("eos_token_id") && family->eos_id.has_value() &&
      *family->eos_id < config.vocab_size) {
    config.eos_ids = {*family->eos_id};
  }
  INFLLM_RETURN_IF_ERROR(ReadTokenIds(json, config));
  return config;
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json) {
  INFLLM_ASSIGN_OR_RETURN(const Json object, ParseObject(json));
  return FromJson(object);
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& directory) {
  const std::string path = directory + "/config.json";
  INFLLM_ASSIGN_OR_RETURN(const Json json, LoadObject(path));
  absl::StatusOr<ModelConfig> config = FromJson(json);
  if (!config.ok()) return Invalid(path, ": ", config.status().message());

  const std::string generation_path = directory + "/generation_config.json";
  const absl::StatusOr<Json> generation = LoadObject(generation_path);
  if (absl::IsNotFound(generation.status())) return config;
  INFLLM_RETURN_IF_ERROR(generation.status());
  const absl::Status read = ReadTokenIds(*generation, *config);
  if (!read.ok()) return Invalid(generation_path, ": ", read.message());
  return config;
}

}  // namespace infllm::worker
