#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/core/thread_pool.h"
#include "memstore/memory_store.h"
#include "worker/attention/attention_policy.h"
#include "worker/engine/loaded_model.h"
#include "worker/engine/sampler.h"
#include "worker/transformer/decoder.h"

namespace infllm::worker {

enum class SequenceId : uint64_t {};

// One sequence's share of a step, and what comes of it.
struct StepItem {
  SequenceId sequence{};
  // Its next tokens: a piece of its prompt, or the token sampled last; at most
  // Engine::max_item_tokens(). Exec blocks are counted from the first of them, so results are those
  // of the whole prompt only if every piece but its last has a multiple of exec_block tokens.
  std::span<const int32_t> tokens;

  // What is wanted of the logits.
  enum class Want : uint8_t {
    kNothing,
    kSample,  // a token after the last one: `token`, `logprob`
    kScores,  // of each token: `scores`
    kLogits,  // all of them: `logits`
  };
  Want want = Want::kNothing;
  SamplingOptions sampling;  // of kSample
  double uniform = 0;        // of kSample: a random number in [0, 1), which decides
  // Of kScores: the token that followed each of `tokens`, or -1. As many as tokens.
  std::span<const int32_t> targets;

  // Results: `status`, and the others if it is OK. If it is not, and `unchanged` is true, the step
  // has refused the item and left the sequence as it was: after RESOURCE_EXHAUSTED it may be tried
  // again when others have given memory back. Otherwise the sequence can only be dropped.
  absl::Status status;
  bool unchanged = false;
  int32_t token = -1;
  double logprob = 0;  // ln of the probability of `token`, before temperature and cuts
  struct Score {
    int32_t argmax = -1;
    double logprob = 0;  // of the target
  };
  std::vector<Score> scores;  // [tokens]
  std::vector<float> logits;  // [tokens, vocab_size]
};

// Runs many sequences of one model under one attention policy. Owns the KV memory. A sequence's
// results are bit for bit the same whatever else is in the step, however its prompt is cut at
// multiples of exec_block, after a fork, with any number of threads. Not thread-safe.
class Engine {
 public:
  struct Options {
    AttentionOptions attention;
    kernels::DType kv_dtype = kernels::DType::kF32;
    int64_t kv_bytes = 0;  // of keys and values on the device; 0: DefaultKvBytes
  };
  // All must outlive the engine. `store` may be null for policies that keep no far blocks.
  // Errors are those of AttentionPolicy::New.
  static absl::StatusOr<std::unique_ptr<Engine>> New(const LoadedModel& model,
                                                     kernels::Backend& backend,
                                                     kernels::ThreadPool& pool,
                                                     memstore::MemoryStore* store,
                                                     const Options& options);
  ~Engine();

  const AttentionOptions& attention() const { return policy_->options(); }
  const ModelConfig& config() const { return model_.config; }
  int64_t max_item_tokens() const { return policy_->max_part_tokens(); }
  struct KvUse {
    int64_t page_bytes = 0;
    int64_t pages = 0;
    int64_t free_pages = 0;
  };
  KvUse kv_use() const;

  // An empty sequence; a sequence that goes on from another independently, sharing what it has
  // read. RESOURCE_EXHAUSTED says need and limit; NOT_FOUND: no such sequence, or it has failed.
  // `mounted`: committed contexts whose blocks it can select besides (AttentionPolicy::NewState).
  absl::StatusOr<SequenceId> NewSequence(std::span<const memstore::CommittedContext> mounted = {});
  absl::StatusOr<SequenceId> Fork(SequenceId sequence);
  // A sequence that is to read these tokens, and goes on from the committed context that begins
  // with most of them, as if it had read them itself; a new one if there is none.
  struct Start {
    SequenceId sequence{};
    int64_t cached_tokens = 0;  // need not be read; a multiple of exec_block
    std::string context;        // their name; empty: none
    absl::Status passed_over;   // why the context that was found is not used
  };
  absl::StatusOr<Start> StartFromPrefix(std::span<const int32_t> tokens);
  void Drop(SequenceId sequence);

  // Commits what a sequence has read, `tokens`, to the memory store, under a name; it may go on.
  // Returns the id of the committed context. A sequence that goes on from the first `position`
  // tokens of a committed context, with what MemoryStore::ReadCheckpoint gives for it. Errors are
  // those of AttentionPolicy::Commit and Open; NOT_FOUND as for Fork; INVALID_ARGUMENT: the
  // sequence has read another number of tokens.
  absl::StatusOr<memstore::ContextId> Commit(SequenceId sequence, std::string_view name,
                                             const memstore::ContextId& replaces,
                                             std::span<const int32_t> tokens);
  absl::StatusOr<SequenceId> Open(const memstore::CommittedContext& committed,
                                  std::span<const std::byte> saved, int64_t position,
                                  std::span<const memstore::CommittedContext> mounted = {});

  // Tokens read so far. REQUIRES of these three: the sequence exists.
  int64_t position(SequenceId sequence) const;
  AttentionStats StatsOf(SequenceId sequence) const;
  void SetObserver(SequenceId sequence, SelectionObserver observer);

  // Runs the items through the model, each sequence at most once. Errors of one item stand in its
  // status and leave the others unharmed. An error of the step itself (of the device, say) is
  // returned, and all its sequences are of no use.
  //   CANCELLED  *cancel, looked at between layers, became true
  absl::Status Step(std::span<StepItem> items, const std::atomic<bool>* cancel = nullptr);

 private:
  struct Sequence {
    std::unique_ptr<AttentionState> state;
    bool failed = false;
  };
  // A row whose logits are wanted, and what comes of it.
  struct WantedRow {
    StepItem* item = nullptr;
    int64_t token = 0;  // of the item
    int32_t row = 0;    // of the step
  };
  // Rows of which the same is wanted. Shared memory.
  struct WantedRows {
    std::vector<WantedRow> rows;
    int32_t* row = nullptr;                 // [rows] of the step
    int32_t* target = nullptr;              // [rows]
    kernels::SampleItem* sample = nullptr;  // [rows]
    int32_t* token = nullptr;               // [rows]: sampled, or the likeliest
    double* logprob = nullptr;              // [rows]
    float* logits = nullptr;                // [rows, vocab]
  };

  Engine(const LoadedModel& model, kernels::Backend& backend, memstore::MemoryStore* store,
         std::unique_ptr<AttentionPolicy> policy);
  Sequence* Find(SequenceId id);
  // NOT_FOUND: there is none, or it has failed.
  absl::StatusOr<Sequence*> FindSound(SequenceId id);
  SequenceId Add(std::unique_ptr<AttentionState> state);
  absl::Status Check(const StepItem& item);
  absl::Status Run(const std::atomic<bool>* cancel);
  absl::Status Enqueue(int64_t first_layer, bool keep_inputs, const std::atomic<bool>* cancel);
  absl::Status CollectWanted();
  absl::Status EnqueueWanted(StepItem::Want want);
  void ReadWanted();

  const LoadedModel& model_;
  kernels::Backend& backend_;
  memstore::MemoryStore* const store_;  // may be null
  const kernels::Stream stream_ = kernels::Backend::kMainStream;
  std::unique_ptr<AttentionPolicy> policy_;
  Decoder decoder_;
  std::unordered_map<SequenceId, Sequence> sequences_;
  uint64_t next_sequence_ = 1;

  // Of the step at hand, reused.
  SharedScratch scratch_;
  std::vector<StepPart> parts_;
  std::vector<StepItem*> part_items_;  // parallel to parts_
  std::vector<int32_t> tokens_;
  WantedRows wanted_[4];  // by StepItem::Want
};

// Memory for keys and values if nobody says how much: half of what is free. It is taken from the
// system only as it is used.
int64_t DefaultKvBytes();

}  // namespace infllm::worker
