#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "memstore/memory_store.h"
#include "worker/attention/attention_options.h"

namespace infllm::worker {

// The retrieved blocks that one layer of one context keeps on its device, so that a block selected
// again is not fetched again. On a host-accessible device a cached block is a pin on the store's
// own bytes, elsewhere a copy. Not thread-safe.
class BlockCache {
 public:
  struct Options {
    int64_t capacity_blocks = 0;  // at least the size of any selection
    CachePolicy policy = CachePolicy::kLru;
    double decay = 0;  // of kLruS, per step
  };
  // `backend` must outlive the object.
  BlockCache(kernels::Backend& backend, const Options& options)
      : backend_(&backend), options_(options) {}

  // Indices of the cached blocks, ascending: SelectRequest::have.
  std::span<const int64_t> indices() const { return indices_; }

  // Takes in a selection whose uncached blocks carry payloads, evicting by policy but never a
  // selected block. Sets records[i] to the device bytes of selection.blocks[i]; they stay valid
  // until the next Admit.
  absl::Status Admit(const memstore::Selection& selection, std::vector<const std::byte*>& records);

  // Ends a step of kLruS: s <- s * decay, and selected blocks add the attention probability they
  // drew (paper sec. 3.2). `mass` is parallel to the last Admit's selection.
  void Score(const memstore::Selection& selection, std::span<const float> mass);

  // The same content, pins shared. Copies on a device are not: such a cache starts empty.
  BlockCache Fork() const;

  int64_t size_bytes() const;

 private:
  struct Entry {
    memstore::BlockHandle pin;
    kernels::Buffer copy;
    double score = 0;  // kLru: the step of the last selection; kLruS: decayed mass
    const std::byte* data() const {
      return copy.data() != nullptr ? copy.data() : pin.payload().data();
    }
  };
  void Evict(const memstore::Selection& selection);

  kernels::Backend* backend_;
  Options options_;
  int64_t step_ = 0;
  std::vector<int64_t> indices_;  // ascending
  std::vector<Entry> entries_;    // parallel to indices_
};

}  // namespace infllm::worker
