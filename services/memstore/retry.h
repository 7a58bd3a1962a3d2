// When a call to a store is made again. Everything may be repeated (proto/infllm/v1).
#pragma once

#include <cstdint>
#include <mutex>
#include <random>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"

namespace infllm::services {

// How long after its start a call is still made again, by the reason why it failed. Waits between
// attempts double from `first_wait` to `longest_wait`; each is cut at random to between half of it
// and all of it, so that clients of one daemon do not come back together.
struct RetryOptions {
  // The daemon stops, was restarted or is not reached. Longer, and another try belongs to whoever
  // asked: a restarted daemon has forgotten its contexts anyway.
  absl::Duration unavailable_patience = absl::Seconds(10);
  // No room; the daemon itself waits for room that transfers take, up to 10 s.
  absl::Duration exhausted_patience = absl::Seconds(3);
  // A checksum of the request or of the answer did not fit when it arrived.
  absl::Duration damaged_patience = absl::Seconds(3);
  absl::Duration first_wait = absl::Milliseconds(20);
  absl::Duration longest_wait = absl::Seconds(1);
  uint64_t seed = 0;  // of the random part; 0: a random one
};

// How often calls were made again, and why.
struct RetryCounts {
  int64_t retries = 0;  // all of them:
  int64_t unavailable = 0;
  int64_t exhausted = 0;
  int64_t damaged = 0;
};

// The time by which retries go. Thread-safe.
class RetryClock {
 public:
  virtual ~RetryClock() = default;
  virtual absl::Time Now() = 0;
  // False if the caller no longer wants to wait.
  virtual bool Sleep(absl::Duration duration) = 0;
};

// Thread-safe.
class Retrier {
 public:
  // `clock` must outlive it.
  Retrier(const RetryOptions& options, RetryClock& clock);

  // Calls `attempt` until it returns something else than UNAVAILABLE, RESOURCE_EXHAUSTED or ABORTED
  // (damaged), or patience ends. Returns the last status, or CANCELLED if a wait was cut short.
  absl::Status Run(absl::FunctionRef<absl::Status()> attempt);

  RetryCounts counts() const;

 private:
  absl::Duration PatienceFor(const absl::Status& status) const;
  // The wait before retry number `retry` (0-based) because of `code`; counts it.
  absl::Duration NextWait(int retry, absl::StatusCode code);

  const RetryOptions options_;
  RetryClock& clock_;
  mutable std::mutex mutex_;
  std::mt19937_64 random_ ABSL_GUARDED_BY(mutex_);
  RetryCounts counts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace infllm::services
