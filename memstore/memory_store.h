// The memory of contexts: immutable blocks of keys and values, and the representatives by which the
// relevant ones are found. The seam between the worker and where far tokens live: in this process,
// in a daemon over gRPC, or spread over several.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "memstore/block.h"

namespace infllm::memstore {

struct ContextOptions {
  std::string tenant;  // at most 256 bytes
  Fingerprint model;
  Geometry geometry;
};

struct SelectRequest {
  std::span<const float> query;  // [q_heads, head_dim]: mean of the far-rotated queries
  int32_t k = 0;
  kernels::Scoring scoring = kernels::Scoring::kMean;
  // Blocks that the caller holds already, ascending: they are returned without payload.
  std::span<const int64_t> have;
};

struct SelectedBlock {
  int64_t index = 0;
  float score = 0;
  BlockHandle block;  // empty if the caller said it has it
};

struct Selection {
  // Ascending by index. min(k, published) of them.
  std::vector<SelectedBlock> blocks;
};

struct StoreStats {
  int64_t contexts = 0;
  int64_t blocks = 0;       // distinct payloads, shared ones once
  int64_t blocks_ram = 0;   // of these in the RAM tier (a block may be in both)
  int64_t blocks_cold = 0;  // of these in the cold tier
  int64_t ram_bytes = 0;    // payload bytes in the RAM tier now
  int64_t ram_capacity_bytes = 0;
  int64_t cold_bytes = 0;            // payload bytes in the cold tier
  int64_t representative_bytes = 0;  // memory for representatives, shared ones once
  int64_t selects = 0;               // Select calls since start
  int64_t ram_hits = 0;              // payloads served from RAM
  int64_t cold_hits = 0;             // payloads read back from the cold tier
  int64_t corrupt_blocks = 0;        // payloads that failed their check and were refused
};

// Thread-safe; calls for different contexts run in parallel. Blocks are dense per layer: 0, 1, ...
// Errors of every method that takes a context:
//   NOT_FOUND         the context does not exist (never created, dropped, or the store restarted)
//   OUT_OF_RANGE      `layer` is not in [0, geometry.layers)
//   INVALID_ARGUMENT  a size does not fit the context's geometry
//   UNAVAILABLE       a remote store does not answer; retry
class MemoryStore {
 public:
  virtual ~MemoryStore() = default;

  //   INVALID_ARGUMENT    names the field that is out of its limits (limits.h)
  //   RESOURCE_EXHAUSTED  too many contexts, or the RAM tier is smaller than one block
  virtual absl::StatusOr<ContextId> Create(const ContextOptions& options) = 0;

  // Stores `count` consecutive payloads of `layer`, back to back in `payloads`, as blocks
  // first_block, first_block + 1, ... The bytes are copied. Repeating a call is OK.
  //   ALREADY_EXISTS       a block holds different bytes; a stored block never changes
  //   FAILED_PRECONDITION  first_block leaves a gap, or the context is sealed
  //   RESOURCE_EXHAUSTED   no tier has room; the text says which limit to raise
  virtual absl::Status Append(ContextId context, int32_t layer, int64_t first_block,
                              std::span<const std::byte> payloads) = 0;

  // Makes stored blocks selectable: representatives [count, slots, heads, head_dim]
  // (Geometry::representative_shape) of blocks first_block, ... They wait for later queries, so
  // they come after the payloads. They are kept in the geometry's dtype.
  //   FAILED_PRECONDITION  a block's payload is not stored yet, a gap, or the context is sealed
  //   INVALID_ARGUMENT     a value is not finite, or not in the range of the geometry's dtype, or
  //                        a least key is above the largest
  //   ALREADY_EXISTS       a block has different representatives already, as they are kept
  virtual absl::Status Publish(ContextId context, int32_t layer, int64_t first_block,
                               std::span<const float> representatives) = 0;

  // The k published blocks of `layer` most relevant to the query, exact, and the payloads that the
  // caller lacks, in one round trip. May read a cold tier.
  //   INVALID_ARGUMENT    the query is not finite, k is out of its limits, or `have` not ascending
  //   DATA_LOSS           a needed block failed its integrity check; it is never returned
  //   RESOURCE_EXHAUSTED  the payloads do not fit in RAM next to those that handles hold already
  virtual absl::StatusOr<Selection> Select(ContextId context, int32_t layer,
                                           const SelectRequest& request) = 0;

  // Payloads of stored blocks, in the order asked.
  //   OUT_OF_RANGE        a block is not stored
  //   DATA_LOSS           a block failed its integrity check
  //   RESOURCE_EXHAUSTED  as for Select
  virtual absl::StatusOr<std::vector<BlockHandle>> Fetch(ContextId context, int32_t layer,
                                                         std::span<const int64_t> blocks) = 0;

  // Ends appending and publishing; a sealed context can be read and forked. Repeating it is OK.
  virtual absl::Status Seal(ContextId context) = 0;

  // A new, unsealed context that shares all stored blocks and representatives and then grows apart.
  virtual absl::StatusOr<ContextId> Fork(ContextId context) = 0;

  // Forgets the context; payloads go when no fork needs them.
  virtual absl::Status Drop(ContextId context) = 0;

  virtual absl::StatusOr<StoreStats> Stats() = 0;
};

}  // namespace infllm::memstore
