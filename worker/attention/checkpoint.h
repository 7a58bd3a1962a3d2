// What a committed context of `infllm` holds beside its blocks, so that any worker goes on from it
// bit for bit: the keys and values of sinks and of the page that is not full yet, and with mean-key
// the scores of the window. The rest of the window are blocks that the memory store has; rotated
// keys are made again (kernels/ops/attention.h: RotateAndStoreArgs).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "memstore/memory_store.h"
#include "worker/attention/attention_options.h"
#include "worker/attention/page_arena.h"
#include "worker/attention/rope.h"
#include "worker/attention/step_plan.h"
#include "worker/model/model_config.h"

namespace infllm::worker {

// Saves and restores windows. Not thread-safe. Waits for the device.
class Checkpointer {
 public:
  // All must outlive the object.
  Checkpointer(const ModelConfig& model, const AttentionOptions& options,
               const kernels::PageShape& page, const Rope& rope, kernels::Backend& backend,
               kernels::Stream stream, PageArena& arena);

  // REQUIRES: the state is between steps.
  absl::StatusOr<std::vector<std::byte>> Save(const AttentionState& state) const;

  // Whether a sequence whose context has the options `own` can go on from there. Errors are those
  // of AttentionPolicy::Open.
  absl::Status Check(const memstore::CommittedContext& committed,
                     const memstore::ContextOptions& own, int64_t position) const;

  // Fills the window of a new state, whose context is a fork of `committed`, with its first
  // `position` tokens. REQUIRES: the arenas have room; with mean-key all tokens.
  //   DATA_LOSS  `saved` is not what Save makes of such a state; and the errors of Fetch
  absl::Status Restore(std::span<const std::byte> saved,
                       const memstore::CommittedContext& committed, int64_t position,
                       AttentionState& state) const;

 private:
  int64_t row_bytes() const;  // of a token in a layer: its keys, then its values
  int64_t sinks() const { return options_.n_init; }
  absl::Status RestoreLayer(int64_t layer, std::span<const std::byte> rows,
                            const memstore::CommittedContext& committed, int64_t position,
                            AttentionState& state, SharedScratch& scratch) const;

  const ModelConfig& model_;
  const AttentionOptions& options_;
  const kernels::PageShape& page_;
  const Rope& rope_;
  kernels::Backend& backend_;
  const kernels::Stream stream_;
  PageArena& arena_;
};

}  // namespace infllm::worker
