#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"

namespace infllm::services {

// The threads on which handlers of calls run, for these wait for disks and for room. They are made
// as they are needed. Thread-safe.
class CallThreads {
 public:
  // `max_threads` at most; while all of them are busy up to `max_waiting` new calls wait.
  CallThreads(int max_threads, size_t max_waiting);
  // All work must be done.
  ~CallThreads();
  CallThreads(const CallThreads&) = delete;
  CallThreads& operator=(const CallThreads&) = delete;

  // Begins a call: `work` is run soon. False if too many wait already.
  bool Begin(std::function<void()> work);
  // More of a call that has begun.
  void Continue(std::function<void()> work);

  // How long the one has waited that waits longest; zero if none does.
  absl::Duration LongestWait() const;

 private:
  struct Waiting {
    std::function<void()> work;
    absl::Time since;
  };
  void Add(std::function<void()> work) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Run();

  const size_t max_threads_;
  const size_t max_waiting_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Waiting> waiting_ ABSL_GUARDED_BY(mutex_);
  size_t idle_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace infllm::services
