// Which keys a query sees, and at what positions: the seam between the decoder and its memory.
//
// A step takes many sequences. It is planned once, on the host: pages for the new tokens, page
// tables, positions, exec blocks. Then each layer only enqueues: rotate and store, select, attend.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/core/thread_pool.h"
#include "memstore/memory_store.h"
#include "worker/attention/attention_options.h"
#include "worker/attention/page_arena.h"
#include "worker/attention/rope.h"
#include "worker/attention/step_plan.h"
#include "worker/model/model_config.h"

namespace infllm::worker {

class Checkpointer;
class Publisher;
class Retriever;

// How a policy's window works: all that full attention, streaming-llm and lm-infinite differ in.
// infllm has the rules of lm-infinite, and a retriever and a publisher besides.
struct WindowRules {
  int64_t window = 0;       // tokens at their true distance, the query included
  int64_t sink_tokens = 0;  // from the start, which stay
  int64_t page_tokens = 0;
  bool raw_keys = false;  // pages keep un-rotated keys too: of sinks and of memory blocks
  // The one position of queries towards far keys; -1: there are no far keys.
  int64_t far_query_position = -1;
  static WindowRules Of(const ModelConfig& model, const AttentionOptions& options);
};

// Makes the states of one model under one set of options, and attends for them. One step at a time:
// not thread-safe. States must not outlive it.
class AttentionPolicy {
 public:
  struct Environment {
    kernels::Backend* backend = nullptr;     // outlives the policy
    kernels::ThreadPool* pool = nullptr;     // likewise; blocks are stored in parallel
    memstore::MemoryStore* store = nullptr;  // likewise; kInfLlm only, may be null for the others
    kernels::Stream stream = kernels::Backend::kMainStream;
    kernels::DType kv_dtype = kernels::DType::kF32;
    memstore::Fingerprint fingerprint;
    int64_t kv_bytes = 0;  // of pages, in device memory
  };
  //   INVALID_ARGUMENT    options that do not fit the model
  //   RESOURCE_EXHAUSTED  the device has no room for kv_bytes, or they hold no page
  static absl::StatusOr<std::unique_ptr<AttentionPolicy>> New(const ModelConfig& model,
                                                              const AttentionOptions& options,
                                                              const Environment& environment);
  ~AttentionPolicy();

  const AttentionOptions& options() const { return options_; }
  const PageArena& arena() const { return arena_; }
  // Most tokens of one sequence that a step may take; a multiple of exec_block. With so many, all
  // blocks that they may select have been published before the step begins.
  int64_t max_part_tokens() const { return max_part_tokens_; }

  // A state that has read nothing. The blocks of `mounted`, committed contexts, can be selected by
  // all its queries, as if they were far behind: un-rotated keys have no place. Of a context its
  // sinks, and the end that fills no block, are not among them.
  //   RESOURCE_EXHAUSTED   says need and limit
  //   UNIMPLEMENTED        contexts are mounted, and the policy is not infllm
  //   FAILED_PRECONDITION  one was read by another model, or with other options, or with mean-key
  //   the errors of MemoryStore::Create and Fork
  absl::StatusOr<std::unique_ptr<AttentionState>> NewState(
      std::span<const memstore::CommittedContext> mounted = {});
  // A state that goes on from here independently. Full pages and stored blocks are shared.
  absl::StatusOr<std::unique_ptr<AttentionState>> Fork(const AttentionState& state);
  AttentionStats StatsOf(const AttentionState& state) const;

  // Commits what a state has read, between steps; `tokens` are all of it. Returns the id of the
  // committed context (MemoryStore::Commit, whose errors these are besides).
  //   UNIMPLEMENTED        the policy is not infllm: it keeps nothing in a memory store
  //   FAILED_PRECONDITION  the state mounts contexts
  absl::StatusOr<memstore::ContextId> Commit(const AttentionState& state, std::string_view name,
                                             const memstore::ContextId& replaces,
                                             std::span<const int32_t> tokens);
  // As MemoryStore::FindPrefix, of contexts that Open takes. NOT_FOUND also where the policy, or
  // mean-key, goes on from no token within a context.
  absl::StatusOr<memstore::Prefix> FindPrefix(std::span<const int32_t> tokens) const;
  // A state that goes on from the first `position` tokens of a committed context: bit for bit as if
  // it had read them itself. What it reads from there on can select of `mounted`, too: as NewState.
  //   UNIMPLEMENTED        as above
  //   FAILED_PRECONDITION  it was read by another model or with other options; with mean-key, not
  //                        all of its tokens are asked for
  //   INVALID_ARGUMENT     `position` is neither its end nor a multiple of exec_block in it
  //   RESOURCE_EXHAUSTED, DATA_LOSS, and the errors of MemoryStore::Fork
  absl::StatusOr<std::unique_ptr<AttentionState>> Open(
      const memstore::CommittedContext& committed, std::span<const std::byte> saved,
      int64_t position, std::span<const memstore::CommittedContext> mounted = {});

  // Begins a step: takes in each part, or refuses it (RESOURCE_EXHAUSTED with need and limit,
  // INVALID_ARGUMENT: more than max_part_tokens). A part is split into exec blocks from its first
  // token on, so a caller that cuts a text at multiples of exec_block gets the same result.
  // `parts` must live until End.
  absl::Status Plan(std::span<StepPart> parts);
  // Rows of the step. Those of parts that have failed since Plan stay, and compute nothing of use.
  int64_t rows() const { return plan_.rows; }

  // Enqueues the attention of a layer. qkv: [rows, (q_heads + 2 kv_heads) * head_dim]: Q, then K,
  // then V, not rotated; out: [rows, q_heads, head_dim]; f32, device memory.
  // `infllm` may wait; see Retriever.
  absl::Status Attend(int64_t layer, const float* qkv, float* out);
  // Enqueues what the end of the step needs of the device.
  absl::Status EnqueueEnd();

  // Whether this step may have to be done again from some layer on: the caller then keeps the
  // input of every layer.
  bool may_redo() const;
  // Once the stream has been waited for: the first layer whose selection was not at hand, or -1. If
  // there is one, it and all later ones must be done again: RedoFrom, Attend each, EnqueueEnd.
  int64_t FirstMissedLayer() const;
  void RedoFrom(int64_t layer);

  // Ends the step, once the stream has been waited for: blocks go to the store, pages that no later
  // query sees are given back.
  void End();

 private:
  AttentionPolicy(const ModelConfig& model, const AttentionOptions& options,
                  const Environment& environment, const WindowRules& rules,
                  const kernels::PageShape& page, PageArena arena);
  absl::Status Prepare();
  memstore::ContextOptions StoreOptions() const;
  memstore::Reusable ReusableOf(const AttentionState& state) const;
  // Of a new context; nothing is in it yet, and the store does not know it.
  absl::StatusOr<std::unique_ptr<FarMemory>> NewFarMemory();
  absl::Status Mount(std::span<const memstore::CommittedContext> mounted,
                     const memstore::CommittedContext* own, int64_t blocks, FarMemory& far);
  absl::Status Admit(StepPart& part);
  absl::Status PlanRows();
  absl::Status PlanSpans();
  absl::StatusOr<std::vector<PageNumber>> TakeCacheSlots();

  const ModelConfig model_;
  const AttentionOptions options_;
  const Environment environment_;
  const WindowRules rules_;
  const kernels::PageShape page_;
  const Rope rope_;
  kernels::Backend& backend_;
  const kernels::Stream stream_;
  PageArena arena_;
  std::unique_ptr<PageArena> mass_arena_;  // of mean-key
  int64_t max_part_tokens_ = 0;
  kernels::Buffer far_angle_;  // [head_dim]
  std::unique_ptr<Retriever> retriever_;
  std::unique_ptr<Publisher> publisher_;
  std::unique_ptr<Checkpointer> checkpointer_;

  StepPlan plan_;
  kernels::Buffer q_near_, q_far_;  // [rows, q_heads, head_dim]
  // Of the step being planned, reused.
  std::vector<kernels::PageEntry> near_, far_;
  std::vector<float*> near_mass_;
  std::vector<size_t> near_begins_, far_begins_;
};

}  // namespace infllm::worker
