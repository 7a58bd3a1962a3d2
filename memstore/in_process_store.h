#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "memstore/cold_store.h"
#include "memstore/memory_store.h"

namespace infllm::memstore {

struct InProcessOptions {
  // Of the RAM tier: payloads, pinned ones included, in whole pages each.
  int64_t ram_capacity_bytes = int64_t{4} << 30;
  // Of that and of representatives, contexts and what is kept of every block, also of cold ones. As
  // these grow the RAM tier gives way; past that, what would add to them is RESOURCE_EXHAUSTED.
  int64_t memory_bytes = INT64_MAX;
};

// The store itself; the daemon serves one, an embedded worker owns one. Payloads live in the RAM
// tier and, when it is full, the least recently used go to `cold` (may be null: then a full RAM
// tier is RESOURCE_EXHAUSTED). Representatives live in memory of `backend`, which must outlive the
// store. Handles may outlive the store; the cold store is closed with it. If that is durable the
// store can commit contexts, and has those that were committed to it before.
//   DATA_LOSS, UNAVAILABLE  what `cold` has committed cannot be read
absl::StatusOr<std::unique_ptr<MemoryStore>> NewInProcessStore(const InProcessOptions& options,
                                                               kernels::Backend& backend,
                                                               std::unique_ptr<ColdStore> cold);

}  // namespace infllm::memstore
