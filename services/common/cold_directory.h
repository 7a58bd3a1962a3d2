// Where a store that does not outlive its process keeps its blocks on disk.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "memstore/cold_store.h"

namespace infllm::services {

// A cold store on RocksDB in `directory`/infllm-cold, which is emptied now and removed at the end:
// contexts do not survive the process, so neither need their blocks. Nothing else in `directory` is
// touched. Only its user can read infllm-cold: the blocks hold what was read.
//   FAILED_PRECONDITION  another process uses this directory for its blocks, or infllm-cold is a
//                        symbolic link or a file
//   PERMISSION_DENIED    infllm-cold or its lock belongs to another user
//   PERMISSION_DENIED, UNAVAILABLE: by errno, or those of OpenRocksDb
absl::StatusOr<std::unique_ptr<memstore::ColdStore>> OpenColdDirectory(
    const std::string& directory);

// The same in a fresh directory below $TMPDIR, or /var/tmp if that is not set: made when the first
// block is written, since most runs never fill the RAM tier. What killed processes have left there
// is removed on that occasion.
std::unique_ptr<memstore::ColdStore> NewScratchColdStore();

}  // namespace infllm::services
