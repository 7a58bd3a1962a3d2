#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "memstore/memory_store.h"
#include "worker/attention/attention_options.h"
#include "worker/attention/page_arena.h"

namespace infllm::worker {

// The retrieved blocks that one layer of one sequence keeps at hand, so that a block selected again
// is not fetched again. Where the device reads host memory in place a cached block is a pin on the
// store's own bytes; elsewhere a copy in a page of the sequence. Not thread-safe.
class BlockCache {
 public:
  struct Options {
    int64_t capacity_blocks = 0;
    CachePolicy policy = CachePolicy::kLru;
    double decay = 0;  // of kLruS, per exec block
  };
  // `slots`: pages for copies, capacity_blocks of them; none where blocks are read in place.
  BlockCache(const Options& options, std::vector<PageNumber> slots)
      : options_(options), free_slots_(std::move(slots)) {}

  // Of the cached blocks, ascending: SelectQuery::have, LookUpItem::cached.
  std::span<const int64_t> indices() const { return indices_; }
  // Their records, parallel to indices().
  std::span<const std::byte* const> records() const { return records_; }

  // Makes room for the blocks of a selection that are not cached: evicts by policy, but none of
  // `keep`, which contains the selection. Pins of what is evicted go to `retired`, with their
  // indices: operations may read them still. If all must be kept, the cache exceeds its capacity.
  // REQUIRES: both are ascending.
  using Retired = std::vector<std::pair<int64_t, memstore::BlockHandle>>;
  void Evict(std::span<const int64_t> selected, std::span<const int64_t> keep, Retired& retired);
  // A page for a copy of the next block to be inserted; -1 where blocks are read in place.
  PageNumber TakeSlot();
  // REQUIRES: not cached, Evict has made room.
  void Insert(int64_t index, PageNumber slot, const std::byte* record, memstore::BlockHandle pin);
  // The cached record, or null.
  const std::byte* Find(int64_t index) const;

  // Ends the retrieval of an exec block: its blocks are the most recently used.
  void Touch(std::span<const int64_t> selected);
  // Ends a step of kLruS: s <- s * decay, and selected blocks add the attention probability that
  // they drew (paper sec. 3.2). `mass` is parallel to `selected`.
  void Score(std::span<const int64_t> selected, std::span<const float> mass);

  // The same content, pins shared. Copies in pages are not: such a cache starts empty.
  BlockCache Fork(std::vector<PageNumber> slots) const;

  int64_t size_bytes() const;

 private:
  struct Entry {
    memstore::BlockHandle pin;
    PageNumber slot = -1;
    double score = 0;  // kLru: the step of the last selection; kLruS: decayed mass
  };
  size_t PlaceOf(int64_t index) const;

  Options options_;
  std::vector<PageNumber> free_slots_;
  int64_t step_ = 0;
  std::vector<int64_t> indices_;                    // ascending
  std::vector<const std::byte*> records_;           // parallel to indices_
  std::vector<Entry> entries_;                      // parallel to indices_
  std::vector<std::pair<double, size_t>> victims_;  // scratch of Evict
};

}  // namespace infllm::worker
