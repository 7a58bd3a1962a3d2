#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>
#include <vector>

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
    std::mutex mu;
    BlockTable blocks;                  // guarded by mu
    std::unique_ptr<BlockIndex> index;  // guarded by mu; its size() blocks are published
  };
  std::shared_ptr<const BlockOwner> owner;  // shared with the blocks appended here
  std::vector<std::unique_ptr<Layer>> layers;
  std::atomic<bool> sealed = false;  // checked under a layer's lock before the layer changes

  const Geometry& geometry() const { return owner->options.geometry; }
};

// All contexts by id. Thread-safe. A context that is dropped lives on until calls that have found
// it are done.
class ContextRegistry {
 public:
  // `backend` must outlive the registry and all contexts.
  explicit ContextRegistry(kernels::Backend& backend);

  // RESOURCE_EXHAUSTED: limits::kMaxContexts exist.
  absl::StatusOr<ContextId> Create(const ContextOptions& options);
  absl::StatusOr<ContextId> Fork(Context& parent);
  // NOT_FOUND
  absl::StatusOr<std::shared_ptr<Context>> Find(ContextId id) const;
  absl::StatusOr<std::shared_ptr<Context>> Remove(ContextId id);

  int64_t size() const;
  int64_t representative_bytes() const { return representative_bytes_; }

 private:
  // Without layers.
  std::shared_ptr<Context> NewContext(const ContextOptions& options);
  absl::StatusOr<ContextId> Insert(std::shared_ptr<Context> context);

  kernels::Backend& backend_;
  std::atomic<int64_t> representative_bytes_ = 0;
  std::atomic<uint64_t> id_state_;
  mutable std::shared_mutex mu_;
  std::unordered_map<ContextId, std::shared_ptr<Context>> contexts_;  // guarded by mu_
};

}  // namespace infllm::memstore
