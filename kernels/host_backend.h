// What backends on the host share: device memory is host memory, and everything is done when its
// call returns, so that streams and events are but numbers.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>

#include "kernels/backend.h"
#include "kernels/core/status_macros.h"
#include "kernels/host_memory.h"
#include "kernels/validate_args.h"

namespace infllm::kernels {

class HostBackend : public Backend {
 public:
  bool host_accessible() const final { return true; }

  absl::StatusOr<Buffer> Allocate(size_t bytes) final { return kernels::AllocateHost(bytes); }
  absl::StatusOr<Buffer> AllocateHost(size_t bytes) final { return kernels::AllocateHost(bytes); }

  absl::StatusOr<Stream> NewStream() final { return Stream{++handles_}; }
  absl::StatusOr<Event> NewEvent() final { return Event{++handles_}; }
  absl::Status Record(Stream, Event) final { return absl::OkStatus(); }
  absl::Status Wait(Stream, Event) final { return absl::OkStatus(); }
  absl::Status Synchronize(Stream) final { return absl::OkStatus(); }

  absl::Status Copy(Stream, void* to, const void* from, size_t bytes) final {
    INFLLM_RETURN_IF_ERROR(ValidateCopy(to, from, bytes));
    if (bytes > 0) std::memmove(to, from, bytes);
    return absl::OkStatus();
  }
  absl::Status Zero(Stream, void* device, size_t bytes) final {
    INFLLM_RETURN_IF_ERROR(ValidateZero(device, bytes));
    if (bytes > 0) std::memset(device, 0, bytes);
    return absl::OkStatus();
  }

 protected:
  template <typename Args>
  static absl::Status Check(const Args& args) {
    INFLLM_RETURN_IF_ERROR(Validate(args));
    return ValidateForHost(args);
  }

 private:
  std::atomic<uintptr_t> handles_ = 0;  // the main stream is 0
};

}  // namespace infllm::kernels
