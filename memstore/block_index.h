#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "memstore/block.h"
#include "memstore/memory_store.h"

namespace infllm::memstore {

// The representatives of one layer of one context, in memory of a backend and in the geometry's
// dtype, and behind them, where the backend makes such, the codes of their whole runs
// (kernels::EncodeBoundsArgs). Grows only: what View() has shown stays as it is. Copies made by
// Fork() share memory and then grow apart. Not thread-safe: the owner locks.
class BlockIndex {
 public:
  // Representatives are written by `stream` of `backend`, which other indices may share. Memory
  // for them is counted in `allocated_bytes`: what forks share is counted once. All three must
  // outlive the index, its forks and views.
  BlockIndex(kernels::Backend& backend, kernels::Stream stream, const Geometry& geometry,
             std::atomic<int64_t>& allocated_bytes);

  int64_t size() const { return size_; }
  // Of the representatives, shared ones included.
  size_t size_bytes() const { return static_cast<size_t>(size_) * block_bytes_; }

  // Representatives [count, slots, heads, head_dim] of the next `count` blocks. Waits for the
  // device. After an error the index has as many of them as size() says.
  absl::Status Add(std::span<const float> representatives);
  // The same, of representatives as they are kept: those that Read() has given.
  absl::Status AddKept(std::span<const std::byte> kept);
  // Representatives of [first, first + blocks), as they are kept. Waits for the device.
  // REQUIRES: these blocks are there.
  absl::StatusOr<std::string> Read(int64_t first, int64_t blocks) const;
  // Whether `block` has these representatives, once rounded to the dtype they are kept in. Waits
  // for the device.
  // REQUIRES: 0 <= block < size().
  absl::StatusOr<bool> Holds(int64_t block, std::span<const float> representative) const;
  IndexView View() const;
  // Of the first `blocks` blocks. REQUIRES: they are there.
  BlockIndex Fork(int64_t blocks) const;
  // Behind its own those of a fork, which it shares like a fork does.
  void Join(const BlockIndex& fork);

 private:
  // One allocation.
  class Chunk {
   public:
    // Codes, if there are any, begin at `codes_at`.
    Chunk(kernels::Buffer buffer, size_t codes_at, std::atomic<int64_t>& allocated_bytes);
    ~Chunk();
    Chunk(const Chunk&) = delete;
    Chunk& operator=(const Chunk&) = delete;
    std::byte* data() const { return buffer_.data(); }
    std::byte* codes() const { return data() + codes_at_; }

   private:
    kernels::Buffer buffer_;
    const size_t codes_at_;
    std::atomic<int64_t>& allocated_bytes_;
  };
  using Chunks = std::vector<std::shared_ptr<const Chunk>>;  // each shared with forks
  struct Extent {
    int64_t first = 0;   // index of a chunk's first block
    int64_t blocks = 0;  // that it holds, as far as this index can see
  };

  // Where the extent of a block is in the list.
  size_t ExtentOf(int64_t block) const;
  absl::Status AddChunk(int64_t wanted_blocks);
  // Enqueues the codes of the runs that are whole now that the last chunk has so many blocks.
  absl::Status EncodeLast(int64_t blocks);
  kernels::EncodeBoundsArgs EncodeArgs() const;  // without runs
  // As they are kept.
  std::vector<std::byte> Converted(std::span<const float> representatives) const;

  kernels::Backend* backend_;
  kernels::Stream stream_;
  Geometry geometry_;
  size_t floats_;       // of one block's representative
  size_t block_bytes_;  // of it as it is kept
  bool coded_;          // whether the backend makes codes of such
  std::atomic<int64_t>* allocated_bytes_;
  std::shared_ptr<const Chunks> chunks_;  // shared with views and forks: replaced, never changed
  std::vector<Extent> extents_;           // parallel to *chunks_
  int64_t size_ = 0;
  int64_t shared_ = 0;  // of these, those that came with Fork()
  int64_t room_ = 0;    // blocks that the last chunk can still take from this index
};

}  // namespace infllm::memstore
