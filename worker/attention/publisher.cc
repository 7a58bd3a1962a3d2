#include "worker/attention/publisher.h"

#include <algorithm>
#include <mutex>
#include <new>
#include <utility>

#include "kernels/core/status_macros.h"
#include "worker/attention/mean_key.h"

namespace infllm::worker {

Publisher::Publisher(const ModelConfig& model, const AttentionOptions& options,
                     const kernels::PageShape& page, kernels::Backend& backend,
                     kernels::Stream stream, kernels::ThreadPool& pool, PageArena& arena)
    : model_(model),
      options_(options),
      page_(page),
      backend_(backend),
      stream_(stream),
      pool_(pool),
      arena_(arena) {}

absl::Status Publisher::Enqueue(StepPlan& plan) {
  const bool mean_key = UsesMass(options_);
  const int64_t floats =
      kernels::ShapeOf(options_.representative, model_.q_heads, model_.kv_heads).rows() *
      model_.head_dim;
  batches_.clear();
  items_.clear();
  for (StepPart& part : plan.parts) {
    if (!part.status.ok() || part.tokens == 0) continue;
    const KvWindow& window = part.state->window;
    const FarMemory& far = *part.state->far;
    Batch batch{.part = &part,
                .first_stored = far.stored_blocks,
                .stored = window.full_pages() - far.stored_blocks,
                .first_published = far.published_blocks};
    const int64_t publishable =
        mean_key ? SelectableBlocks(options_, window.tokens()) : window.full_pages();
    batch.published = std::max<int64_t>(publishable - far.published_blocks, 0);
    if (batch.stored == 0 && batch.published == 0) continue;
    INFLLM_ASSIGN_OR_RETURN(
        batch.representatives,
        plan.scratch.Get<float>(static_cast<size_t>(model_.layers * batch.published * floats)));
    for (int64_t layer = 0; layer < model_.layers; ++layer) {
      for (int64_t i = 0; i < batch.published; ++i) {
        const int64_t page = batch.first_published + i;
        items_.push_back(
            {.page = arena_.address(window.page_number(page)) + arena_.layer_offset(layer),
             .mass = mean_key ? MassOf(far, page, layer) : nullptr,
             .out = batch.representatives + (layer * batch.published + i) * floats});
      }
    }
    if (!backend_.host_accessible()) {
      const auto bytes = static_cast<size_t>(page_.record_bytes());
      INFLLM_ASSIGN_OR_RETURN(
          batch.records,
          plan.scratch.Get<std::byte>(static_cast<size_t>(model_.layers * batch.stored) * bytes));
      for (int64_t layer = 0; layer < model_.layers; ++layer) {
        for (int64_t i = 0; i < batch.stored; ++i) {
          const PageNumber page = window.page_number(batch.first_stored + i);
          INFLLM_RETURN_IF_ERROR(backend_.Copy(
              stream_, batch.records + static_cast<size_t>(layer * batch.stored + i) * bytes,
              arena_.address(page) + arena_.layer_offset(layer), bytes));
        }
      }
    }
    batches_.push_back(batch);
  }
  INFLLM_ASSIGN_OR_RETURN(const kernels::RepresentativeItem* const items, plan.scratch.Put(items_));
  return backend_.Representatives(stream_, {.items = items,
                                            .count = static_cast<int64_t>(items_.size()),
                                            .kind = options_.representative,
                                            .q_heads = model_.q_heads,
                                            .page = page_,
                                            .top = options_.repr_top_k});
}

const std::byte* Publisher::RecordOf(const Batch& batch, int64_t layer, int64_t block) const {
  if (batch.records != nullptr) {
    return batch.records +
           (layer * batch.stored + block - batch.first_stored) * page_.record_bytes();
  }
  const PageNumber page = batch.part->state->window.page_number(block);
  return arena_.address(page) + arena_.layer_offset(layer);
}

// Runs on threads of the pool, which no exception may leave.
absl::Status Publisher::Send(const Batch& batch, int32_t layer) const try {
  const FarMemory& far = *batch.part->state->far;
  std::vector<std::span<const std::byte>> records;
  records.reserve(static_cast<size_t>(batch.stored));
  for (int64_t i = 0; i < batch.stored; ++i) {
    records.emplace_back(RecordOf(batch, layer, batch.first_stored + i),
                         static_cast<size_t>(page_.record_bytes()));
  }
  if (!records.empty()) {
    INFLLM_RETURN_IF_ERROR(
        far.store->Append(far.context, layer, far.mounted_blocks + batch.first_stored, records));
  }
  if (batch.published == 0) return absl::OkStatus();
  const size_t floats = static_cast<size_t>(
      batch.published *
      kernels::ShapeOf(options_.representative, model_.q_heads, model_.kv_heads).rows() *
      model_.head_dim);
  return far.store->Publish(far.context, layer, far.mounted_blocks + batch.first_published,
                            {batch.representatives + static_cast<size_t>(layer) * floats, floats});
} catch (const std::bad_alloc&) {
  return absl::ResourceExhaustedError("no memory to store blocks");
}

void Publisher::Publish() {
  const int64_t layers = model_.layers;
  std::mutex mu;
  pool_.ParallelFor(static_cast<int64_t>(batches_.size()) * layers, 1,
                    [&](int64_t begin, int64_t end, int) {
                      for (int64_t i = begin; i < end; ++i) {
                        const Batch& batch = batches_[static_cast<size_t>(i / layers)];
                        absl::Status status = Send(batch, static_cast<int32_t>(i % layers));
                        if (status.ok()) continue;
                        const std::lock_guard lock(mu);
                        batch.part->status.Update(std::move(status));
                      }
                    });
  for (const Batch& batch : batches_) {
    if (!batch.part->status.ok()) continue;
    FarMemory& far = *batch.part->state->far;
    far.stored_blocks += batch.stored;
    far.published_blocks += batch.published;
  }
}

}  // namespace infllm::worker
