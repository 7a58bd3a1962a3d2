#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "memstore/block.h"

namespace infllm::services {

// Holds a lease of a memory store for as long as it lives, on a thread of its own; calls again when
// the daemon comes back.
class LeaseHolder {
 public:
  explicit LeaseHolder(std::shared_ptr<grpc::Channel> channel);
  ~LeaseHolder();
  LeaseHolder(const LeaseHolder&) = delete;
  LeaseHolder& operator=(const LeaseHolder&) = delete;

  const memstore::ContextId& lease() const { return lease_; }

 private:
  void Run();

  const std::shared_ptr<grpc::Channel> channel_;  // shared with gRPC's own threads
  const memstore::ContextId lease_ = memstore::NewContextId();
  std::mutex mutex_;
  std::condition_variable changed_;
  grpc::ClientContext* call_ ABSL_GUARDED_BY(mutex_) = nullptr;  // the one that runs
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace infllm::services
