// A backend whose memory the host cannot touch and whose operations begin only when somebody waits
// for them, as those of a real device may. Thread-safe.
#pragma once

#include <sys/mman.h>

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "kernels/backend.h"
#include "kernels/core/status_macros.h"

namespace infllm::memstore {

class DeviceDouble final : public kernels::Backend {
 public:
  // How often each has been called.
  struct Calls {
    int allocate = 0;  // of device memory
    int synchronize = 0;
    int select_blocks = 0;
  };
  Calls calls() const {
    const std::lock_guard lock(mu_);
    return calls_;
  }

  std::string_view name() const override { return "double"; }
  bool host_accessible() const override { return false; }
  kernels::DType preferred_dtype() const override { return kernels::DType::kF32; }

  absl::StatusOr<kernels::Buffer> Allocate(size_t bytes) override {
    const std::lock_guard lock(mu_);
    void* const data =
        ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    INFLLM_CHECK(data != MAP_FAILED);
    memory_[data] = bytes;
    ++calls_.allocate;
    return kernels::Buffer(data, bytes, [this](void* freed) {
      const std::lock_guard free_lock(mu_);
      ::munmap(freed, memory_.extract(freed).mapped());
    });
  }
  absl::StatusOr<kernels::Buffer> AllocateHost(size_t bytes) override {
    return host_->AllocateHost(bytes);
  }

  absl::StatusOr<kernels::Stream> NewStream() override {
    const std::lock_guard lock(mu_);
    return kernels::Stream{++streams_};
  }
  absl::StatusOr<kernels::Event> NewEvent() override { return absl::UnimplementedError(""); }
  absl::Status Record(kernels::Stream, kernels::Event) override {
    return absl::UnimplementedError("");
  }
  absl::Status Wait(kernels::Stream, kernels::Event) override {
    return absl::UnimplementedError("");
  }
  absl::Status Synchronize(kernels::Stream stream) override {
    const std::lock_guard lock(mu_);
    ++calls_.synchronize;
    for (const auto& [data, bytes] : memory_) ::mprotect(data, bytes, PROT_READ | PROT_WRITE);
    absl::Status status;
    for (const auto& operation : std::exchange(queues_[stream], {})) status.Update(operation());
    for (const auto& [data, bytes] : memory_) ::mprotect(data, bytes, PROT_NONE);
    return status;
  }

  absl::Status Copy(kernels::Stream stream, void* to, const void* from, size_t bytes) override {
    return Enqueue(stream, [=, this] { return host_->Copy(kMainStream, to, from, bytes); });
  }
  absl::Status Zero(kernels::Stream stream, void* device, size_t bytes) override {
    return Enqueue(stream, [=, this] { return host_->Zero(kMainStream, device, bytes); });
  }
  absl::StatusOr<kernels::Weight> PackWeight(std::span<const kernels::WeightSource>, int64_t,
                                             kernels::DType) override {
    return absl::UnimplementedError("");
  }
  absl::Status EncodeBounds(kernels::Stream stream,
                            const kernels::EncodeBoundsArgs& args) override {
    return Enqueue(stream, [=, this] { return host_->EncodeBounds(kMainStream, args); });
  }
  absl::Status SelectBlocks(kernels::Stream stream,
                            const kernels::SelectBlocksArgs& args) override {
    return Enqueue(
        stream, [=, this] { return host_->SelectBlocks(kMainStream, args); },
        &calls_.select_blocks);
  }

 private:
  absl::Status Enqueue(kernels::Stream stream, std::function<absl::Status()> operation,
                       int* calls = nullptr) {
    const std::lock_guard lock(mu_);
    if (calls != nullptr) ++*calls;
    queues_[stream].push_back(std::move(operation));
    return absl::OkStatus();
  }

  const std::unique_ptr<kernels::Backend> host_ = kernels::NewReferenceBackend();
  mutable std::mutex mu_;
  Calls calls_ ABSL_GUARDED_BY(mu_);
  std::map<void*, size_t> memory_ ABSL_GUARDED_BY(mu_);
  std::map<kernels::Stream, std::vector<std::function<absl::Status()>>> queues_
      ABSL_GUARDED_BY(mu_);
  uintptr_t streams_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace infllm::memstore
