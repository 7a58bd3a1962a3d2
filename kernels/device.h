// Memory, streams and events of a device: what every operation of kernels/backend.h runs on.
//
//  * Operations are enqueued on a stream and run in the order of the calls; a call may return
//    before its operation has begun. Only Backend::Synchronize waits. So whatever an operation's
//    arguments point to must live, and must not be changed by the host, until the stream has been
//    waited for.
//  * *Shared memory* is memory that both host and device read and write at the same address
//    (Backend::AllocateHost): lists of items, page tables, results that the host looks at.
//  * Streams run beside each other; an event recorded on one can be waited for by another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>

namespace infllm::kernels {

// Owns one allocation of a backend. 64-byte aligned. Must not outlive its backend.
class Buffer {
 public:
  Buffer() = default;
  Buffer(void* data, size_t size_bytes, std::function<void(void*)> free)
      : data_(data), size_bytes_(size_bytes), free_(std::move(free)) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) {
      Release();
      data_ = std::exchange(other.data_, nullptr);
      size_bytes_ = std::exchange(other.size_bytes_, 0);
      free_ = std::move(other.free_);
    }
    return *this;
  }
  ~Buffer() { Release(); }

  std::byte* data() const { return static_cast<std::byte*>(data_); }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t size_bytes() const { return size_bytes_; }

 private:
  void Release() {
    if (data_ != nullptr) free_(data_);
    data_ = nullptr;
  }
  void* data_ = nullptr;
  size_t size_bytes_ = 0;
  std::function<void(void*)> free_;
};

// Handles of a backend, plain data; those of a backend must not be used with another.
enum class Stream : uintptr_t {};
enum class Event : uintptr_t {};

}  // namespace infllm::kernels
