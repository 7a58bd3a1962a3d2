#include "services/eval/run/full_attention_cost.h"

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

absl::StatusOr<double> EstimateReadingSeconds(ModelRuntime& model, worker::AttentionPolicy& policy,
                                              int64_t tokens) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::seconds kEnough{1};
  INFLLM_ASSIGN_OR_RETURN(const auto session, worker::Session::New(*model.transformer, policy));
  const int64_t chunk = session->chunk_tokens();
  const std::vector<int32_t> ids(static_cast<size_t>(chunk), 0);
  INFLLM_RETURN_IF_ERROR(session->Ingest(ids));  // warms up; not measured
  const Clock::time_point start = Clock::now();
  while (session->position() == chunk ||
         (Clock::now() - start < kEnough && session->position() < tokens)) {
    INFLLM_RETURN_IF_ERROR(session->Ingest(ids));
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  const worker::ModelConfig& config = model.model->config;
  return seconds * Operations(config, tokens) /
         (Operations(config, session->position()) - Operations(config, chunk));
}

}  // namespace infllm::services
