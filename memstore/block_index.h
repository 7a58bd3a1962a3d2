#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "memstore/block.h"

namespace infllm::memstore {

struct ScoredBlock {
  int64_t index = 0;
  float score = 0;
};

// The representatives of one layer of one context, and exact top-k over them. Kept in the
// geometry's dtype. Not thread-safe: the owner locks. Copies made by Fork() share storage and then
// grow apart.
class BlockIndex {
 public:
  virtual ~BlockIndex() = default;
  virtual int64_t size() const = 0;
  // Of the representatives, shared ones included.
  virtual size_t size_bytes() const = 0;
  // Representatives [count, slots, heads, head_dim] of the next `count` blocks.
  virtual absl::Status Add(std::span<const float> representatives) = 0;
  // Whether `block` has these representatives, once rounded to the dtype they are kept in.
  // REQUIRES: 0 <= block < size().
  virtual bool Holds(int64_t block, std::span<const float> representative) const = 0;
  // The min(k, size()) best blocks, best first; ties go to the smaller index.
  virtual absl::StatusOr<std::vector<ScoredBlock>> TopK(std::span<const float> query, int64_t k,
                                                        kernels::Scoring scoring) = 0;
  virtual std::unique_ptr<BlockIndex> Fork() const = 0;
};

// Scans with the ops of `backend`, which must be host-accessible and outlive the index. Memory for
// representatives is counted in `allocated_bytes`, which must outlive the index too: what forks
// share is counted once.
std::unique_ptr<BlockIndex> NewBlockIndex(kernels::Backend& backend, const Geometry& geometry,
                                          std::atomic<int64_t>& allocated_bytes);

}  // namespace infllm::memstore
