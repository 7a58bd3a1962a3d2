// Which keys a query sees, and at what positions: the seam between the decoder and its memory.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "memstore/memory_store.h"
#include "worker/attention/attention_options.h"
#include "worker/model/model_config.h"

namespace infllm::worker {

// Rows of a rope table for consecutive positions, in device memory. See RopeRows().
struct RopeTable {
  kernels::Buffer rows;  // [tokens, head_dim]
  uint64_t rope_id = 0;
  int64_t first_position = 0;
  int64_t tokens = 0;
};

// Device buffers that a forward pass reuses from layer to layer. Grows, never shrinks. One forward
// pass at a time.
struct AttentionScratch {
  kernels::Buffer q_near;  // [tokens, q_heads, head_dim]
  kernels::Buffer q_far;   // [tokens, q_heads, head_dim]
  kernels::Buffer k_near;  // [tokens, kv_heads, head_dim]
  RopeTable rope;          // of the pass's tokens
};

// The projections of consecutive tokens of one layer, before any rotation. Device memory.
struct AttentionInput {
  int64_t layer = 0;
  int64_t first_position = 0;  // must be the number of tokens this layer has seen
  int64_t tokens = 0;
  const float* q = nullptr;  // [tokens, q_heads, head_dim]
  const float* k = nullptr;  // [tokens, kv_heads, head_dim]
  const float* v = nullptr;  // [tokens, kv_heads, head_dim]
  float* out = nullptr;      // [tokens, q_heads, head_dim]
};

// Sums over all layers since the state was made; a fork starts from zero.
struct AttentionStats {
  int64_t blocks = 0;        // memory blocks of one layer, selectable now
  int64_t selections = 0;    // retrievals (exec blocks x layers)
  int64_t cache_hits = 0;    // selected blocks that were in the block cache
  int64_t cache_misses = 0;  // selected blocks that came from the memory store
  int64_t device_bytes = 0;  // window, sinks, remainder and cached blocks now
};

// Told of each retrieval: the layer, the position of the exec block's first query, the blocks.
using SelectionObserver = std::function<void(int64_t layer, int64_t first_position,
                                             std::span<const memstore::SelectedBlock> blocks)>;

// One context: the keys and values of every layer, as far as its policy keeps them.
// Not thread-safe. Must not outlive its policy.
class AttentionState {
 public:
  virtual ~AttentionState() = default;

  // Appends the tokens to a layer and attends. Splits them into exec blocks from the first token
  // on, so a caller that cuts a text into chunks of a multiple of exec_block gets the same result.
  // Errors are those of the backend and of the memory store; the state is then unusable.
  virtual absl::Status Attend(const AttentionInput& input, AttentionScratch& scratch) = 0;

  // A state that continues from here independently. Cheap: full pages and stored blocks are shared.
  virtual absl::StatusOr<std::unique_ptr<AttentionState>> Fork() = 0;

  virtual AttentionStats stats() const = 0;
  virtual void set_observer(SelectionObserver observer) = 0;
};

// Makes the states of one model under one set of options. Immutable, thread-safe.
class AttentionPolicy {
 public:
  virtual ~AttentionPolicy() = default;
  virtual absl::StatusOr<std::unique_ptr<AttentionState>> NewState() = 0;
  virtual const AttentionOptions& options() const = 0;
};

// `backend` and `store` must outlive the policy. `kv_dtype` is that of stored keys and values.
// `store` is used by kInfLlm only and may be null for the others.
absl::StatusOr<std::unique_ptr<AttentionPolicy>> NewAttentionPolicy(
    const ModelConfig& model, const AttentionOptions& options, kernels::DType kv_dtype,
    const memstore::Fingerprint& fingerprint, kernels::Backend& backend,
    memstore::MemoryStore* store);

}  // namespace infllm::worker
