#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "memstore/memory_store.h"

namespace infllm::services {

struct StoreOptions {
  // `host:port` or `unix:/path` of an infllm-memstore; empty: a store in this process.
  std::string memstore_target;
  // Of a remote store: RemoteStoreOptions::cancel.
  const std::atomic<bool>* cancel = nullptr;
  // Of a store in this process:
  int64_t ram_bytes = int64_t{4} << 30;  // of the RAM tier
  // Where blocks go that RAM has no room for (see OpenColdDirectory); empty: a scratch directory,
  // made when needed and removed at the end.
  std::string cold_dir;
};

// The store that a worker is told to use. `backend` must outlive it; a remote store does not use
// it.
//   INVALID_ARGUMENT  ram_bytes is not positive
//   and the errors of ConnectRemoteStore() and OpenColdDirectory()
absl::StatusOr<std::unique_ptr<memstore::MemoryStore>> OpenStore(const StoreOptions& options,
                                                                 kernels::Backend& backend);

}  // namespace infllm::services
