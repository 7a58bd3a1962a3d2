#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "memstore/memory_store.h"

namespace infllm::services {

// What a server tells of its work: to logs and metrics. Called by the threads that do the work, so
// an implementation must be thread-safe and quick. Views last for the call only.
class ServerEvents {
 public:
  // An rpc of infllm.v1.MemoryStore, when its status is known.
  struct Call {
    std::string_view method;      // its name alone, as in "Select"
    std::string_view request_id;  // never empty (call_interceptor.h)
    absl::Duration duration;
    const absl::Status& status;
  };

  virtual ~ServerEvents() = default;

  virtual void CallEnded(const Call& call) = 0;
  // A query of a Select failed by itself; the others of the call may not have.
  virtual void QueryFailed(std::string_view request_id, const absl::Status& status) = 0;
  virtual void Committed(std::string_view request_id, const memstore::CommitRequest& request) = 0;
  // Nobody held the lease of the context any more, so it was dropped; or why not.
  virtual void LeaseEnded(const memstore::ContextId& context, const absl::Status& dropped) = 0;
};

}  // namespace infllm::services
