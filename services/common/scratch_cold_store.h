// Where a store that commits nothing keeps its blocks on disk.
#pragma once

#include <memory>

#include "memstore/cold_store.h"

namespace infllm::services {

// A cold store on RocksDB in a fresh directory below $TMPDIR, or /var/tmp if that is not set: made
// when the first block is written, since most runs never fill the RAM tier, and removed at the end.
// What killed processes have left there is removed on that occasion. Only its user can read it.
std::unique_ptr<memstore::ColdStore> NewScratchColdStore();

}  // namespace infllm::services
