// Memory of one step that both host and device read: page tables, lists of items, results.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/core/status_macros.h"

namespace infllm::worker {

// Hands out pieces of shared memory that stay where they are until Reset(), and then hands out the
// same memory again: a step that needs what one before it did allocates nothing. Not thread-safe.
class SharedScratch {
 public:
  // `backend` must outlive the object.
  explicit SharedScratch(kernels::Backend& backend) : backend_(&backend) {}

  // Undefined content. RESOURCE_EXHAUSTED: the machine has no memory left.
  template <typename T>
  absl::StatusOr<T*> Get(size_t count) {
    static_assert(std::is_trivially_copyable_v<T>);
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    while (at_ < chunks_.size() && used_ + bytes > chunks_[at_].size_bytes()) {
      ++at_;
      used_ = 0;
    }
    if (at_ == chunks_.size()) {
      constexpr size_t kLeastBytes = 256 << 10;
      INFLLM_ASSIGN_OR_RETURN(kernels::Buffer chunk,
                              backend_->AllocateHost(std::max(bytes, kLeastBytes)));
      chunks_.push_back(std::move(chunk));
      used_ = 0;
    }
    T* piece = reinterpret_cast<T*>(chunks_[at_].data() + used_);
    used_ += bytes;
    return piece;
  }
  template <typename T>
  absl::StatusOr<T*> Put(const std::vector<T>& values) {
    INFLLM_ASSIGN_OR_RETURN(T* const piece, Get<T>(values.size()));
    std::copy(values.begin(), values.end(), piece);
    return piece;
  }

  // Nothing handed out so far is in use any more.
  void Reset() {
    at_ = 0;
    used_ = 0;
  }

 private:
  kernels::Backend* backend_;
  std::vector<kernels::Buffer> chunks_;
  size_t at_ = 0;    // the chunk that is being handed out
  size_t used_ = 0;  // of it
};

// Makes `buffer` hold at least `bytes` of device memory; contents are lost when it grows.
inline absl::Status Reserve(kernels::Backend& backend, size_t bytes, kernels::Buffer& buffer) {
  if (buffer.size_bytes() >= bytes) return absl::OkStatus();
  buffer = kernels::Buffer();  // free first: the two need not fit at once
  INFLLM_ASSIGN_OR_RETURN(buffer, backend.Allocate(bytes));
  return absl::OkStatus();
}

}  // namespace infllm::worker
