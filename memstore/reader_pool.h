#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"

namespace infllm::memstore {

// Runs the parts of a job on several threads at once: the caller's and some of ours. Thread-safe.
class ReaderPool {
 public:
  // `readers` includes the caller.
  explicit ReaderPool(size_t readers);
  ~ReaderPool();
  ReaderPool(const ReaderPool&) = delete;
  ReaderPool& operator=(const ReaderPool&) = delete;

  // Calls read(i) for every i < count, each once, and returns when all calls have. What one of them
  // throws is thrown here, by then in no thread but the caller's; parts not begun are left out.
  template <typename Read>
  void ForEach(size_t count, Read read) {
    std::atomic<size_t> next = 0;
    Run(count, [&] {
      try {
        for (size_t i; (i = next.fetch_add(1)) < count;) read(i);
      } catch (...) {
        next = count;
        throw;
      }
    });
  }

 private:
  struct Job {
    std::function<void()> body;
    int running = 0;           // of our threads; guarded by mu_, as is
    std::exception_ptr error;  // the first one
  };

  // Runs `body` here and on as many of our threads as are free, at most count - 1.
  void Run(size_t count, std::function<void()> body);
  void Work(Job& job, std::unique_lock<std::mutex>& lock);
  void ThreadMain();

  std::mutex mu_;
  std::condition_variable work_;
  std::condition_variable done_;
  std::deque<Job*> queue_ ABSL_GUARDED_BY(mu_);  // a job once per thread that it would like
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace infllm::memstore
