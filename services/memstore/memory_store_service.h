#pragma once

#include <memory>

#include "memstore/memory_store.h"
#include "services/memstore/call_gate.h"

namespace grpc {
class Service;
}

namespace infllm::services {

// Serves `store` as infllm.v1.MemoryStore. Calls pass through `gate`; those that find it closed are
// UNAVAILABLE. Both must outlive the service and every call to it.
// Thread-safe: calls run on gRPC's handler threads and block there while the store reads a disk.
// Payloads go out of the RAM tier without a copy; a pin ends when the transport has sent the block.
std::unique_ptr<grpc::Service> NewMemoryStoreService(memstore::MemoryStore& store, CallGate& gate);

}  // namespace infllm::services
