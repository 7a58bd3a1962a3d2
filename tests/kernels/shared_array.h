// An array that host and device share: lists of items, and results that the host looks at.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/support/status_matchers.h"

namespace infllm::testing {

// What an op writes behind its end is found by Get().
template <typename T>
class SharedArray {
 public:
  SharedArray(kernels::Backend& backend, const std::vector<T>& values) : size_(values.size()) {
    buffer_ = backend.AllocateHost(size_ * sizeof(T) + kGuardBytes).value();
    std::copy(values.begin(), values.end(), data());
    std::memset(static_cast<void*>(data() + size_), kGuard, kGuardBytes);
  }
  T* data() const { return buffer_.as<T>(); }
  // Once the op is done.
  std::vector<T> Get() const {
    const auto* guard = reinterpret_cast<const unsigned char*>(data() + size_);
    for (size_t i = 0; i < kGuardBytes; ++i) {
      EXPECT_EQ(guard[i], kGuard) << "written " << i << " bytes behind the end";
    }
    return {data(), data() + size_};
  }

 private:
  static constexpr size_t kGuardBytes = 128;
  static constexpr unsigned char kGuard = 0xa5;
  size_t size_;
  kernels::Buffer buffer_;
};

// An operation, and the wait for it.
template <typename Call>
absl::Status RunOp(kernels::Backend& backend, Call call) {
  const absl::Status status = call(kernels::Backend::kMainStream);
  if (!status.ok()) return status;
  return backend.Synchronize(kernels::Backend::kMainStream);
}

// A refusal says which op refuses, and why.
inline auto Refused(const std::string& op, const std::string& why) {
  return StatusIs(absl::StatusCode::kInvalidArgument,
                  ::testing::AllOf(::testing::StartsWith(op + ": "), ::testing::HasSubstr(why)));
}

}  // namespace infllm::testing
