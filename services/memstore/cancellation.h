#pragma once

#include <grpcpp/client_context.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/time/time.h"

namespace infllm::services {

// Ends what a client does, all at once and for good: calls in flight and waits between them.
// Thread-safe.
class Cancellation {
 public:
  // Watches `flag` (may be null; must outlive the object), too: soon after it is set, all is
  // cancelled. A flag can be set by a signal handler, Cancel() cannot be called by one.
  explicit Cancellation(const std::atomic<bool>* flag);
  ~Cancellation();
  Cancellation(const Cancellation&) = delete;
  Cancellation& operator=(const Cancellation&) = delete;

  void Cancel();
  bool cancelled() const;
  // When it was: the infinite future if it was not.
  absl::Time when() const;
  // False if it was cancelled, then or before.
  bool Sleep(absl::Duration duration);

  // A call in flight, for as long as the object lives; `context` must live longer.
  class Call {
   public:
    Call(Cancellation& cancellation, grpc::ClientContext& context);
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

   private:
    Cancellation& cancellation_;
    grpc::ClientContext& context_;
  };

 private:
  void Watch(const std::atomic<bool>& flag);

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  absl::Time when_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  bool over_ ABSL_GUARDED_BY(mutex_) = false;  // nobody needs the watcher any more
  absl::flat_hash_set<grpc::ClientContext*> calls_ ABSL_GUARDED_BY(mutex_);
  std::thread watcher_;
};

}  // namespace infllm::services
