#include "memstore/reader_pool.h"

#include <algorithm>
#include <new>
#include <utility>

namespace infllm::memstore {

ReaderPool::ReaderPool(size_t readers) {
  for (size_t i = 1; i < readers; ++i) threads_.emplace_back([this] { ThreadMain(); });
}

ReaderPool::~ReaderPool() {
  {
    const std::lock_guard lock(mu_);
    stopping_ = true;
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ReaderPool::Run(size_t count, std::function<void()> body) {
  Job job{.body = std::move(body)};
  std::unique_lock lock(mu_);
  try {
    for (size_t i = 1; i < std::min(count, threads_.size() + 1); ++i) {
      queue_.push_back(&job);
      work_.notify_one();
    }
  } catch (const std::bad_alloc&) {  // then with fewer threads
  }
  Work(job, lock);
  std::erase(queue_, &job);
  done_.wait(lock, [&] { return job.running == 0; });
  if (job.error != nullptr) std::rethrow_exception(job.error);
}

// Lets go of the lock for the body.
void ReaderPool::Work(Job& job, std::unique_lock<std::mutex>& lock) {
  lock.unlock();
  std::exception_ptr error;
  try {
    job.body();
  } catch (...) {
    error = std::current_exception();
  }
  lock.lock();
  if (job.error == nullptr) job.error = error;
}

void ReaderPool::ThreadMain() {
  std::unique_lock lock(mu_);
  for (;;) {
    work_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
    if (stopping_) return;
    Job* const job = queue_.front();
    queue_.pop_front();
    ++job->running;
    Work(*job, lock);
    if (--job->running == 0) done_.notify_all();
  }
}

}  // namespace infllm::memstore
