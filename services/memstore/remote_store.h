#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "memstore/memory_store.h"
#include "services/memstore/credentials.h"
#include "services/memstore/retry.h"

namespace infllm::services {

struct RemoteStoreOptions {
  absl::Duration connect_timeout = absl::Seconds(5);
  // Of one attempt of one call, its messages included. Commit and Fork, which may write a whole RAM
  // tier or read all representatives, have ten times as long.
  absl::Duration call_timeout = absl::Seconds(60);
  RetryOptions retry;
  ClientSecurity security;
  // May be null; a signal handler may set it. Soon after it is set, the store cancels itself, as
  // ConnectRemoteStore() does. Must outlive the store.
  const std::atomic<bool>* cancel = nullptr;
  // By which retries wait; null: the system's. Must outlive the store. For tests.
  RetryClock* clock = nullptr;
};

// A store in another process, infllm-memstore, at `host:port` or `unix:/path`. Thread-safe; calls
// from several threads share one connection, which is made again when it breaks. Every payload,
// representative and query is checked on arrival, at both ends, and every answer against its
// question. Whose contexts they are the daemon knows of its client: the tenant that the interface
// names is empty in all that this store returns, and must be in what it is given. Calls that fail
// for a passing reason are made again (retry.h). View() is UNIMPLEMENTED. Beyond the errors of the
// interface,
//   UNAVAILABLE  the daemon does not answer, stops mid-way, or takes longer than the timeout
//   DATA_LOSS    a request or an answer arrives damaged each time; none of it is used
//   INTERNAL     the daemon gave an answer that no store gives; none of it is used
//   CANCELLED    see Cancel()
//   UNAUTHENTICATED  the daemon does not know who this client is
class RemoteStore : public memstore::MemoryStore {
 public:
  // Ends all calls, those in flight and those to come, with CANCELLED, within moments even if the
  // daemon hangs. Only Drop() is still tried, for half a second in all, so that an interrupted
  // caller can leave nothing behind. Not for signal handlers: RemoteStoreOptions::cancel is.
  virtual void Cancel() = 0;
  // Since the store was made.
  virtual RetryCounts Retries() const = 0;
};

// Waits until the daemon answers:
//   INVALID_ARGUMENT     `target` is malformed
//   UNAVAILABLE          no answer within connect_timeout
//   CANCELLED            `cancel` was set
//   FAILED_PRECONDITION  something else listens there
//   UNAUTHENTICATED      the daemon does not know who this client is
//   and the errors of credentials.h
absl::StatusOr<std::unique_ptr<RemoteStore>> ConnectRemoteStore(const std::string& target,
                                                                const RemoteStoreOptions& options);

}  // namespace infllm::services
