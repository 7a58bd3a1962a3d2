// The memory of contexts: immutable blocks of keys and values, and the representatives by which the
// relevant ones are found. The seam between the worker and where far tokens live: in this process,
// in a daemon over gRPC, or spread over several.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "memstore/block.h"

namespace infllm::memstore {

struct ContextOptions {
  std::string tenant;  // at most limits::kMaxTenantBytes
  Fingerprint model;
  // What, beside the model, decides the bytes of its blocks (worker::Recipe): any text, at most
  // limits::kMaxRecipeBytes. A block of another recipe is never accepted.
  std::string recipe;
  Geometry geometry;
  friend bool operator==(const ContextOptions&, const ContextOptions&) = default;
};

// At which of its tokens others may go on from a context as if they had read them themselves: at
// multiples of exec_block, up to `tokens`, which is one.
struct Reusable {
  int32_t exec_block = 0;
  int64_t tokens = 0;
  friend bool operator==(const Reusable&, const Reusable&) = default;
};

// A context as it was when it was committed. It never changes and outlives every process; it is
// read and forked like any other, until it is dropped.
struct CommittedContext {
  ContextId id;
  std::string name;  // one of a tenant's; 1 to limits::kMaxNameBytes bytes, no control characters
  ContextOptions options;
  int64_t tokens = 0;     // read so far
  int64_t blocks = 0;     // stored, of each layer
  int64_t published = 0;  // of these
  Reusable reusable;
  ContextId base;            // the committed context that it went on from; zero: none
  int64_t created_ms = 0;    // since the epoch
  int64_t stored_bytes = 0;  // on disk; what it shares with others counts in full
  friend bool operator==(const CommittedContext&, const CommittedContext&) = default;
};
// What goes into a committed context beside its blocks.
struct Checkpoint {
  std::vector<int32_t> tokens;
  // What the worker needs to go on beside the blocks (worker/attention/checkpoint.h).
  std::vector<std::byte> state;
};
struct CommitRequest {
  ContextId context;  // is committed as it is now, and may grow on
  ContextId id;       // new: of the committed one
  std::string name;
  // The committed context that has the name now and makes room; zero: none has it.
  ContextId replaces;
  int64_t blocks = 0;  // of every layer that the checkpoint reckons with
  Reusable reusable;
  std::span<const int32_t> tokens;
  std::span<const std::byte> state;
};

// A committed context that begins with the same tokens as a text.
struct Prefix {
  CommittedContext context;
  int64_t tokens = 0;  // so many; at most context.reusable.tokens
};

// The first blocks of every layer of a context, as far as they are stored.
inline constexpr int64_t kAllBlocks = INT64_MAX;
struct ForkPart {
  ContextId context;
  int64_t blocks = kAllBlocks;
  friend bool operator==(const ForkPart&, const ForkPart&) = default;
};

struct SelectQuery {
  ContextId context;
  std::span<const float> query;  // [q_heads, head_dim]: mean of the far-rotated queries
  int32_t k = 0;                 // at most limits::kMaxSelect
  // Only blocks below this index take part; published ones beyond are still in the query's window.
  int64_t end_block = INT64_MAX;
  // Blocks that the caller holds already, ascending: they are returned without payload.
  std::span<const int64_t> have;
};
// All queries of one layer's step, of any contexts.
struct SelectRequest {
  int32_t layer = 0;
  kernels::Scoring scoring = kernels::Scoring::kMean;
  std::span<const SelectQuery> queries;  // at most limits::kMaxQueries
};

struct SelectedBlock {
  int64_t index = 0;
  float score = 0;
  BlockHandle block;  // empty if the caller said it has it
};
// The answer to one query.
struct Selection {
  absl::Status status;  // of this query alone; without blocks unless OK
  // Ascending by index: min(k, published blocks below end_block) of them.
  std::vector<SelectedBlock> blocks;
};

// The published representatives of one layer, where the store keeps them: for a caller in the same
// process and on the same backend, which then scores them on a stream of its own.
struct IndexView {
  std::vector<kernels::RepresentativeChunk> chunks;
  int64_t blocks = 0;
  // Keeps the chunks in place; they never change. Must be let go before the store is.
  std::shared_ptr<const void> pin;
};

struct StoreStats {
  int64_t contexts = 0;     // that are not committed
  int64_t committed = 0;    // contexts
  int64_t blocks = 0;       // distinct payloads, shared ones once
  int64_t blocks_ram = 0;   // of these in the RAM tier (a block may be in both)
  int64_t blocks_cold = 0;  // of these in the cold tier
  int64_t ram_bytes = 0;    // of the RAM tier taken now, in whole pages for each payload
  int64_t ram_capacity_bytes = 0;
  int64_t pinned_bytes = 0;          // of ram_bytes, held by handles
  int64_t dirty_bytes = 0;           // of ram_bytes, not in the cold tier yet
  int64_t cold_bytes = 0;            // payload bytes in the cold tier
  int64_t representative_bytes = 0;  // memory for representatives, shared ones once
  int64_t bookkeeping_bytes = 0;     // for contexts and what is kept of every block, about
  int64_t selects = 0;               // Select calls since start
  int64_t ram_hits = 0;              // payloads served from RAM
  int64_t cold_hits = 0;             // payloads read back from the cold tier
  int64_t demotions = 0;             // payloads written to the cold tier since start
  int64_t evictions = 0;             // payloads that left RAM, being cold, for others since start
  int64_t corrupt_blocks = 0;        // payloads that failed their check and were refused
  int64_t disk_free_bytes = -1;      // where the cold tier is; -1: it is on no disk, or not yet
};

// Thread-safe; calls for different contexts, and for different layers, run in parallel. Blocks are
// dense per layer: 0, 1, ... Errors of every method that takes a context:
//   NOT_FOUND         the context does not exist (never created, dropped, or the store restarted)
//   OUT_OF_RANGE      `layer` is not in [0, geometry.layers)
//   INVALID_ARGUMENT  a size does not fit the context's geometry
//   UNAVAILABLE       a remote store does not answer, although it was tried again
class MemoryStore {
 public:
  virtual ~MemoryStore() = default;

  // Makes an empty context. Repeating a call is OK, and leaves the context as it has become.
  //   INVALID_ARGUMENT    names the field that is out of its limits (limits.h); the id is zero
  //   ALREADY_EXISTS      the context exists with other options, or is a fork
  //   RESOURCE_EXHAUSTED  too many contexts, or the RAM tier is smaller than one block
  virtual absl::Status Create(const ContextId& id, const ContextOptions& options) = 0;

  // What it was made with, or forked from.
  virtual absl::StatusOr<ContextOptions> Describe(const ContextId& context) = 0;

  // Stores payloads of `layer` as blocks first_block, first_block + 1, ... Each is copied once, and
  // checked on the way. Repeating a call is OK.
  //   ALREADY_EXISTS       a block holds different bytes; a stored block never changes
  //   FAILED_PRECONDITION  first_block leaves a gap, or the context is committed
  //   RESOURCE_EXHAUSTED   no tier has room; the text says which limit to raise
  virtual absl::Status Append(const ContextId& context, int32_t layer, int64_t first_block,
                              std::span<const std::span<const std::byte>> payloads) = 0;

  // Makes stored blocks selectable: representatives [count, slots, heads, head_dim]
  // (Geometry::representative_shape) of blocks first_block, ... They come after the payloads, as
  // late as they like: a mean key depends on later queries. They are kept in the geometry's dtype.
  //   FAILED_PRECONDITION  a block's payload is not stored yet, a gap, or the context is committed
  //   INVALID_ARGUMENT     a value is not finite, or not in the range of the geometry's dtype, or
  //                        a least key is above the largest
  //   ALREADY_EXISTS       a block has different representatives already, as they are kept
  virtual absl::Status Publish(const ContextId& context, int32_t layer, int64_t first_block,
                               std::span<const float> representatives) = 0;

  // For each query the k published blocks most relevant to it, exact, and the payloads that the
  // caller lacks, in one round trip. May read a cold tier. Queries whose contexts share blocks (a
  // context and its forks) share the pass over their representatives. An answer does not depend on
  // the other queries. Errors of a query alone stand in its Selection:
  //   NOT_FOUND, OUT_OF_RANGE, INVALID_ARGUMENT (query not finite, k out of its limits, `have` not
  //   ascending); DATA_LOSS: a needed block failed its integrity check, it is never returned;
  //   RESOURCE_EXHAUSTED: the payloads do not fit in RAM next to those that handles hold already
  // Errors of the whole call: INVALID_ARGUMENT (too many queries, or more than
  // limits::kMaxSelectedBlocks blocks for all of them together), UNAVAILABLE, CANCELLED.
  virtual absl::StatusOr<std::vector<Selection>> Select(const SelectRequest& request) = 0;

  // What is published of a layer now.
  //   UNIMPLEMENTED  the store is in another process: use Select
  virtual absl::StatusOr<IndexView> View(const ContextId& context, int32_t layer) = 0;

  // Payloads of stored blocks, in the order asked.
  //   OUT_OF_RANGE        a block is not stored
  //   DATA_LOSS           a block failed its integrity check
  //   RESOURCE_EXHAUSTED  as for Select
  virtual absl::StatusOr<std::vector<BlockHandle>> Fetch(const ContextId& context, int32_t layer,
                                                         std::span<const int64_t> blocks) = 0;

  // A new context that begins with the blocks of these parts, one behind the other, and with their
  // representatives, shares them, and then grows apart. Repeating a call is OK, as long as none of
  // them has grown.
  //   ALREADY_EXISTS       `child` exists and is something else
  //   INVALID_ARGUMENT     `child` is zero, the number of parts out of its limits, `blocks`
  //                        negative, a context twice among them, or the options of two differ
  //   FAILED_PRECONDITION  a part that another follows has not the same number of blocks in every
  //                        layer, all of them published; or one of several has itself several
  //   RESOURCE_EXHAUSTED   too many contexts, or no memory for what is kept of this one
  virtual absl::Status Fork(std::span<const ForkPart> parts, const ContextId& child) = 0;
  absl::Status Fork(const ContextId& parent, const ContextId& child, int64_t blocks = kAllBlocks) {
    const ForkPart part{.context = parent, .blocks = blocks};
    return Fork({&part, 1}, child);
  }

  // Forgets the context, also a committed one; payloads go when no fork needs them.
  virtual absl::Status Drop(const ContextId& context) = 0;

  // Makes the context, as it is now, outlive every process. Once it returns OK, neither the end of
  // any process nor of the machine loses anything of it. Repeating a call is OK.
  //   INVALID_ARGUMENT     the id is zero, or name or sizes are out of their limits
  //   ALREADY_EXISTS       the name belongs to another committed context than `replaces`, or the id
  //                        to something else
  //   FAILED_PRECONDITION  the store keeps nothing on disk; or the layers of the context do not all
  //                        have `blocks` blocks, as many published; or it begins with several parts
  //   RESOURCE_EXHAUSTED   the disk is full; what was committed before is unharmed
  virtual absl::Status Commit(const CommitRequest& request) = 0;

  // NOT_FOUND: the tenant has no committed context of that name.
  virtual absl::StatusOr<CommittedContext> FindCommitted(std::string_view tenant,
                                                         std::string_view name) = 0;
  // All of the tenant's, by name.
  virtual absl::StatusOr<std::vector<CommittedContext>> ListCommitted(std::string_view tenant) = 0;
  // Of the tenant's contexts that were committed with these options and this exec block, the one
  // that begins with the most exec blocks of `tokens`; of equals the first by name. Found by
  // hashes (prefix_hash.h): compare the checkpoint's tokens before use.
  //   NOT_FOUND         none begins with the first exec block of them
  //   INVALID_ARGUMENT  the options are out of their limits, or exec_block or the tokens are
  virtual absl::StatusOr<Prefix> FindPrefix(const ContextOptions& options, int32_t exec_block,
                                            std::span<const int32_t> tokens) = 0;
  // What Commit was given.
  //   NOT_FOUND  no committed context has the id
  //   DATA_LOSS  it failed its integrity check
  virtual absl::StatusOr<Checkpoint> ReadCheckpoint(const ContextId& committed) = 0;

  virtual absl::StatusOr<StoreStats> Stats() = 0;
};

}  // namespace infllm::memstore
