#include "services/memstore/call_threads.h"

#include <utility>

#include "absl/time/clock.h"

namespace infllm::services {

CallThreads::CallThreads(int max_threads, size_t max_waiting)
    : max_threads_(static_cast<size_t>(max_threads)), max_waiting_(max_waiting) {}

CallThreads::~CallThreads() {
  std::vector<std::thread> threads;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    threads = std::move(threads_);
  }
  changed_.notify_all();
  for (std::thread& thread : threads) thread.join();
}

bool CallThreads::Begin(std::function<void()> work) {
  const std::lock_guard lock(mutex_);
  if (waiting_.size() >= max_waiting_) return false;
  Add(std::move(work));
  return true;
}

void CallThreads::Continue(std::function<void()> work) {
  const std::lock_guard lock(mutex_);
  Add(std::move(work));
}

void CallThreads::Add(std::function<void()> work) {
  waiting_.push_back({std::move(work), absl::Now()});
  if (waiting_.size() <= idle_) {
    changed_.notify_one();
  } else if (threads_.size() < max_threads_) {
    threads_.emplace_back([this] { Run(); });
  }
}

absl::Duration CallThreads::LongestWait() const {
  const std::lock_guard lock(mutex_);
  return waiting_.empty() ? absl::ZeroDuration() : absl::Now() - waiting_.front().since;
}

void CallThreads::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    ++idle_;
    changed_.wait(lock, [&] { return stopping_ || !waiting_.empty(); });
    --idle_;
    if (waiting_.empty()) return;
    const std::function<void()> work = std::move(waiting_.front().work);
    waiting_.pop_front();
    lock.unlock();
    work();
    lock.lock();
  }
}

}  // namespace infllm::services
