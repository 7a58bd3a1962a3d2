// The attention configurations of an evaluation, made from its flags.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "services/eval/run/record_log.h"
#include "services/runtime/flags.h"

namespace infllm::services {

struct ConfigurationChoice {
  // "full", "pi", "ntk" (full attention with linear or NTK-aware scaled RoPE), "lm-infinite",
  // "streaming-llm", "infllm".
  std::vector<std::string> policies;
  std::vector<std::string> scorings;  // of infllm
  // "FLAG=V1,V2": each value of a flag of the method, with each of the others.
  std::vector<std::string> vary;
  bool rope_factor_given = false;
};

struct AttentionConfiguration {
  std::string name;  // "full", "infllm/head-vote", "infllm/mean/top-k=16"
  RuntimeFlags flags;
  bool rope_factor_of_length = false;  // length / trained length, where RoPE is scaled at all
  Settings settings;                   // the options of the method that matter to it
};

std::vector<std::string> PolicyNames();

// The cross product. Flags that do nothing for a policy (top-k for lm-infinite) do not multiply it.
// INVALID_ARGUMENT names the policy, scoring or --vary that is wrong.
absl::StatusOr<std::vector<AttentionConfiguration>> MakeConfigurations(
    const RuntimeFlags& base, const ConfigurationChoice& choice);

// The flags at `length`, for a model trained on texts of `trained_length` tokens (0: not known).
absl::StatusOr<RuntimeFlags> FlagsAtLength(const AttentionConfiguration& configuration,
                                           int64_t length, int64_t trained_length);

// "4096", "64K", "1M": K is 1024.
absl::StatusOr<int64_t> ParseLength(std::string_view text);
// "0:100:10" (first, last, step) or "0,50,100", in percent; as shares, ascending.
absl::StatusOr<std::vector<double>> ParseDepths(std::string_view text);

}  // namespace infllm::services
