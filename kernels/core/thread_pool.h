#pragma once

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"

namespace infllm::kernels {

// The compute threads of this process: make one and share it, two pools fight over the cores.
// ParallelFor may be called from several threads; calls are served one after the other.
class ThreadPool {
 public:
  // `threads` counts the calling thread; 0 picks DefaultThreads().
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;

  // Runs body(begin, end, worker) over disjoint ranges that cover [0, items), each of at most
  // `grain` items, handed out dynamically; 0 <= worker < threads(). Returns when all have run.
  // The ranges do not depend on the number of threads, so neither need the results.
  // `body` must not call ParallelFor.
  void ParallelFor(int64_t items, int64_t grain,
                   absl::FunctionRef<void(int64_t begin, int64_t end, int worker)> body);

  // All vCPUs up to two, else one less: a thread that spins on a descheduled vCPU costs 10x.
  static int DefaultThreads();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace infllm::kernels
