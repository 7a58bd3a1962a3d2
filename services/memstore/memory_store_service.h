#pragma once

#include <cstdint>
#include <memory>

#include "absl/time/time.h"
#include "memstore/memory_store.h"
#include "services/memstore/call_gate.h"
#include "services/memstore/identity.h"
#include "services/memstore/server_events.h"

namespace grpc {
class Service;
}

namespace infllm::services {

// Serves `store` as infllm.v1.MemoryStore, to each caller that `authenticator` knows as its tenant
// may see it (tenant_store.h). Calls pass through `gate`; those that find it closed are
// UNAVAILABLE. Both must outlive the service, and it every call. Contexts of a client that has gone
// are dropped after `lease_grace`. `events` may be null, else it must outlive the service, too.
// Thread-safe: calls run on threads of the service and block there while the store reads a disk.
// Payloads go out of the RAM tier without a copy; a pin ends when the transport has sent the block.
class LeasingService {
 public:
  virtual ~LeasingService() = default;
  virtual grpc::Service& service() = 0;
  // Ends the calls that hold leases; their clients call again.
  virtual void EndLeases() = 0;
  // How many leases are held now, or were until less than the grace ago.
  virtual int64_t leases() const = 0;
  // False while the store cannot write, or calls wait long for a thread.
  virtual bool CanServe() const = 0;
};
std::unique_ptr<LeasingService> NewMemoryStoreService(
    memstore::MemoryStore& store, CallGate& gate, absl::Duration lease_grace,
    std::unique_ptr<Authenticator> authenticator = NewTrustingAuthenticator(),
    ServerEvents* events = nullptr);

}  // namespace infllm::services
