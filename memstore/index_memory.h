#pragma once

#include <atomic>
#include <cstdint>

namespace infllm::memstore {

// What a store holds in memory beside payloads, in bytes. Thread-safe.
struct IndexMemory {
  std::atomic<int64_t> representatives = 0;
  std::atomic<int64_t> contexts = 0;  // their layers and options, about
};

}  // namespace infllm::memstore
