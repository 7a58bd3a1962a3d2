#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/hash/hash.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "memstore/block_index.h"
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

 private:
  static constexpr int64_t kSegmentBlocks = 256;
  using Segment = std::vector<std::shared_ptr<StoredBlock>>;

  std::vector<std::shared_ptr<const Segment>> full_;  // shared with copies
  Segment tail_;
  int64_t size_ = 0;
};

// One context. Every layer has its own lock, which covers no I/O.
struct Context {
  struct Layer {
    // `parent` is locked by the caller, or null.
    Layer(BlockIndex index_in, const Layer* parent);

    std::mutex mu;
    BlockTable blocks ABSL_GUARDED_BY(mu);
    BlockIndex index ABSL_GUARDED_BY(mu);  // its size() blocks are published
    // Sizes of both that the context began with: those of its parent then.
    const int64_t forked_blocks;
    const int64_t forked_published;
  };
  std::shared_ptr<const BlockOwner> owner;  // shared with the blocks appended here
  std::optional<ContextId> parent;          // that it was forked from
  std::vector<std::unique_ptr<Layer>> layers;
  std::atomic<bool> sealed = false;  // checked under a layer's lock before the layer changes

  const Geometry& geometry() const { return owner->options.geometry; }
};

// All contexts by id. Thread-safe. A context that is dropped lives on until calls that have found
// it are done.
class ContextRegistry {
 public:
  // `backend` must outlive the registry and all contexts.
  explicit ContextRegistry(kernels::Backend& backend) : backend_(backend) {}

  // Both may be repeated, as MemoryStore says.
  //   ALREADY_EXISTS      the id is that of something else
  //   RESOURCE_EXHAUSTED  limits::kMaxContexts exist
  absl::Status Create(const ContextId& id, const ContextOptions& options);
  absl::Status Fork(Context& parent, const ContextId& child);
  // NOT_FOUND
  absl::StatusOr<std::shared_ptr<Context>> Find(const ContextId& id) const;
  absl::StatusOr<std::shared_ptr<Context>> Remove(const ContextId& id);

  int64_t size() const;
  int64_t representative_bytes() const { return representative_bytes_; }

 private:
  // The stream that writes representatives.
  absl::StatusOr<kernels::Stream> WriteStream();
  // Null if it is in, or what has the id already.
  absl::StatusOr<std::shared_ptr<Context>> Insert(std::shared_ptr<Context> context);

  kernels::Backend& backend_;
  std::atomic<int64_t> representative_bytes_ = 0;
  mutable std::shared_mutex mu_;
  std::optional<kernels::Stream> write_stream_ ABSL_GUARDED_BY(mu_);  // made for the first context
  std::unordered_map<ContextId, std::shared_ptr<Context>, absl::Hash<ContextId>> contexts_
      ABSL_GUARDED_BY(mu_);
};

}  // namespace infllm::memstore
