// What only `--representatives mean-key` needs, the published code's: the attention that each token
// of the window draws, summed over the queries that see it, per query head. From it the tokens are
// chosen that stand for a block when the window has left it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "worker/attention/attention_options.h"
#include "worker/attention/far_memory.h"
#include "worker/attention/kv_window.h"
#include "worker/attention/step_plan.h"

namespace infllm::worker {

inline bool UsesMass(const AttentionOptions& options) {
  return options.policy == PolicyKind::kInfLlm &&
         options.representative == kernels::RepresentativeKind::kMeanKey;
}

// Pages of mass that `more_tokens` need beyond those taken. REQUIRES: UsesMass.
int64_t MassPagesFor(const AttentionState& state, int64_t more_tokens, int64_t page_tokens);

// Gives every new page of a window that has grown its mass, zero.
// REQUIRES: the mass arena has room.
absl::Status GrowMass(AttentionState& state, int64_t page_tokens, int64_t layers,
                      int64_t part_bytes, kernels::Backend& backend, kernels::Stream stream);
void DropMassBefore(FarMemory& far, int64_t page);

// Of a page that the window keeps, [q_heads, page_tokens]; device memory.
const float* MassOf(const FarMemory& far, int64_t page, int64_t layer);

// Copies of all mass for a fork. REQUIRES: the mass arena has room.
absl::Status ForkMass(const FarMemory& from, FarMemory& to, kernels::Backend& backend,
                      kernels::Stream stream);

// The mass of each of `entries`, layer 0; null for sinks.
void AddMassPointers(const AttentionState& state, int64_t page_tokens,
                     std::span<const kernels::PageEntry> entries, std::vector<float*>& out);

}  // namespace infllm::worker
