// The options of the attention policies as flags of a benchmark.
#pragma once

#include "worker/attention/attention_options.h"

namespace CLI {
class App;
}

namespace infllm::bench {

// `options` holds the defaults, and must outlive `app`.
void AddMethodFlags(CLI::App& app, worker::AttentionOptions& options);

}  // namespace infllm::bench
