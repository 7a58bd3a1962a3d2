#pragma once

#include <memory>

#include "memstore/memory_store.h"

namespace grpc {
class Service;
}

namespace infllm::services {

// Serves `store`, which must outlive the service and every call to it, as infllm.v1.MemoryStore.
// Thread-safe: calls run on gRPC's handler threads and block there while the store reads a disk.
// Payloads go out of the RAM tier without a copy; a pin ends when the transport has sent the block.
std::unique_ptr<grpc::Service> NewMemoryStoreService(memstore::MemoryStore& store);

}  // namespace infllm::services
