#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/core/status_macros.h"
#include "worker/attention/block_cache.h"
#include "worker/attention/layer_window.h"
#include "worker/attention/policies.h"
#include "worker/attention/rotation.h"

namespace infllm::worker {
namespace {

using kernels::RepresentativeKind;
using memstore::Selection;

// One step of a layer, for each exec block of m queries that ends at position T (paper sec. 3):
//   1. retrieve the top_k published blocks for the mean far query;
//   2. attend sinks, retrieved blocks, remainder and window in one softmax; tokens of the window
//      collect the probability they draw;
//   3. publish each block whose tokens have all left the window of the next query: its end is at
//      or before T - n_local. Its representative is made of the keys that drew most, or bounds all.
// Payloads go to the store as soon as a page is full, long before it is published.
class InfLlmState final : public AttentionState {
 public:
  InfLlmState(const PolicyContext& context, memstore::ContextId id)
      : context_(context), options_(context.options), id_(id) {
    const LayerWindow::Shape shape{.sink_tokens = options_.n_init,
                                   .page_tokens = options_.block_tokens,
                                   .q_heads = context.model.q_heads,
                                   .kv_heads = context.model.kv_heads,
                                   .head_dim = context.model.head_dim,
                                   .dtype = context.kv_dtype,
                                   .raw_pages = true,
                                   .raw_sinks = true,
                                   .mass = options_.representative != RepresentativeKind::kBounds};
    for (int64_t i = 0; i < context.model.layers; ++i) {
      layers_.push_back(
          {.window = LayerWindow(*context.backend, shape),
           .cache = BlockCache(*context.backend, {.capacity_blocks = options_.cache_blocks,
                                                  .policy = options_.cache_policy,
                                                  .decay = options_.score_decay})});
    }
  }
  ~InfLlmState() override {
    layers_.clear();  // its pins go first, so that Drop can free everything
    context_.store->Drop(id_).IgnoreError();
  }

  absl::Status Attend(const AttentionInput& input, AttentionScratch& scratch) override {
    Layer& layer = layers_[input.layer];
    INFLLM_CHECK(input.first_position == layer.window.tokens());
    INFLLM_RETURN_IF_ERROR(RotateInput(backend(), context_.rope, context_.far_angle.as<float>(),
                                       context_.model.q_heads, context_.model.kv_heads, input,
                                       scratch));
    INFLLM_RETURN_IF_ERROR(
        layer.window.Append(input.k, scratch.k_near.as<float>(), input.v, input.tokens));
    for (int64_t begin = 0; begin < input.tokens; begin += options_.exec_block) {
      const int64_t count = std::min(options_.exec_block, input.tokens - begin);
      INFLLM_RETURN_IF_ERROR(AttendExecBlock(layer, input, begin, count, scratch));
      INFLLM_RETURN_IF_ERROR(
          PublishBlocks(layer, input.layer, input.first_position + begin + count));
    }
    return StorePages(layer, input.layer);
  }

  absl::StatusOr<std::unique_ptr<AttentionState>> Fork() override {
    INFLLM_ASSIGN_OR_RETURN(const memstore::ContextId id, context_.store->Fork(id_));
    auto fork = std::make_unique<InfLlmState>(context_, id);
    for (size_t i = 0; i < layers_.size(); ++i) {
      INFLLM_ASSIGN_OR_RETURN(fork->layers_[i].window, layers_[i].window.Fork());
      fork->layers_[i].cache = layers_[i].cache.Fork();
      fork->layers_[i].stored_blocks = layers_[i].stored_blocks;
    }
    return fork;
  }

  AttentionStats stats() const override {
    AttentionStats stats = stats_;
    for (const Layer& layer : layers_) {
      stats.blocks = layer.window.first_page();
      stats.device_bytes += layer.window.size_bytes() + layer.cache.size_bytes();
    }
    return stats;
  }
  void set_observer(SelectionObserver observer) override { observer_ = std::move(observer); }

 private:
  struct Layer {
    LayerWindow window;  // its dropped pages are exactly the published blocks
    BlockCache cache;
    int64_t stored_blocks = 0;
  };

  kernels::Backend& backend() { return *context_.backend; }

  absl::Status AttendExecBlock(Layer& layer, const AttentionInput& input, int64_t begin,
                               int64_t count, AttentionScratch& scratch) {
    const int64_t q_row = context_.model.q_heads * context_.model.head_dim;
    const int64_t position = input.first_position + begin;
    const int64_t end = position + count;
    const float* q_near = scratch.q_near.as<float>() + begin * q_row;
    const float* q_far = scratch.q_far.as<float>() + begin * q_row;

    Selection selection;
    records_.clear();
    if (layer.window.first_page() > 0 && options_.top_k > 0) {
      INFLLM_ASSIGN_OR_RETURN(selection, Retrieve(layer, input.layer, position, q_far, count));
    }
    near_.clear();
    layer.window.AddSegments(position - options_.n_local + 1, end, LayerWindow::Keys::kRotated,
                             true, near_);
    CollectFar(layer.window, selection, end);
    const bool track_mass =
        options_.cache_policy == CachePolicy::kLruS && !selection.blocks.empty();
    if (track_mass) {
      const size_t bytes = far_.size() * sizeof(float);
      INFLLM_RETURN_IF_ERROR(Reserve(backend(), bytes, far_mass_));
      INFLLM_RETURN_IF_ERROR(backend().Zero(far_mass_.data(), bytes));
    }
    INFLLM_RETURN_IF_ERROR(
        backend().Attention({.q_near = q_near,
                             .q_far = q_far,
                             .out = input.out + begin * q_row,
                             .near = near_,
                             .far = far_,
                             .far_segment_mass = track_mass ? far_mass_.as<float>() : nullptr,
                             .tokens = count,
                             .q_heads = context_.model.q_heads,
                             .kv_heads = context_.model.kv_heads,
                             .head_dim = context_.model.head_dim,
                             .first_position = position,
                             .window = options_.n_local,
                             .scale = context_.scale,
                             .kv_dtype = context_.kv_dtype,
                             .far_unmasked = options_.compat_reference}));
    if (track_mass) {
      host_mass_.resize(far_.size());
      INFLLM_RETURN_IF_ERROR(backend().Download(host_mass_.data(), far_mass_.data(),
                                                host_mass_.size() * sizeof(float)));
      layer.cache.Score(selection, std::span(host_mass_).last(selection.blocks.size()));
    }
    return absl::OkStatus();
  }

  // far_: sinks and remainder as far as they have left the window of the last query, which is
  // before position `end`; then the selected blocks, whose bytes are records_. All keys are raw.
  void CollectFar(const LayerWindow& window, const Selection& selection, int64_t end) {
    const int64_t heads = context_.model.kv_heads, tokens = options_.block_tokens;
    const int64_t head_stride = tokens * context_.model.head_dim;
    const size_t values = static_cast<size_t>(heads * head_stride) * SizeOf(context_.kv_dtype);
    far_.clear();
    window.AddSegments(0, end - options_.n_local, LayerWindow::Keys::kRaw, false, far_);
    for (size_t i = 0; i < selection.blocks.size(); ++i) {
      far_.push_back({.k = records_[i],
                      .v = records_[i] + values,
                      .head_stride = head_stride,
                      .position = window.page_begin(selection.blocks[i].index),
                      .tokens = tokens});
    }
  }

  // Selects blocks for the mean of `count` queries, and admits them to the cache: records_.
  absl::StatusOr<Selection> Retrieve(Layer& layer, int64_t layer_index, int64_t position,
                                     const float* q_far, int64_t count) {
    host_query_.resize(static_cast<size_t>(context_.model.q_heads * context_.model.head_dim));
    const size_t bytes = host_query_.size() * sizeof(float);
    INFLLM_RETURN_IF_ERROR(Reserve(backend(), bytes, mean_query_));
    INFLLM_RETURN_IF_ERROR(backend().MeanQuery({.q = q_far,
                                                .out = mean_query_.as<float>(),
                                                .tokens = count,
                                                .q_heads = context_.model.q_heads,
                                                .head_dim = context_.model.head_dim}));
    INFLLM_RETURN_IF_ERROR(backend().Download(host_query_.data(), mean_query_.data(), bytes));
    INFLLM_ASSIGN_OR_RETURN(Selection selection,
                            context_.store->Select(id_, static_cast<int32_t>(layer_index),
                                                   {.query = host_query_,
                                                    .k = static_cast<int32_t>(options_.top_k),
                                                    .scoring = options_.scoring,
                                                    .have = layer.cache.indices()}));
    ++stats_.selections;
    for (const memstore::SelectedBlock& block : selection.blocks) {
      ++(block.block ? stats_.cache_misses : stats_.cache_hits);
    }
    INFLLM_RETURN_IF_ERROR(layer.cache.Admit(selection, records_));
    if (observer_) observer_(layer_index, position, selection.blocks);
    return selection;
  }

  // Publishes the blocks that the query at position `next` no longer has in its window.
  absl::Status PublishBlocks(Layer& layer, int64_t layer_index, int64_t next) {
    const int64_t first = layer.window.first_page();
    const int64_t past = next - options_.n_local - options_.n_init;
    const int64_t count = (past < 0 ? 0 : past / options_.block_tokens) - first;
    if (count <= 0) return absl::OkStatus();
    // A chunk longer than the window publishes blocks that it has itself brought.
    if (layer.stored_blocks < first + count) {
      INFLLM_RETURN_IF_ERROR(StorePages(layer, layer_index));
    }
    const int64_t floats =
        kernels::ShapeOf(options_.representative, context_.model.q_heads, context_.model.kv_heads)
            .rows() *
        context_.model.head_dim;
    const size_t bytes = static_cast<size_t>(count * floats) * sizeof(float);
    INFLLM_RETURN_IF_ERROR(Reserve(backend(), bytes, representatives_));
    for (int64_t i = 0; i < count; ++i) {
      INFLLM_RETURN_IF_ERROR(
          backend().Representatives({.kind = options_.representative,
                                     .k = layer.window.page_record(first + i),
                                     .mass = layer.window.page_mass(first + i),
                                     .out = representatives_.as<float>() + i * floats,
                                     .kv_dtype = context_.kv_dtype,
                                     .head_stride = options_.block_tokens * context_.model.head_dim,
                                     .mass_stride = options_.block_tokens,
                                     .block_tokens = options_.block_tokens,
                                     .q_heads = context_.model.q_heads,
                                     .kv_heads = context_.model.kv_heads,
                                     .head_dim = context_.model.head_dim,
                                     .top = options_.repr_top_k}));
    }
    host_representatives_.resize(static_cast<size_t>(count * floats));
    INFLLM_RETURN_IF_ERROR(
        backend().Download(host_representatives_.data(), representatives_.data(), bytes));
    INFLLM_RETURN_IF_ERROR(context_.store->Publish(id_, static_cast<int32_t>(layer_index), first,
                                                   host_representatives_));
    layer.window.DropPagesBefore(first + count);
    return absl::OkStatus();
  }

  // Sends the pages that have become full to the store.
  absl::Status StorePages(Layer& layer, int64_t layer_index) {
    const int64_t first = layer.stored_blocks;
    const int64_t count = layer.window.full_pages() - first;
    if (count <= 0) return absl::OkStatus();
    const size_t bytes = PayloadBytes();
    std::span<const std::byte> payloads;
    if (count == 1 && backend().host_accessible()) {
      payloads = {layer.window.page_record(first), bytes};
    } else {
      staging_.resize(static_cast<size_t>(count) * bytes);
      for (int64_t i = 0; i < count; ++i) {
        INFLLM_RETURN_IF_ERROR(backend().Download(staging_.data() + static_cast<size_t>(i) * bytes,
                                                  layer.window.page_record(first + i), bytes));
      }
      payloads = staging_;
    }
    INFLLM_RETURN_IF_ERROR(
        context_.store->Append(id_, static_cast<int32_t>(layer_index), first, payloads));
    layer.stored_blocks += count;
    return absl::OkStatus();
  }

  size_t PayloadBytes() const {
    return static_cast<size_t>(2 * context_.model.kv_heads * options_.block_tokens *
                               context_.model.head_dim) *
           SizeOf(context_.kv_dtype);
  }

  const PolicyContext& context_;
  const AttentionOptions& options_;
  const memstore::ContextId id_;
  std::vector<Layer> layers_;
  AttentionStats stats_;
  SelectionObserver observer_;

  // Reused between calls.
  std::vector<kernels::KvSegment> near_, far_;
  std::vector<const std::byte*> records_;
  std::vector<float> host_query_, host_representatives_, host_mass_;
  std::vector<std::byte> staging_;
  kernels::Buffer mean_query_, representatives_, far_mass_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<AttentionState>> NewInfLlmState(const PolicyContext& context) {
  const ModelConfig& model = context.model;
  const memstore::Geometry geometry{
      .layers = static_cast<int32_t>(model.layers),
      .q_heads = static_cast<int32_t>(model.q_heads),
      .kv_heads = static_cast<int32_t>(model.kv_heads),
      .head_dim = static_cast<int32_t>(model.head_dim),
      .block_tokens = static_cast<int32_t>(context.options.block_tokens),
      .dtype = context.kv_dtype,
      .representative = context.options.representative};
  INFLLM_ASSIGN_OR_RETURN(
      const memstore::ContextId id,
      context.store->Create({.tenant = "", .model = context.fingerprint, .geometry = geometry}));
  return std::make_unique<InfLlmState>(context, id);
}

}  // namespace infllm::worker
