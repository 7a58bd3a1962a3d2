#include "services/common/store_factory.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "memstore/cold_store.h"
#include "memstore/in_process_store.h"
#include "services/common/scratch_cold_store.h"
#include "services/memstore/remote_store.h"

namespace infllm::services {

absl::StatusOr<std::unique_ptr<memstore::MemoryStore>> OpenStore(const StoreOptions& options,
                                                                 kernels::Backend& backend) {
  if (!options.memstore_target.empty()) {
    if (!options.data_dir.empty()) {
      return absl::InvalidArgumentError(
          "--memstore and --data-dir are both given: the daemon has its own directory");
    }
    return ConnectRemoteStore(options.memstore_target,
                              {.security = options.security, .cancel = options.cancel});
  }
  if (options.ram_bytes <= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("ram-bytes is ", options.ram_bytes, "; the RAM tier needs at least 1 byte"));
  }
  std::unique_ptr<memstore::ColdStore> cold;
  if (options.data_dir.empty()) {
    cold = NewScratchColdStore();
  } else {
    INFLLM_ASSIGN_OR_RETURN(cold, memstore::OpenRocksDb({.directory = options.data_dir}));
  }
  return memstore::NewInProcessStore(
      {.ram_capacity_bytes = options.ram_bytes, .memory_bytes = options.memory_bytes}, backend,
      std::move(cold));
}

}  // namespace infllm::services
