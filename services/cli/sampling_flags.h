#pragma once

#include <cstdint>

#include "worker/engine/sampler.h"

namespace CLI {
class App;
}

namespace infllm::services {

struct SamplingFlags {
  int64_t max_tokens = 0;
  worker::SamplingOptions options;
};

// Binds --max-tokens, --temperature, --top-k-sampling, --top-p and --seed.
void AddSamplingFlags(CLI::App& command, SamplingFlags& flags, int64_t default_max_tokens);

}  // namespace infllm::services
