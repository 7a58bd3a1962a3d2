#include "services/memstore/cancellation.h"

#include "absl/time/clock.h"

namespace infllm::services {

// Between two looks at the flag: nobody at a keyboard notices it, and it costs nothing.
constexpr std::chrono::milliseconds kLook{50};

Cancellation::Cancellation(const std::atomic<bool>* flag) {
  if (flag != nullptr) watcher_ = std::thread([this, flag] { Watch(*flag); });
}

Cancellation::~Cancellation() {
  if (!watcher_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  changed_.notify_all();
  watcher_.join();
}

void Cancellation::Watch(const std::atomic<bool>& flag) {
  std::unique_lock lock(mutex_);
  while (!over_ && !flag.load(std::memory_order_relaxed)) changed_.wait_for(lock, kLook);
  if (over_) return;
  lock.unlock();
  Cancel();
}

void Cancellation::Cancel() {
  {
    const std::lock_guard lock(mutex_);
    if (when_ == absl::InfiniteFuture()) when_ = absl::Now();
    for (grpc::ClientContext* call : calls_) call->TryCancel();
  }
  changed_.notify_all();
}

bool Cancellation::cancelled() const { return when() != absl::InfiniteFuture(); }

absl::Time Cancellation::when() const {
  const std::lock_guard lock(mutex_);
  return when_;
}

bool Cancellation::Sleep(absl::Duration duration) {
  std::unique_lock lock(mutex_);
  return !changed_.wait_for(lock, absl::ToChronoNanoseconds(duration),
                            [&] { return when_ != absl::InfiniteFuture(); });
}

Cancellation::Call::Call(Cancellation& cancellation, grpc::ClientContext& context)
    : cancellation_(cancellation), context_(context) {
  const std::lock_guard lock(cancellation_.mutex_);
  cancellation_.calls_.insert(&context_);
  // gRPC remembers it for a call that has not started yet.
  if (cancellation_.when_ != absl::InfiniteFuture()) context_.TryCancel();
}

Cancellation::Call::~Call() {
  const std::lock_guard lock(cancellation_.mutex_);
  cancellation_.calls_.erase(&context_);
}

}  // namespace infllm::services
