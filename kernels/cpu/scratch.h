// Working memory of a kernel that outlives its calls, so that a call of a few microseconds does not
// allocate: keep it thread_local. Grows to the largest request and stays there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "kernels/core/status_macros.h"

namespace infllm::kernels {

class Scratch {
 public:
  // At least `count` objects, 64-byte aligned, of undefined content. Invalidates what earlier calls
  // returned.
  template <typename T>
  T* Get(int64_t count) {
    return static_cast<T*>(GetBytes(static_cast<size_t>(count) * sizeof(T)));
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };

  void* GetBytes(size_t bytes) {
    if (bytes > capacity_) {
      data_.reset();
      // Half as much again: a context that grows token by token asks for a little more every time.
      capacity_ = (bytes + bytes / 2 + 63) / 64 * 64;
      data_.reset(std::aligned_alloc(64, capacity_));
      INFLLM_CHECK(data_ != nullptr);
    }
    return data_.get();
  }

  std::unique_ptr<void, Free> data_;
  size_t capacity_ = 0;
};

}  // namespace infllm::kernels
