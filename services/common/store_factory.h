#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "memstore/memory_store.h"
#include "services/memstore/credentials.h"

namespace infllm::services {

struct StoreOptions {
  // `host:port` or `unix:/path` of an infllm-memstore; empty: a store in this process.
  std::string memstore_target;
  // Of a remote store: as in RemoteStoreOptions.
  ClientSecurity security;
  const std::atomic<bool>* cancel = nullptr;
  // Of a store in this process:
  int64_t ram_bytes = int64_t{4} << 30;  // of the RAM tier
  // Of that, representatives and all bookkeeping (InProcessOptions::memory_bytes).
  int64_t memory_bytes = INT64_MAX;
  // Where committed contexts are, and blocks that RAM has no room for; empty: nothing can be
  // committed, and blocks go to a scratch directory (NewScratchColdStore).
  std::string data_dir;
};

// The store that a worker is told to use. `backend` must outlive it; a remote store does not use
// it.
//   INVALID_ARGUMENT  ram_bytes is not positive
//   and the errors of ConnectRemoteStore(), OpenRocksDb() and NewInProcessStore()
absl::StatusOr<std::unique_ptr<memstore::MemoryStore>> OpenStore(const StoreOptions& options,
                                                                 kernels::Backend& backend);

}  // namespace infllm::services
