#include "services/eval/run/full_attention_cost.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels/core/status_macros.h"

namespace infllm::services {
namespace {

// Multiplications and additions of a forward pass over tokens [0, n): the linear layers, and q k'
// and p v over all earlier tokens.
double Operations(const worker::ModelConfig& model, int64_t n) {
  const double q = static_cast<double>(model.q_heads * model.head_dim);
  const double kv = static_cast<double>(model.kv_heads * model.head_dim);
  const double hidden = static_cast<double>(model.hidden_size);
  const double layers = static_cast<double>(model.layers);
  const double weights =
      layers * hidden * (2 * q + 2 * kv + 3 * static_cast<double>(model.intermediate_size));
  const double tokens = static_cast<double>(n);
  return 2 * weights * tokens + 2 * layers * q * tokens * tokens;
}

}  // namespace

int64_t KvBytes(const worker::ModelConfig& model, kernels::DType dtype, int64_t tokens) {
  return 2 * model.layers * model.kv_heads * model.head_dim *
         static_cast<int64_t>(kernels::SizeOf(dtype)) * tokens;
}

absl::StatusOr<double> EstimateReadingSeconds(worker::ModelRuntime& model, worker::Engine& engine,
                                              int64_t tokens) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::seconds kEnough{1};
  const worker::ModelConfig& config = model.model->config;
  const int64_t exec_block = engine.attention().exec_block;
  const int64_t chunk = std::max<int64_t>(512 / exec_block, 1) * exec_block;
  const std::vector<int32_t> ids(static_cast<size_t>(chunk), 0);
  INFLLM_ASSIGN_OR_RETURN(const worker::SequenceId sequence, engine.NewSequence());
  absl::Status status;
  const auto read = [&] {
    worker::StepItem item{.sequence = sequence, .tokens = ids};
    status.Update(engine.Step({&item, 1}));
    status.Update(item.status);
  };
  read();  // warms up; not measured
  const Clock::time_point start = Clock::now();
  while (status.ok() && (engine.position(sequence) == chunk ||
                         (Clock::now() - start < kEnough && engine.position(sequence) < tokens))) {
    read();
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  const int64_t position = engine.position(sequence);
  engine.Drop(sequence);
  INFLLM_RETURN_IF_ERROR(status);
  return seconds * Operations(config, tokens) /
         (Operations(config, position) - Operations(config, chunk));
}

}  // namespace infllm::services
