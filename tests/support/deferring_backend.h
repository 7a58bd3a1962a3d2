// A device that does nothing until it is waited for, and counts. Whoever looks at a result without
// waiting, or changes arguments too early, gets wrong numbers here, as on a real device.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/core/status_macros.h"

namespace infllm::testing {

// Thread-safe as far as tests need it: streams are queues of their own, one lock for all.
class DeferringBackend final : public kernels::Backend {
 public:
  struct Counts {
    int64_t waits = 0;        // Synchronize
    int64_t copies = 0;       // Copy
    int64_t allocations = 0;  // Allocate and AllocateHost
    int64_t operations = 0;
    int64_t linear_rows = 0;  // over all calls of Linear
  };

  // Computes with `base`, whose memory must be the host's.
  explicit DeferringBackend(std::unique_ptr<kernels::Backend> base) : base_(std::move(base)) {}

  Counts counts() const {
    const std::lock_guard lock(mu_);
    return counts_;
  }

  std::string_view name() const override { return "deferring"; }
  bool host_accessible() const override { return false; }
  kernels::DType preferred_dtype() const override { return base_->preferred_dtype(); }

  absl::StatusOr<kernels::Buffer> Allocate(size_t bytes) override {
    Count(&Counts::allocations);
    return base_->Allocate(bytes);
  }
  absl::StatusOr<kernels::Buffer> AllocateHost(size_t bytes) override {
    Count(&Counts::allocations);
    return base_->AllocateHost(bytes);
  }
  absl::StatusOr<kernels::Stream> NewStream() override {
    const std::lock_guard lock(mu_);
    return kernels::Stream{next_stream_++};
  }
  // Events are not needed by what is tested here.
  absl::StatusOr<kernels::Event> NewEvent() override { return base_->NewEvent(); }
  absl::Status Record(kernels::Stream, kernels::Event) override { return absl::OkStatus(); }
  absl::Status Wait(kernels::Stream, kernels::Event) override { return absl::OkStatus(); }

  absl::Status Synchronize(kernels::Stream stream) override {
    Queue* queue = nullptr;
    {
      const std::lock_guard lock(mu_);
      ++counts_.waits;
      queue = &queues_[stream];
    }
    // Another thread that waits for the stream may be doing what this one waits for.
    const std::lock_guard running(queue->running);
    std::vector<std::function<absl::Status()>> work;
    {
      const std::lock_guard lock(mu_);
      std::swap(work, queue->operations);
    }
    for (const auto& operation : work) INFLLM_RETURN_IF_ERROR(operation());
    return base_->Synchronize(kMainStream);
  }
  absl::Status Copy(kernels::Stream stream, void* to, const void* from, size_t bytes) override {
    Count(&Counts::copies);
    return Defer(stream, [=, this] { return base_->Copy(kMainStream, to, from, bytes); });
  }
  absl::Status Zero(kernels::Stream stream, void* device, size_t bytes) override {
    return Defer(stream, [=, this] { return base_->Zero(kMainStream, device, bytes); });
  }
  absl::StatusOr<kernels::Weight> PackWeight(std::span<const kernels::WeightSource> sources,
                                             int64_t in_features, kernels::DType compute) override {
    return base_->PackWeight(sources, in_features, compute);
  }

#define INFLLM_DEFER_OP(Name)                                                           \
  absl::Status Name(kernels::Stream stream, const kernels::Name##Args& args) override { \
    Count(&Counts::operations);                                                         \
    CountRows(args);                                                                    \
    return Defer(stream, [args, this] { return base_->Name(kMainStream, args); });      \
  }
  INFLLM_KERNEL_OPS(INFLLM_DEFER_OP)
#undef INFLLM_DEFER_OP

 private:
  void Count(int64_t Counts::*counter) {
    const std::lock_guard lock(mu_);
    ++(counts_.*counter);
  }
  template <typename Args>
  void CountRows(const Args& args) {
    if constexpr (std::is_same_v<Args, kernels::LinearArgs>) {
      const std::lock_guard lock(mu_);
      counts_.linear_rows += args.rows;
    }
  }
  absl::Status Defer(kernels::Stream stream, std::function<absl::Status()> operation) {
    const std::lock_guard lock(mu_);
    queues_[stream].operations.push_back(std::move(operation));
    return absl::OkStatus();
  }

  const std::unique_ptr<kernels::Backend> base_;
  mutable std::mutex mu_;
  Counts counts_;
  uintptr_t next_stream_ = 1;
  struct Queue {
    std::mutex running;
    std::vector<std::function<absl::Status()>> operations;
  };
  std::map<kernels::Stream, Queue> queues_;
};

}  // namespace infllm::testing
