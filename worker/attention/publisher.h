#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "kernels/core/thread_pool.h"
#include "memstore/memory_store.h"
#include "worker/attention/attention_options.h"
#include "worker/attention/step_plan.h"
#include "worker/model/model_config.h"

namespace infllm::worker {

// Sends what a step has completed to the memory store, for `infllm`: the records of pages that are
// full, and the representatives of blocks. With `bounds` a block's representative is a function of
// its keys alone, so it is published with its record, though still in the window; with `mean-key`
// only once the window has left it. Not thread-safe.
class Publisher {
 public:
  // All must outlive the publisher.
  Publisher(const ModelConfig& model, const AttentionOptions& options,
            const kernels::PageShape& page, kernels::Backend& backend, kernels::Stream stream,
            kernels::ThreadPool& pool, PageArena& arena);

  // After the last layer of a step: enqueues the representatives of the blocks to be published, and
  // where the host cannot read pages in place, copies of those that are full.
  absl::Status Enqueue(StepPlan& plan);
  // Once the step has been waited for: stores and publishes, all layers beside each other. A part
  // whose blocks the store does not take gets a status.
  void Publish();

 private:
  // What one part sends, of every layer.
  struct Batch {
    StepPart* part = nullptr;
    int64_t first_stored = 0, stored = 0;  // blocks
    int64_t first_published = 0, published = 0;
    float* representatives = nullptr;  // [layers, published, floats], shared memory
    std::byte* records = nullptr;      // [layers, stored, record], or null: read in place
  };
  absl::Status Send(const Batch& batch, int32_t layer) const;
  const std::byte* RecordOf(const Batch& batch, int64_t layer, int64_t block) const;

  const ModelConfig& model_;
  const AttentionOptions& options_;
  const kernels::PageShape& page_;
  kernels::Backend& backend_;
  const kernels::Stream stream_;
  kernels::ThreadPool& pool_;
  PageArena& arena_;
  std::vector<Batch> batches_;
  std::vector<kernels::RepresentativeItem> items_;
};

}  // namespace infllm::worker
