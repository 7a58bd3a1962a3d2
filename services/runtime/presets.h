// Named settings of the method's flags: the paper's, and what a model's directory recommends.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace infllm::services {

// Options of worker/attention/option_table.h by name, and their values.
using MethodSettings = std::vector<std::pair<std::string, std::string>>;

struct Preset {
  std::string_view name;
  std::string_view summary;
  MethodSettings settings;
};
std::span<const Preset> Presets();

// The settings of a preset: `auto` is the file infllm.json of the model directory, if there is one
// ({"method": {"n-local": 256, ...}}), else nothing; `none` is nothing.
//   INVALID_ARGUMENT  no such preset, or the file is not of that form
absl::StatusOr<MethodSettings> FindPreset(std::string_view name, const std::string& model);

}  // namespace infllm::services
