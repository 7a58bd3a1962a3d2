// A backend that hands everything to another: what a bench changes, it overrides.
#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace infllm::bench {

class ForwardingBackend : public kernels::Backend {
 public:
  // `backend` must outlive the object.
  explicit ForwardingBackend(kernels::Backend& backend) : backend_(backend) {}

  std::string_view name() const override { return backend_.name(); }
  bool host_accessible() const override { return backend_.host_accessible(); }
  kernels::DType preferred_dtype() const override { return backend_.preferred_dtype(); }
  absl::StatusOr<kernels::Buffer> Allocate(size_t bytes) override {
    return backend_.Allocate(bytes);
  }
  absl::StatusOr<kernels::Buffer> AllocateHost(size_t bytes) override {
    return backend_.AllocateHost(bytes);
  }
  absl::StatusOr<kernels::Stream> NewStream() override { return backend_.NewStream(); }
  absl::StatusOr<kernels::Event> NewEvent() override { return backend_.NewEvent(); }
  absl::Status Record(kernels::Stream stream, kernels::Event event) override {
    return backend_.Record(stream, event);
  }
  absl::Status Wait(kernels::Stream stream, kernels::Event event) override {
    return backend_.Wait(stream, event);
  }
  absl::Status Synchronize(kernels::Stream stream) override { return backend_.Synchronize(stream); }
  absl::Status Copy(kernels::Stream stream, void* to, const void* from, size_t bytes) override {
    return backend_.Copy(stream, to, from, bytes);
  }
  absl::Status Zero(kernels::Stream stream, void* device, size_t bytes) override {
    return backend_.Zero(stream, device, bytes);
  }
  absl::StatusOr<kernels::Weight> PackWeight(std::span<const kernels::WeightSource> sources,
                                             int64_t in_features, kernels::DType compute) override {
    return backend_.PackWeight(sources, in_features, compute);
  }

#define INFLLM_FORWARD_OP(Name)                                                         \
  absl::Status Name(kernels::Stream stream, const kernels::Name##Args& args) override { \
    return backend_.Name(stream, args);                                                 \
  }
  INFLLM_KERNEL_OPS(INFLLM_FORWARD_OP)
#undef INFLLM_FORWARD_OP

 protected:
  kernels::Backend& backend_;
};

}  // namespace infllm::bench
