#include "services/runtime/presets.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "worker/model/json_depth.h"
#include "worker/model/read_file.h"

namespace infllm::services {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMaxFileBytes = 1 << 20;

// What the paper and its code say of one model: sizes as given, everything else as published.
MethodSettings Paper(const char* n_local, const char* top_k, const char* cache_blocks) {
  return {{"n-init", "128"},
          {"n-local", n_local},
          {"block-tokens", "128"},
          {"top-k", top_k},
          {"repr-top-k", "4"},
          {"exec-block", "512"},
          {"cache-blocks", cache_blocks},
          {"scoring", "mean"},
          {"representatives", "mean-key"}};
}

absl::StatusOr<MethodSettings> Recommended(const std::string& model) {
  if (model.empty()) return MethodSettings();
  const std::string path = std::filesystem::path(model) / "infllm.json";
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return MethodSettings();
  const absl::StatusOr<std::string> text = worker::ReadFile(path, kMaxFileBytes);
  INFLLM_RETURN_IF_ERROR(text.status());
  const auto bad = [&](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": ", what,
        R"(; expected {"method": {"n-local": 256, ...}}. Use --preset none to ignore it)"));
  };
  if (const absl::Status depth = worker::CheckJsonDepth(*text); !depth.ok()) {
    return bad(std::string(depth.message()));
  }
  const Json json = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return bad("is not a JSON object");
  if (!json.contains("method") || !json["method"].is_object())
    return bad("has no object \"method\"");
  MethodSettings settings;
  for (const auto& [flag, value] : json["method"].items()) {
    if (!value.is_string() && !value.is_number()) {
      return bad(absl::StrCat("\"", flag, "\" is neither a string nor a number"));
    }
    settings.emplace_back(flag, value.is_string() ? value.get<std::string>() : value.dump());
  }
  return settings;
}

}  // namespace

std::span<const Preset> Presets() {
  // InfLLM's config/*.yaml; the -infinitebench ones are the paper's sec. 4.2 (96 and 32 units).
  static const std::vector<Preset> presets = {
      {"paper-mistral", "Mistral-7B, Llama 3, Qwen 1.5 as published", Paper("4096", "16", "32")},
      {"paper-mistral-12k", "Mistral-7B with 12K tokens in attention", Paper("4096", "64", "64")},
      {"paper-mistral-infinitebench", "Mistral-7B of Table 1", Paper("4096", "96", "96")},
      {"paper-llama-3-infinitebench", "Llama-3-8B of Table 1", Paper("4096", "32", "32")},
      {"paper-vicuna", "Vicuna-7B, MiniCPM-2B as published", Paper("2048", "16", "32")},
  };
  return presets;
}

absl::StatusOr<MethodSettings> FindPreset(std::string_view name, const std::string& model) {
  if (name == "none") return MethodSettings();
  if (name == "auto") return Recommended(model);
  std::string names = "auto, none";
  for (const Preset& preset : Presets()) {
    if (preset.name == name) return preset.settings;
    absl::StrAppend(&names, ", ", std::string(preset.name));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("there is no preset ", std::string(name), "; there are ", names));
}

}  // namespace infllm::services
