#pragma once

#include <mutex>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "services/memstore/retry.h"

namespace infllm::testing {

// Time that passes only in waits, which end at once.
class FakeRetryClock final : public services::RetryClock {
 public:
  absl::Time Now() override {
    const std::lock_guard lock(mutex_);
    return now_;
  }
  bool Sleep(absl::Duration duration) override {
    const std::lock_guard lock(mutex_);
    now_ += duration;
    waits_.push_back(duration);
    return waits_.size() < most_waits_;
  }
  std::vector<absl::Duration> waits() const {
    const std::lock_guard lock(mutex_);
    return waits_;
  }
  // Wait number `n` (from 1) is cut short.
  void CutShort(size_t n) {
    const std::lock_guard lock(mutex_);
    most_waits_ = n;
  }

 private:
  mutable std::mutex mutex_;
  absl::Time now_ ABSL_GUARDED_BY(mutex_) = absl::UnixEpoch();
  std::vector<absl::Duration> waits_ ABSL_GUARDED_BY(mutex_);
  size_t most_waits_ ABSL_GUARDED_BY(mutex_) = SIZE_MAX;
};

}  // namespace infllm::testing
