#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/time/time.h"
#include "memstore/block.h"

namespace infllm::services {

// Which contexts belong to which client, so that those of a client that has gone can go, too. A
// lease is 128 random bits that the client brings; it is held by any number of calls. Thread-safe.
class LeaseTable {
 public:
  // Of one tenant.
  struct LeaseId {
    std::string tenant;
    memstore::ContextId id;
    friend bool operator==(const LeaseId&, const LeaseId&) = default;
    template <typename H>
    friend H AbslHashValue(H state, const LeaseId& lease) {
      return H::combine(std::move(state), lease.tenant, lease.id);
    }
  };

  // `drop` is called, by a thread of the table and without a lock, for each context of a lease that
  // nobody has held for `grace`.
  LeaseTable(absl::Duration grace, std::function<void(const memstore::ContextId&)> drop);
  ~LeaseTable();
  LeaseTable(const LeaseTable&) = delete;
  LeaseTable& operator=(const LeaseTable&) = delete;

  absl::Duration grace() const { return grace_; }
  // Leases that are held, or were until less than the grace ago.
  int64_t size() const;

  // A call that holds the lease begins, and ends.
  void Hold(const LeaseId& lease);
  void LetGo(const LeaseId& lease);

  // The context belongs to the lease from now on, unless it has one; and no longer to any. A lease
  // need not be held for that: its grace then begins.
  void Add(const LeaseId& lease, const memstore::ContextId& context);
  void Remove(const memstore::ContextId& context);

 private:
  struct Lease {
    int holders = 0;
    absl::Time ends = absl::InfiniteFuture();  // unless it is held again
    absl::flat_hash_set<memstore::ContextId> contexts;
  };
  void Run();
  // Takes what has ended out of the table; when the next one does.
  absl::Time TakeEnded(std::vector<memstore::ContextId>& contexts)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const absl::Duration grace_;
  const std::function<void(const memstore::ContextId&)> drop_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  absl::flat_hash_map<LeaseId, Lease> leases_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<memstore::ContextId, LeaseId> lease_of_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace infllm::services
