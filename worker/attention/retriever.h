#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "memstore/memory_store.h"
#include "worker/attention/attention_options.h"
#include "worker/attention/step_plan.h"
#include "worker/model/model_config.h"

namespace infllm::worker {

// Finds the memory blocks that the exec blocks of a step attend, for `infllm`. Not thread-safe.
//
// Where the store is in this process its index is scored on the step's own stream, for all exec
// blocks at once; a remote store is asked once for all. The selected blocks must then be at hand.
//  * Waiting: once a layer the host waits for the selection, fetches what is missing and goes on.
//  * Optimistic: the device looks the blocks up among the cached ones, and nothing waits. If at the
//    end of the step some were missing, the step is done again from the first such layer on,
//    waiting. So it is used on devices only, for steps that only decode, after one that missed
//    nothing; not with lru-s and mean-key, whose layers cannot be done again.
class Retriever {
 public:
  // All must outlive the retriever.
  Retriever(const ModelConfig& model, const AttentionOptions& options,
            const kernels::PageShape& page, kernels::Backend& backend, kernels::Stream stream,
            memstore::MemoryStore& store, PageArena& arena);

  // Chooses how to retrieve in this step.
  void Begin(const StepPlan& plan);

  // Enqueues (and perhaps waits for) the retrieval of a layer and writes it into the spans of the
  // plan: blocks, block_count and, of kLruS, block_mass. A part whose blocks cannot be had gets a
  // status and none. q_far: [rows, q_heads, head_dim].
  absl::Status Retrieve(StepPlan& plan, int64_t layer, const float* q_far);
  // After the attention of the layer is enqueued. Waits with kLruS.
  absl::Status Attended(int64_t layer);

  bool optimistic() const { return optimistic_; }
  // Whether the store is in another process; false until that has been found out.
  bool remote() const { return remote_; }
  // Once the step has been waited for: the first layer with a block that was not cached, or -1.
  int64_t FirstMissedLayer() const;
  // From this layer on, which will be done again, the step waits.
  void BeWaiting(int64_t first_layer);
  // Ends the step: what the device has looked up counts as used, and is shown to observers.
  void End();

 private:
  // What one exec block has selected in one layer. Shared memory.
  struct Selected {
    ExecBlock* block = nullptr;
    kernels::AttentionSpan* span = nullptr;
    int64_t* index = nullptr;  // [count], ascending
    float* score = nullptr;    // [count]
    int64_t count = 0;
  };
  struct OptimisticLayer {
    std::vector<Selected> selected;
    int32_t* misses = nullptr;  // of all its exec blocks
  };

  absl::Status FindMeanQueries(StepPlan& plan, const float* q_far);
  void RefreshViews(int64_t layer);
  absl::Status EnqueueSelect(StepPlan& plan, int64_t layer);
  absl::Status EnqueueLookUp(StepPlan& plan, int64_t layer);
  absl::Status FetchMissing(StepPlan& plan, int64_t layer);
  absl::Status SelectRemotely(StepPlan& plan, int64_t layer);
  // Brings the selected blocks of one part into its cache and page tables into its spans; `handles`
  // gives the block of an index that is not cached.
  template <typename HandleOf>
  absl::Status Admit(StepPlan& plan, int64_t layer, std::span<Selected> of_part,
                     const HandleOf& handle_of);
  int64_t PositionOf(const ExecBlock& of, int64_t index) const;
  void Use(int64_t layer, const Selected& selected);
  void Fail(std::span<Selected> of_part, absl::Status status);
  std::span<Selected> PartFrom(size_t first);

  const ModelConfig& model_;
  const AttentionOptions& options_;
  const kernels::PageShape& page_;
  kernels::Backend& backend_;
  const kernels::Stream stream_;
  memstore::MemoryStore& store_;
  PageArena& arena_;
  bool remote_ = false;  // known after the first View
  bool optimistic_ = false;
  bool missed_ = true;  // in the last step some block was not cached
  bool missed_in_step_ = false;
  kernels::Buffer mean_queries_;  // [exec blocks, q_heads, head_dim], shared memory
  kernels::Buffer scores_;        // [exec blocks, blocks of each]

  // Of the layer at hand, reused.
  std::vector<Selected> selected_;
  std::vector<kernels::RowRange> ranges_;
  std::vector<kernels::RepresentativeChunk> chunks_;
  std::vector<kernels::ScoreItem> score_items_;
  std::vector<kernels::TopKItem> top_items_;
  std::vector<kernels::LookUpItem> look_ups_;
  std::vector<size_t> chunk_begins_;
  std::vector<int64_t> wanted_;  // blocks to fetch
  std::vector<int64_t> selected_of_part_;
  BlockCache::Retired retired_of_part_;
  std::vector<memstore::BlockHandle> retired_;  // read by the attention of the layer
  std::vector<memstore::SelectQuery> queries_;
  std::vector<memstore::SelectedBlock> observed_;
  std::vector<memstore::BlockHandle> in_flight_;  // copied from until the step has been waited for
  std::vector<OptimisticLayer> layers_;
};

}  // namespace infllm::worker
