#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "memstore/memory_store.h"
#include "services/common/endpoint.h"

namespace infllm::services {

// What the daemon counts for Prometheus, under infllm_memstore_*: base units, counters end in
// _total. Labels are methods, codes and tiers only, so that clients cannot make series.
// Thread-safe.
class Metrics {
 public:
  explicit Metrics(std::string_view version);
  ~Metrics();

  // Counts a call of infllm.v1.MemoryStore that has ended.
  void CountCall(std::string_view method, absl::StatusCode code, absl::Duration duration);
  // Counts a query of a Select that failed by itself.
  void CountFailedQuery(absl::StatusCode code);

 private:
  friend class MetricsServer;
  struct Impl;
  const std::unique_ptr<Impl> impl_;
};

// Serves metrics, and what a store says when it is asked, under http://HOST:PORT/metrics for as
// long as it lives.
class MetricsServer {
 public:
  // `metrics`, `store` and what `leases` refers to must outlive the server.
  //   INVALID_ARGUMENT  `listen` is not host:port
  //   and the errors of PrepareToListen()
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const Endpoint& listen,
                                                              Metrics& metrics,
                                                              memstore::MemoryStore& store,
                                                              std::function<int64_t()> leases);
  ~MetricsServer();

  // Where it listens; a port of 0 has become the one that was picked.
  const Endpoint& endpoint() const;

 private:
  struct Impl;
  explicit MetricsServer(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

}  // namespace infllm::services
