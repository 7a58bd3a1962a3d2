#pragma once

#include <condition_variable>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"

namespace infllm::services {

// Counts the calls that run and lets no new one in once it is closed. gRPC's own shutdown waits for
// connections instead, and an idle client notices only seconds later that it should close its own.
// Thread-safe.
class CallGate {
 public:
  // Whether the call may run; Leave() then ends it.
  bool Enter() {
    const std::lock_guard lock(mutex_);
    if (closed_) return false;
    ++running_;
    return true;
  }
  void Leave() {
    const std::lock_guard lock(mutex_);
    if (--running_ == 0) idle_.notify_all();  // under the lock: who waits may end the gate
  }
  // Returns when all that run have left, or after `patience`.
  void Close(absl::Duration patience) {
    std::unique_lock lock(mutex_);
    closed_ = true;
    idle_.wait_for(lock, absl::ToChronoMilliseconds(patience), [&] { return running_ == 0; });
  }
  // Returns when none runs any more.
  void AwaitIdle() {
    std::unique_lock lock(mutex_);
    idle_.wait(lock, [&] { return running_ == 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable idle_;
  int running_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace infllm::services
