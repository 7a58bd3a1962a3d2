#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "memstore/memory_store.h"

namespace infllm::services {

struct RemoteStoreOptions {
  absl::Duration connect_timeout = absl::Seconds(5);
  // Of one call, its messages included; a cold Select of many blocks takes the longest.
  absl::Duration call_timeout = absl::Seconds(60);
};

// A store in another process, infllm-memstore, at `host:port` or `unix:/path`. Thread-safe; calls
// from several threads share one connection, which is made again when it breaks. Every payload,
// representative and query is checked on arrival, at both ends. Beyond the errors of the interface,
//   UNAVAILABLE  the daemon does not answer, stops mid-way, or takes longer than the timeout
//   DATA_LOSS    an answer arrived damaged or incomplete; none of it is used
//
// Waits until the daemon answers:
//   INVALID_ARGUMENT     `target` is malformed
//   UNAVAILABLE          no answer within connect_timeout
//   FAILED_PRECONDITION  something else listens there
absl::StatusOr<std::unique_ptr<memstore::MemoryStore>> ConnectRemoteStore(
    const std::string& target, const RemoteStoreOptions& options);

}  // namespace infllm::services
