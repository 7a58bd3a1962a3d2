#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/hash/hash.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "memstore/block_index.h"
#include "memstore/committed_part.h"
#include "memstore/index_memory.h"
#include "memstore/memory_store.h"
#include "memstore/tiered_blocks.h"

namespace infllm::memstore {

// The blocks of one layer, in order. A copy shares all full segments, so it costs little, and then
// grows apart. Not thread-safe.
class BlockTable {
 public:
  int64_t size() const { return size_; }
  // REQUIRES: 0 <= index < size().
  const std::shared_ptr<StoredBlock>& operator[](int64_t index) const;
  void Append(std::shared_ptr<StoredBlock> block);
  // The first `blocks` of them. REQUIRES: blocks <= size().
  BlockTable First(int64_t blocks) const;
  void Join(const BlockTable& other);

 private:
  static constexpr int64_t kSegmentBlocks = 256;
  using Segment = std::vector<std::shared_ptr<StoredBlock>>;

  std::vector<std::shared_ptr<const Segment>> full_;  // shared with copies
  Segment tail_;
  int64_t size_ = 0;
};

// One context. Every layer has its own lock, which covers no I/O.
struct Context {
  Context(bool is_committed, std::shared_ptr<const BlockOwner> owner_in, IndexMemory& memory_in);
  ~Context() { memory.contexts -= bytes; }
  // What one with these options takes without its blocks and representatives, about.
  static int64_t BytesOf(const ContextOptions& options);
  // Before others see it.
  void CountJoined(int64_t more);

  struct Layer {
    Layer(BlockTable blocks_in, BlockIndex index_in);

    std::mutex mu;
    BlockTable blocks ABSL_GUARDED_BY(mu);
    BlockIndex index ABSL_GUARDED_BY(mu);  // its size() blocks are published
    // Sizes of both that the context began with: those of its parents then.
    const int64_t forked_blocks;
    const int64_t forked_published;
  };
  const std::shared_ptr<const BlockOwner> owner;  // shared with the blocks appended here
  std::vector<ForkPart> parents;                  // that it was forked from
  bool joined = false;                            // begins with blocks of several contexts
  int64_t joined_bytes = 0;                       // of what names these
  std::vector<std::unique_ptr<Layer>> layers;
  const bool committed = false;  // it never changes
  IndexMemory& memory;           // counts `bytes`
  int64_t bytes;                 // set before others see the context

  // What commits of it can use of earlier ones.
  std::mutex mu;
  // The last committed context that it comes from; zero: none.
  ContextId base ABSL_GUARDED_BY(mu);
  std::vector<PartUse> committed_representatives ABSL_GUARDED_BY(mu);  // of its first blocks

  const Geometry& geometry() const { return owner->options.geometry; }
};

// All contexts by id. Thread-safe. A context that is dropped lives on until calls that have found
// it are done.
class ContextRegistry {
 public:
  // Both must outlive the registry and all contexts.
  ContextRegistry(kernels::Backend& backend, IndexMemory& memory)
      : backend_(backend), memory_(memory) {}

  // Both may be repeated, as MemoryStore says.
  //   ALREADY_EXISTS      the id is that of something else
  //   RESOURCE_EXHAUSTED  limits::kMaxContexts exist
  absl::Status Create(const ContextId& id, const ContextOptions& options);
  struct Part {
    std::shared_ptr<Context> context;
    int64_t blocks = 0;
  };
  absl::Status Fork(std::span<const Part> parts, const ContextId& child);
  // What Fork will count.
  static int64_t BytesOf(std::span<const Part> parts);
  // A committed context of `id` that is as `context` now; it is not among the others.
  static std::shared_ptr<Context> Snapshot(Context& context, const ContextId& id);
  // An index for a layer of a context that is not made by Create or Fork.
  absl::StatusOr<BlockIndex> NewIndex(const Geometry& geometry);
  // NOT_FOUND
  absl::StatusOr<std::shared_ptr<Context>> Find(const ContextId& id) const;
  absl::StatusOr<std::shared_ptr<Context>> Remove(const ContextId& id);

  int64_t size() const;
  IndexMemory& memory() { return memory_; }

 private:
  static std::shared_ptr<Context> Copy(Context& from, const ContextId& id, int64_t blocks,
                                       bool committed);
  static absl::Status Join(Context& fork, const Part& part);
  // The stream that writes representatives.
  absl::StatusOr<kernels::Stream> WriteStream();
  // Null if it is in, or what has the id already.
  absl::StatusOr<std::shared_ptr<Context>> Insert(std::shared_ptr<Context> context);

  kernels::Backend& backend_;
  IndexMemory& memory_;
  mutable std::shared_mutex mu_;
  std::optional<kernels::Stream> write_stream_ ABSL_GUARDED_BY(mu_);  // made for the first context
  std::unordered_map<ContextId, std::shared_ptr<Context>, absl::Hash<ContextId>> contexts_
      ABSL_GUARDED_BY(mu_);
};

}  // namespace infllm::memstore
