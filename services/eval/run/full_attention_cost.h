// What full attention over a long text would cost here.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "services/runtime/runtime.h"

namespace infllm::services {

// Keys and values of `tokens` tokens.
int64_t KvBytes(const worker::ModelConfig& model, kernels::DType dtype, int64_t tokens);

// Seconds to read `tokens` tokens. Reads for about a second with `engine`, which must attend in
// full, and extrapolates by the number of operations.
absl::StatusOr<double> EstimateReadingSeconds(worker::ModelRuntime& model, worker::Engine& engine,
                                              int64_t tokens);

}  // namespace infllm::services
