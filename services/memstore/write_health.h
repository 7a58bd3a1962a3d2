#pragma once

#include <mutex>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace infllm::services {

// Whether the store can write, as far as the calls show that write. Thread-safe.
class WriteHealth {
 public:
  // What a write ended with. UNAVAILABLE is what a disk that fails gives.
  absl::Status Note(absl::Status status) {
    const std::lock_guard lock(mutex_);
    if (absl::IsUnavailable(status)) {
      failed_ = absl::Now();
    } else if (status.ok()) {
      failed_ = absl::InfinitePast();
    }
    return status;
  }
  // For a while after a failure the answer is no; then somebody must be let try again.
  bool CanWrite() const {
    const std::lock_guard lock(mutex_);
    return absl::Now() - failed_ > absl::Seconds(10);
  }

 private:
  mutable std::mutex mutex_;
  absl::Time failed_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
};

}  // namespace infllm::services
