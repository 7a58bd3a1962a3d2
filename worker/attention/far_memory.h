#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "memstore/memory_store.h"
#include "worker/attention/block_cache.h"
#include "worker/attention/page_arena.h"

namespace infllm::worker {

// What one sequence under `infllm` has beyond its window: its context in the memory store, and for
// each layer the blocks at hand. Owns the context. Not thread-safe.
struct FarMemory {
  struct Layer {
    BlockCache cache;
    memstore::IndexView view;  // of the published blocks; not used with a remote store
  };

  FarMemory(memstore::MemoryStore& store, const memstore::ContextId& id, PageArena& arena)
      : store(&store), context(id), arena(&arena) {}
  FarMemory(const FarMemory&) = delete;
  FarMemory& operator=(const FarMemory&) = delete;
  ~FarMemory() {
    layers.clear();  // its pins go first, so that Drop can free everything
    for (const PageNumber page : cache_pages) arena->GiveBack(page);
    for (const PageNumber page : mass_pages) mass_arena->GiveBack(page);
    store->Drop(context).IgnoreError();
  }

  memstore::MemoryStore* store;
  memstore::ContextId context;
  PageArena* arena;
  std::vector<Layer> layers;
  // Blocks of other contexts, all published. The store has them before the sequence's own, so that
  // the store's number of a block is its own number behind them.
  int64_t mounted_blocks = 0;
  int64_t stored_blocks = 0;            // whose records the store has, in every layer
  int64_t published_blocks = 0;         // of these, those that can be selected
  std::vector<PageNumber> cache_pages;  // the slots of the caches, where they hold copies

  // kMeanKey only: for each kept page, the attention that its tokens drew, [q_heads, page_tokens].
  PageArena* mass_arena = nullptr;
  std::deque<PageNumber> mass_pages;  // of pages first_mass_page, ...
  int64_t first_mass_page = 0;
};

}  // namespace infllm::worker
