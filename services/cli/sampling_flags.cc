#include "services/cli/sampling_flags.h"

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

#include "absl/strings/numbers.h"

namespace infllm::services {

void AddSamplingFlags(CLI::App& command, SamplingFlags& flags, int64_t default_max_tokens) {
  flags.max_tokens = default_max_tokens;
  const auto number = [&](const char* name, auto& value, const char* help) {
    return command.add_option(name, value, help)->capture_default_str()->group("Sampling");
  };
  number("--max-tokens", flags.max_tokens, "tokens to generate at most")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 32));
  number("--temperature", flags.options.temperature, "0 takes the likeliest token each time");
  number("--top-k-sampling", flags.options.top_k, "sample among the k likeliest tokens; 0 is all");
  number("--top-p", flags.options.top_p,
         "sample among the likeliest tokens of this total probability");
  number("--seed", flags.options.seed, "of the random numbers; the same seed gives the same text")
      ->check([](const std::string& text) {  // CLI11 would wrap what does not fit
        uint64_t seed = 0;
        return std::string(absl::SimpleAtoi(text, &seed) ? ""
                                                         : "must be a number from 0 to 2^64 - 1");
      });
}

}  // namespace infllm::services
