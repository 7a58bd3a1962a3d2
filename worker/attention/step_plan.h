// What is planned for one step of many sequences, once for all layers.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "memstore/memory_store.h"
#include "worker/attention/attention_options.h"
#include "worker/attention/far_memory.h"
#include "worker/attention/kv_window.h"
#include "worker/attention/shared_scratch.h"

namespace infllm::worker {

// Sums over all layers since the state was made; a fork starts from zero.
struct AttentionStats {
  int64_t blocks = 0;        // memory blocks of one layer, selectable now
  int64_t selections = 0;    // retrievals (exec blocks x layers)
  int64_t cache_hits = 0;    // selected blocks that were in the block cache
  int64_t cache_misses = 0;  // selected blocks that came from the memory store
  int64_t device_bytes = 0;  // pages and cached blocks now, shared ones in full
};

// Told of each retrieval: the layer, the position of the exec block's first query, the blocks.
using SelectionObserver = std::function<void(int64_t layer, int64_t first_position,
                                             std::span<const memstore::SelectedBlock> blocks)>;

// The keys and values of one sequence, as far as its policy keeps them. Data: its policy, which it
// must not outlive, does everything with it.
struct AttentionState {
  KvWindow window;
  std::unique_ptr<FarMemory> far;  // kInfLlm only
  // Read in whole exec blocks from the start on, as any other would read the same tokens.
  int64_t whole_tokens = 0;
  AttentionStats stats;
  SelectionObserver observer;
};

// One sequence's share of a step: its next tokens.
struct StepPart {
  AttentionState* state = nullptr;
  int64_t tokens = 0;
  // What went wrong with this sequence alone. If Plan has refused the part its state is as it was;
  // after any later error the state is unusable.
  absl::Status status;
  // Set by Plan: the part's rows of the step are [first_row, first_row + tokens); none if Plan has
  // refused it.
  int64_t first_row = 0;
};

// The queries of one sequence that attend together and share one retrieval.
struct ExecBlock {
  StepPart* part = nullptr;
  int64_t first_row = 0;
  int64_t rows = 0;
  int64_t position = 0;   // of the first query
  int64_t end_block = 0;  // memory blocks below it may be selected, mounted ones included
};

// Blocks of which a query at `position`, and every later one, has no token left in its window: they
// can be selected.
inline int64_t SelectableBlocks(const AttentionOptions& options, int64_t position) {
  const int64_t past = position - options.n_local - options.n_init;
  return past < 0 ? 0 : past / options.block_tokens;
}

struct StepPlan {
  explicit StepPlan(kernels::Backend& backend) : scratch(backend) {}

  std::span<StepPart> parts;
  std::vector<ExecBlock> blocks;
  int64_t rows = 0;
  SharedScratch scratch;  // reset when a step begins

  // Shared memory.
  kernels::AttentionSpan* spans = nullptr;  // parallel to blocks
  std::byte** pages = nullptr;              // [rows], of layer 0
  int32_t* slots = nullptr;                 // [rows]
  float* angles = nullptr;                  // [rows, head_dim]
};

}  // namespace infllm::worker
