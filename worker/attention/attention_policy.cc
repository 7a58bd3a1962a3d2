#include "worker/attention/attention_policy.h"

#include <cmath>
#include <utility>
#include <vector>

#include "kernels/core/status_macros.h"
#include "worker/attention/policies.h"
#include "worker/attention/rope.h"

namespace infllm::worker {
namespace {

class Policy final : public AttentionPolicy {
 public:
  explicit Policy(PolicyContext context) : context_(std::move(context)) {}
  absl::StatusOr<std::unique_ptr<AttentionState>> NewState() override {
    return context_.options.policy == PolicyKind::kInfLlm ? NewInfLlmState(context_)
                                                          : NewWindowedState(context_);
  }
  const AttentionOptions& options() const override { return context_.options; }

 private:
  const PolicyContext context_;
};

// Far keys of infllm and lm-infinite are un-rotated, so a query at this position sees them at this
// distance. Those of streaming-llm keep the rotation of their place in the cache, 0..n_init-1, and
// the query stands at the cache's end.
int64_t FarQueryPosition(const AttentionOptions& options) {
  return options.policy == PolicyKind::kStreamingLlm ? options.n_local + options.n_init - 1
                                                     : options.n_local - 1;
}

}  // namespace

absl::StatusOr<std::unique_ptr<AttentionPolicy>> NewAttentionPolicy(
    const ModelConfig& model, const AttentionOptions& options, kernels::DType kv_dtype,
    const memstore::Fingerprint& fingerprint, kernels::Backend& backend,
    memstore::MemoryStore* store) {
  INFLLM_RETURN_IF_ERROR(options.Validate(model));
  if (options.policy == PolicyKind::kInfLlm && store == nullptr) {
    return absl::InvalidArgumentError("policy infllm needs a memory store");
  }
  PolicyContext context{.model = model,
                        .options = options,
                        .kv_dtype = kv_dtype,
                        .fingerprint = fingerprint,
                        .backend = &backend,
                        .store = store,
                        .rope = Rope(model, options),
                        .scale = 1.0f / std::sqrt(static_cast<float>(model.head_dim)),
                        .far_angle = {}};
  if (options.policy != PolicyKind::kFull) {
    std::vector<float> row(static_cast<size_t>(model.head_dim));
    context.rope.Fill(FarQueryPosition(options), row);
    INFLLM_ASSIGN_OR_RETURN(context.far_angle, backend.Allocate(row.size() * sizeof(float)));
    INFLLM_RETURN_IF_ERROR(
        backend.Upload(context.far_angle.data(), row.data(), row.size() * sizeof(float)));
  }
  return std::make_unique<Policy>(std::move(context));
}

}  // namespace infllm::worker
