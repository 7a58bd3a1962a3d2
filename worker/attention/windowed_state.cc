#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/core/status_macros.h"
#include "worker/attention/layer_window.h"
#include "worker/attention/policies.h"
#include "worker/attention/rotation.h"

namespace infllm::worker {
namespace {

// Granularity in which tokens that left the window are given back.
constexpr int64_t kPageTokens = 128;
// Beyond any position, yet safe to add to one.
constexpr int64_t kUnbounded = std::numeric_limits<int64_t>::max() / 4;

class WindowedState final : public AttentionState {
 public:
  explicit WindowedState(const PolicyContext& context)
      : context_(context),
        window_(context.options.policy == PolicyKind::kFull
                    ? context.model.sliding_window.value_or(kUnbounded)
                    : context.options.n_local),
        n_init_(context.options.policy == PolicyKind::kFull ? 0 : context.options.n_init) {
    const LayerWindow::Shape shape{.sink_tokens = n_init_,
                                   .page_tokens = kPageTokens,
                                   .q_heads = context.model.q_heads,
                                   .kv_heads = context.model.kv_heads,
                                   .head_dim = context.model.head_dim,
                                   .dtype = context.kv_dtype,
                                   .raw_sinks = context.options.policy == PolicyKind::kLmInfinite};
    for (int64_t i = 0; i < context.model.layers; ++i) {
      layers_.emplace_back(*context.backend, shape);
    }
  }

  absl::Status Attend(const AttentionInput& input, AttentionScratch& scratch) override {
    LayerWindow& layer = layers_[input.layer];
    INFLLM_CHECK(input.first_position == layer.tokens());
    const int64_t end = input.first_position + input.tokens;
    // Positions below far_end are out of the window of at least the last query.
    const int64_t far_end = n_init_ == 0 ? 0 : std::min(n_init_, end - window_);
    INFLLM_RETURN_IF_ERROR(RotateInput(
        *context_.backend, context_.rope, far_end > 0 ? context_.far_angle.as<float>() : nullptr,
        context_.model.q_heads, context_.model.kv_heads, input, scratch));
    INFLLM_RETURN_IF_ERROR(
        layer.Append(input.k, scratch.k_near.as<float>(), input.v, input.tokens));

    near_.clear();
    far_.clear();
    layer.AddSegments(input.first_position - window_ + 1, end, LayerWindow::Keys::kRotated, false,
                      near_);
    if (far_end > 0) {
      // Sinks are the first tokens, so their own rotation is that of their place in the cache.
      const auto keys = context_.options.policy == PolicyKind::kLmInfinite
                            ? LayerWindow::Keys::kRaw
                            : LayerWindow::Keys::kRotated;
      layer.AddSegments(0, far_end, keys, false, far_);
    }
    INFLLM_RETURN_IF_ERROR(context_.backend->Attention({.q_near = scratch.q_near.as<float>(),
                                                        .q_far = scratch.q_far.as<float>(),
                                                        .out = input.out,
                                                        .near = near_,
                                                        .far = far_,
                                                        .tokens = input.tokens,
                                                        .q_heads = context_.model.q_heads,
                                                        .kv_heads = context_.model.kv_heads,
                                                        .head_dim = context_.model.head_dim,
                                                        .first_position = input.first_position,
                                                        .window = window_,
                                                        .scale = context_.scale,
                                                        .kv_dtype = context_.kv_dtype}));
    // The next query, at `end`, sees no further back than end - window + 1.
    const int64_t dead_tokens = end - window_ + 1 - n_init_;
    if (dead_tokens > 0) layer.DropPagesBefore(dead_tokens / kPageTokens);
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<AttentionState>> Fork() override {
    auto fork = std::make_unique<WindowedState>(context_);
    for (size_t i = 0; i < layers_.size(); ++i) {
      INFLLM_ASSIGN_OR_RETURN(fork->layers_[i], layers_[i].Fork());
    }
    return fork;
  }

  AttentionStats stats() const override {
    AttentionStats stats;
    for (const LayerWindow& layer : layers_) stats.device_bytes += layer.size_bytes();
    return stats;
  }
  void set_observer(SelectionObserver) override {}  // nothing is ever selected

 private:
  const PolicyContext& context_;
  const int64_t window_;
  const int64_t n_init_;
  std::vector<LayerWindow> layers_;
  std::vector<kernels::KvSegment> near_, far_;  // reused between calls
};

}  // namespace

absl::StatusOr<std::unique_ptr<AttentionState>> NewWindowedState(const PolicyContext& context) {
  return std::make_unique<WindowedState>(context);
}

}  // namespace infllm::worker
