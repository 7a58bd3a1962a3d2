#include "services/memstore/lease_table.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"

namespace infllm::services {

LeaseTable::LeaseTable(absl::Duration grace, std::function<void(const memstore::ContextId&)> drop)
    : grace_(grace), drop_(std::move(drop)), thread_([this] { Run(); }) {}

LeaseTable::~LeaseTable() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void LeaseTable::Hold(const LeaseId& lease) {
  const std::lock_guard lock(mutex_);
  Lease& held = leases_[lease];
  ++held.holders;
  held.ends = absl::InfiniteFuture();
}

void LeaseTable::LetGo(const LeaseId& lease) {
  const std::lock_guard lock(mutex_);
  const auto found = leases_.find(lease);
  if (found == leases_.end() || --found->second.holders > 0) return;
  found->second.ends = absl::Now() + grace_;
  changed_.notify_all();
}

int64_t LeaseTable::size() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int64_t>(leases_.size());
}

void LeaseTable::Add(const LeaseId& lease, const memstore::ContextId& context) {
  const std::lock_guard lock(mutex_);
  if (!lease_of_.emplace(context, lease).second) return;  // a repeated call
  Lease& of = leases_[lease];
  of.contexts.insert(context);
  if (of.holders > 0 || of.ends != absl::InfiniteFuture()) return;
  of.ends = absl::Now() + grace_;
  changed_.notify_all();
}

void LeaseTable::Remove(const memstore::ContextId& context) {
  const std::lock_guard lock(mutex_);
  const auto found = lease_of_.find(context);
  if (found == lease_of_.end()) return;
  leases_[found->second].contexts.erase(context);
  lease_of_.erase(found);
}

absl::Time LeaseTable::TakeEnded(std::vector<memstore::ContextId>& contexts) {
  absl::Time next = absl::InfiniteFuture();
  const absl::Time now = absl::Now();
  for (auto at = leases_.begin(); at != leases_.end();) {
    if (at->second.ends > now) {
      next = std::min(next, at->second.ends);
      ++at;
      continue;
    }
    for (const memstore::ContextId& context : at->second.contexts) {
      contexts.push_back(context);
      lease_of_.erase(context);
    }
    leases_.erase(at++);
  }
  return next;
}

void LeaseTable::Run() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    std::vector<memstore::ContextId> ended;
    const absl::Time next = TakeEnded(ended);
    if (!ended.empty()) {
      lock.unlock();
      for (const memstore::ContextId& context : ended) drop_(context);
      lock.lock();
    } else if (next == absl::InfiniteFuture()) {
      changed_.wait(lock);
    } else {
      changed_.wait_for(
          lock, absl::ToChronoMilliseconds(next - absl::Now()) + std::chrono::milliseconds(1));
    }
  }
}

}  // namespace infllm::services
