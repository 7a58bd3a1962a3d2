// The backends that the contract suites run over, and what such a suite needs on any device.
// A backend joins every suite with one entry of BackendsUnderTest().
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/core/dtype.h"
#include "kernels/core/thread_pool.h"
#include "kernels/cpu/isa.h"
#include "kernels/cuda_loader.h"
#include "tests/support/status_matchers.h"

namespace infllm::testing {

using kernels::Backend;
using kernels::Buffer;

struct BackendUnderTest {
  std::string name;
  // UNAVAILABLE: not on this machine, the message says why; the suite is skipped with it.
  std::function<absl::StatusOr<std::unique_ptr<Backend>>(kernels::ThreadPool&)> make;
  // Ops (names as in kernels/ops.h, and PackWeight) that it does not have yet. Their tests skip,
  // saying so; BackendContract checks that each returns UNIMPLEMENTED, and that no other op does.
  std::vector<std::string_view> missing;
  // Attention over bf16 pages rounds queries and the weights of the softmax to bf16, as the
  // products of tensor cores do. The suites' queries are exact in bf16; weights have a bound of
  // their own.
  bool rounds_attention_weights = false;
};
inline void PrintTo(const BackendUnderTest& backend, std::ostream* os) { *os << backend.name; }

inline std::vector<BackendUnderTest> BackendsUnderTest() {
  std::vector<BackendUnderTest> all;
  all.push_back(
      {"reference", [](kernels::ThreadPool&) { return kernels::NewReferenceBackend(); }, {}});
  for (const kernels::Isa isa : {kernels::Isa::kGeneric, kernels::Isa::kAvx2, kernels::Isa::kAvx512,
                                 kernels::Isa::kAvx512Bf16, kernels::Isa::kAmx}) {
    const std::string name(kernels::Name(isa));
    all.push_back(
        {"cpu_" + name,
         [isa, name](kernels::ThreadPool& pool) -> absl::StatusOr<std::unique_ptr<Backend>> {
           const std::vector<kernels::Isa> supported = kernels::SupportedIsas();
           if (std::find(supported.begin(), supported.end(), isa) == supported.end()) {
             return absl::UnavailableError("this CPU has no " + name);
           }
           return kernels::NewCpuBackend(pool, isa);
         },
         {},
         isa == kernels::Isa::kAmx});
  }
  all.push_back({"cuda",
                 [](kernels::ThreadPool&) { return kernels::NewCudaBackend(); },
                 {"PackWeight", "Linear", "SiluMul", "GatherRows", "RotateAndStore", "Attention",
                  "Representatives", "MeanQueries", "ScoreBlocks", "TopK", "SelectBlocks",
                  "EncodeBounds", "LookUpBlocks", "Sample", "LogProbs"}});
  return all;
}

// For INSTANTIATE_TEST_SUITE_P(…, ::testing::ValuesIn(BackendsUnderTest()), BackendName).
inline std::string BackendName(const ::testing::TestParamInfo<BackendUnderTest>& info) {
  return info.param.name;
}

// The fixture of a suite: the backend of the parameter and the reference next to it.
class BackendTest : public ::testing::TestWithParam<BackendUnderTest> {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<Backend>> made = GetParam().make(Pool());
    if (absl::IsUnavailable(made.status())) GTEST_SKIP() << std::string(made.status().message());
    ASSERT_OK(made);
    backend_ = *std::move(made);
  }

  bool Missing(std::string_view op) const {
    const std::vector<std::string_view>& missing = GetParam().missing;
    return std::find(missing.begin(), missing.end(), op) != missing.end();
  }

  // Three threads whatever the machine: more than one, and not a power of two.
  static kernels::ThreadPool& Pool() {
    static kernels::ThreadPool& pool = *new kernels::ThreadPool(3);
    return pool;
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Backend> reference_ = kernels::NewReferenceBackend();
};

// First line of a test that needs `op`.
#define INFLLM_NEEDS_OP(op) \
  if (Missing(op)) GTEST_SKIP() << GetParam().name << " does not implement " << (op) << " yet"

constexpr kernels::Stream kMain = Backend::kMainStream;

// Copies and waits.
inline void CopyNow(Backend& backend, void* to, const void* from, size_t bytes) {
  EXPECT_OK(backend.Copy(kMain, to, from, bytes));
  EXPECT_OK(backend.Synchronize(kMain));
}

// An array in the memory of a backend. What an op writes behind its end is found by Get().
template <typename T>
class DeviceArray {
 public:
  DeviceArray(Backend& backend, const std::vector<T>& values)
      : backend_(&backend), size_(values.size()) {
    std::vector<T> guarded = values;
    guarded.resize(size_ + kGuards, Guard());
    buffer_ = backend.Allocate(guarded.size() * sizeof(T)).value();
    CopyNow(backend, buffer_.data(), guarded.data(), guarded.size() * sizeof(T));
  }
  T* data() const { return buffer_.as<T>(); }
  std::vector<T> Get() const {
    std::vector<T> values(size_ + kGuards);
    CopyNow(*backend_, values.data(), buffer_.data(), values.size() * sizeof(T));
    for (size_t i = size_; i < values.size(); ++i) {
      EXPECT_EQ(values[i], Guard()) << "written " << i - size_ << " elements behind the end";
    }
    values.resize(size_);
    return values;
  }

 private:
  static constexpr size_t kGuards = 32;
  static T Guard() { return static_cast<T>(123); }
  Backend* backend_;
  size_t size_;
  Buffer buffer_;
};

// An array that host and device share: lists of items, and results that the host looks at. What an
// op writes behind its end is found by Get(), once the op is done.
template <typename T>
class SharedArray {
 public:
  SharedArray(Backend& backend, const std::vector<T>& values)
      : size_(values.size()),
        buffer_(backend.AllocateHost(values.size() * sizeof(T) + kGuardBytes).value()) {
    std::copy(values.begin(), values.end(), data());
    std::fill_n(guard(), kGuardBytes, kGuard);
  }
  T* data() const { return buffer_.as<T>(); }
  int64_t size() const { return static_cast<int64_t>(size_); }
  std::vector<T> Get() const {
    for (size_t i = 0; i < kGuardBytes; ++i) {
      EXPECT_EQ(guard()[i], kGuard) << "written " << i << " bytes behind the end";
    }
    return {data(), data() + size_};
  }

 private:
  static constexpr size_t kGuardBytes = 128;
  static constexpr std::byte kGuard{0xa5};
  std::byte* guard() const { return reinterpret_cast<std::byte*>(data() + size_); }
  size_t size_;
  Buffer buffer_;
};

// call(stream) of an operation, and the wait for it.
template <typename Call>
absl::Status RunOp(Backend& backend, Call call) {
  const absl::Status status = call(kMain);
  return status.ok() ? backend.Synchronize(kMain) : status;
}

// A refusal says which op refuses, and why.
inline auto Refused(const std::string& op, const std::string& why) {
  return StatusIs(absl::StatusCode::kInvalidArgument,
                  ::testing::AllOf(::testing::StartsWith(op + ": "), ::testing::HasSubstr(why)));
}

// Numbers in the memory of a backend as kF32 or kBF16, to which they are rounded.
class DeviceElements {
 public:
  DeviceElements(Backend& backend, const std::vector<float>& values, kernels::DType dtype)
      : array_(backend, Bytes(values, dtype)) {}
  uint8_t* data() const { return array_.data(); }
  std::vector<uint8_t> GetBytes() const { return array_.Get(); }

 private:
  static std::vector<uint8_t> Bytes(const std::vector<float>& values, kernels::DType dtype) {
    const size_t size = kernels::SizeOf(dtype);
    std::vector<uint8_t> bytes(values.size() * size);
    for (size_t i = 0; i < values.size(); ++i) {
      const kernels::BF16 rounded(values[i]);
      const void* from = dtype == kernels::DType::kF32 ? static_cast<const void*>(&values[i])
                                                       : static_cast<const void*>(&rounded);
      std::memcpy(bytes.data() + i * size, from, size);
    }
    return bytes;
  }
  DeviceArray<uint8_t> array_;
};

inline std::vector<float> RandomNormal(int64_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(size);
  for (float& value : values) value = normal(random);
  return values;
}

// Every element within bound(i) of `want`, NaN matching NaN.
template <typename Bound>
void ExpectNear(const std::vector<float>& got, const std::vector<float>& want, Bound bound) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(want[i]) && std::isnan(got[i])) continue;
    const bool same = got[i] == want[i];  // infinities too
    const double error = std::abs(static_cast<double>(got[i]) - want[i]);
    ASSERT_TRUE(same || error <= bound(i))
        << "element " << i << " is " << got[i] << ", want " << want[i] << " within " << bound(i);
  }
}

}  // namespace infllm::testing
