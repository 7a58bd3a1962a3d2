#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "memstore/memory_store.h"
#include "services/common/endpoint.h"
#include "services/memstore/credentials.h"
#include "services/memstore/server_events.h"

namespace infllm::services {

// A gRPC server with infllm.v1.MemoryStore over one store, gRPC health (grpc.health.v1) and
// reflection, which need no proof of who asks. Overall it is healthy as long as it runs; the
// service, by its name, while it can serve, too (LeasingService::CanServe).
class MemstoreServer {
 public:
  // Listens on `listen` and serves `store`, which must outlive the server.
  //   Errors: those of PrepareToListen() and credentials.h.
  // Contexts of a client that has gone are dropped after `lease_grace`. Only the user of this
  // process can connect to a Unix socket. `events` may be null, else it must outlive the server.
  static absl::StatusOr<std::unique_ptr<MemstoreServer>> Start(
      const Endpoint& listen, memstore::MemoryStore& store,
      absl::Duration lease_grace = absl::Seconds(10), const ServerSecurity& security = {},
      ServerEvents* events = nullptr);
  // Shuts down without grace if that has not happened yet.
  ~MemstoreServer();

  // Where it listens; a port of 0 has become the one that was picked.
  const Endpoint& endpoint() const;
  // Leases that are held now, or were until less than the grace ago.
  int64_t leases() const;

  // Reports itself unhealthy, takes no new calls, and returns soon after the running ones have
  // ended; those that have not after `grace` are cancelled. The file of a Unix socket goes.
  void Shutdown(absl::Duration grace);

 private:
  struct Impl;
  explicit MemstoreServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace infllm::services
