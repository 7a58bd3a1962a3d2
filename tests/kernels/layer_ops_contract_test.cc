// The ops between the products, memory and streams: every backend against hand-computed numbers and
// against the reference. RotateAndStore has a file of its own.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/kernels/backends_under_test.h"
#include "tests/support/status_matchers.h"

namespace infllm::kernels {
namespace {

using ::infllm::testing::BackendName;
using ::infllm::testing::BackendsUnderTest;
using ::infllm::testing::DeviceArray;
using ::infllm::testing::ExpectNear;
using ::infllm::testing::kMain;
using ::infllm::testing::RandomNormal;
using ::infllm::testing::SharedArray;
using ::testing::HasSubstr;

constexpr double kEps = std::numeric_limits<float>::epsilon();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// One less, equal and one more than the lanes of every instruction set, and a few larger ones.
constexpr int64_t kWidths[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 128, 1000};

class LayerOpsContract : public testing::BackendTest {};
INSTANTIATE_TEST_SUITE_P(Backends, LayerOpsContract, ::testing::ValuesIn(BackendsUnderTest()),
                         BackendName);

// ---- Memory, streams and events ----

TEST_P(LayerOpsContract, AllocatesAlignedMemory) {
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{63}, size_t{64}, size_t{4096},
                             (size_t{4} << 20) - 1, (size_t{4} << 20) + 1}) {
    ASSERT_OK_AND_ASSIGN(const Buffer buffer, backend_->Allocate(bytes));
    ASSERT_OK_AND_ASSIGN(const Buffer shared, backend_->AllocateHost(bytes));
    EXPECT_EQ(buffer.size_bytes(), bytes);
    EXPECT_EQ(shared.size_bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u) << bytes;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(shared.data()) % 64, 0u) << bytes;
    EXPECT_OK(backend_->Zero(kMain, buffer.data(), bytes));
    EXPECT_OK(backend_->Synchronize(kMain));
    std::fill_n(shared.data(), bytes, std::byte{1});
  }
}

TEST_P(LayerOpsContract, AnImpossibleAllocationIsAnError) {
  for (const size_t bytes : {size_t{1} << 60, std::numeric_limits<size_t>::max()}) {
    const auto exhausted =
        testing::StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr(std::to_string(bytes)));
    EXPECT_THAT(backend_->Allocate(bytes), exhausted);
    EXPECT_THAT(backend_->AllocateHost(bytes), exhausted);
  }
}

TEST_P(LayerOpsContract, MemoryComesBackAsItWent) {
  const std::vector<float> values = RandomNormal(3 << 20, 1);  // one of the mapped ones, too
  for (const size_t n : {size_t{0}, size_t{1}, size_t{1000}, values.size()}) {
    const size_t bytes = n * sizeof(float);
    ASSERT_OK_AND_ASSIGN(const Buffer buffer, backend_->Allocate(bytes));
    ASSERT_OK_AND_ASSIGN(const Buffer other, backend_->Allocate(bytes));
    ASSERT_OK_AND_ASSIGN(const Buffer shared, backend_->AllocateHost(bytes));
    std::vector<float> back(n, -1.0f);
    ASSERT_OK(backend_->Copy(kMain, buffer.data(), values.data(), bytes));
    ASSERT_OK(backend_->Copy(kMain, other.data(), buffer.data(), bytes));
    ASSERT_OK(backend_->Copy(kMain, shared.data(), other.data(), bytes));
    ASSERT_OK(backend_->Copy(kMain, back.data(), buffer.data(), bytes));
    ASSERT_OK(backend_->Synchronize(kMain));
    EXPECT_TRUE(std::equal(back.begin(), back.end(), values.begin()));
    EXPECT_TRUE(std::equal(back.begin(), back.end(), shared.as<float>()));
    ASSERT_OK(backend_->Zero(kMain, buffer.data(), bytes));
    ASSERT_OK(backend_->Copy(kMain, back.data(), buffer.data(), bytes));
    ASSERT_OK(backend_->Synchronize(kMain));
    EXPECT_EQ(std::count(back.begin(), back.end(), 0.0f), static_cast<int64_t>(n));
  }
}

TEST_P(LayerOpsContract, StreamsWaitForEvents) {
  ASSERT_OK_AND_ASSIGN(const Stream first, backend_->NewStream());
  ASSERT_OK_AND_ASSIGN(const Stream second, backend_->NewStream());
  ASSERT_OK_AND_ASSIGN(const Event written, backend_->NewEvent());
  EXPECT_NE(first, second);
  EXPECT_NE(first, kMain);
  const std::vector<float> values = RandomNormal(4 << 20, 1);
  const size_t bytes = values.size() * sizeof(float);
  ASSERT_OK_AND_ASSIGN(const Buffer shared, backend_->AllocateHost(bytes));
  ASSERT_OK_AND_ASSIGN(const Buffer device, backend_->Allocate(bytes));
  ASSERT_OK_AND_ASSIGN(const Buffer back, backend_->AllocateHost(bytes));
  std::copy(values.begin(), values.end(), shared.as<float>());
  for (int round = 0; round < 3; ++round) {
    ASSERT_OK(backend_->Zero(first, device.data(), bytes));
    ASSERT_OK(backend_->Copy(first, device.data(), shared.data(), bytes));
    ASSERT_OK(backend_->Record(first, written));
    ASSERT_OK(backend_->Wait(second, written));
    ASSERT_OK(backend_->Copy(second, back.data(), device.data(), bytes));
    ASSERT_OK(backend_->Synchronize(second));
    ASSERT_TRUE(std::equal(values.begin(), values.end(), back.as<float>())) << round;
  }
}

TEST_P(LayerOpsContract, CopiesOfNothingNeedNoMemory) {
  EXPECT_OK(backend_->Copy(kMain, nullptr, nullptr, 0));
  EXPECT_OK(backend_->Zero(kMain, nullptr, 0));
  float x = 0;
  const auto refused = testing::StatusIs(absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(backend_->Copy(kMain, nullptr, &x, 4), refused);
  EXPECT_THAT(backend_->Copy(kMain, &x, nullptr, 4), refused);
  EXPECT_THAT(backend_->Zero(kMain, nullptr, 4), refused);
}

// ---- RmsNorm ----

TEST_P(LayerOpsContract, RmsNormByHand) {
  INFLLM_NEEDS_OP("RmsNorm");
  // mean(x^2) is 12.5 and, for the second row, 0: only eps stands below the root.
  const DeviceArray<float> x(*backend_, {3, 4, 0, 0}), weight(*backend_, {1, 2}),
      y(*backend_, {9, 9, 9, 9});
  ASSERT_OK(backend_->RmsNorm(kMain, {x.data(), weight.data(), y.data(), 2, 2, 1e-20f}));
  ExpectNear(y.Get(), {3 / std::sqrt(12.5f), 8 / std::sqrt(12.5f), 0, 0},
             [](size_t) { return 4 * kEps; });
}

TEST_P(LayerOpsContract, RmsNormIsLikeTheReference) {
  INFLLM_NEEDS_OP("RmsNorm");
  for (const int64_t width : kWidths) {
    for (const int64_t rows : {0, 1, 3, 40}) {
      SCOPED_TRACE(::testing::Message() << rows << " rows of " << width);
      const std::vector<float> values = RandomNormal(rows * width, 1);
      const std::vector<float> weights = RandomNormal(width, 2);
      const DeviceArray<float> x(*backend_, values), weight(*backend_, weights);
      std::vector<float> want(rows * width);
      ASSERT_OK(reference_->RmsNorm(
          kMain, {values.data(), weights.data(), want.data(), rows, width, 1e-5f}));
      // In place.
      ASSERT_OK(backend_->RmsNorm(kMain, {x.data(), weight.data(), x.data(), rows, width, 1e-5f}));
      // The sum of squares has positive terms only: its relative error grows at most with depth.
      ExpectNear(x.Get(), want,
                 [&](size_t i) { return (4 + width / 64.0) * kEps * std::abs(want[i]); });
    }
  }
}

// ---- SiluMul ----

TEST_P(LayerOpsContract, SiluMulByHand) {
  INFLLM_NEEDS_OP("SiluMul");
  // silu(0) = 0, silu(1) = 0.7310586, silu(-1) = -0.2689414; far out it is x and 0.
  const DeviceArray<float> gate_up(*backend_, {0, 1, -1, 100, -200, 5, 1, 2, 3, 4});
  const DeviceArray<float> out(*backend_, std::vector<float>(5));
  ASSERT_OK(backend_->SiluMul(kMain, {gate_up.data(), out.data(), 1, 5}));
  ExpectNear(out.Get(), {0, 0.7310586f, -0.5378828f, 300, 0}, [](size_t) { return 2e-7; });
}

TEST_P(LayerOpsContract, SiluMulIsLikeTheReference) {
  INFLLM_NEEDS_OP("SiluMul");
  for (const int64_t width : kWidths) {
    for (const int64_t rows : {0, 1, 3, 40}) {
      SCOPED_TRACE(::testing::Message() << rows << " rows of " << width);
      std::vector<float> values = RandomNormal(rows * 2 * width, 1);
      for (float& value : values) value *= 8;
      const DeviceArray<float> gate_up(*backend_, values);
      const DeviceArray<float> out(*backend_, std::vector<float>(rows * width, 7.0f));
      std::vector<float> want(rows * width);
      ASSERT_OK(reference_->SiluMul(kMain, {values.data(), want.data(), rows, width}));
      ASSERT_OK(backend_->SiluMul(kMain, {gate_up.data(), out.data(), rows, width}));
      ExpectNear(out.Get(), want, [&](size_t i) { return 6 * kEps * std::abs(want[i]); });
    }
  }
}

TEST_P(LayerOpsContract, SiluMulOfExtremesIsLikeTheReference) {
  INFLLM_NEEDS_OP("SiluMul");
  std::vector<float> values;
  for (float gate = -110; gate <= 110; gate += 0.37f) values.push_back(gate);
  values.insert(values.end(), {kInf, kNan, 3e38f, -3e38f, 1e-38f, -1e-38f, 0.0f, -0.0f});
  const int64_t width = static_cast<int64_t>(values.size());
  values.resize(2 * width, 1.0f);
  const DeviceArray<float> gate_up(*backend_, values);
  const DeviceArray<float> out(*backend_, std::vector<float>(width));
  std::vector<float> want(width);
  ASSERT_OK(reference_->SiluMul(kMain, {values.data(), want.data(), 1, width}));
  ASSERT_OK(backend_->SiluMul(kMain, {gate_up.data(), out.data(), 1, width}));
  // Below -87 e^-x leaves the range of floats, and silu is zero to every purpose.
  ExpectNear(out.Get(), want, [&](size_t i) { return 6 * kEps * std::abs(want[i]) + 1e-35; });
}

// ---- GatherRows ----

TEST_P(LayerOpsContract, GatherRowsMovesBits) {
  INFLLM_NEEDS_OP("GatherRows");
  for (const int64_t width : kWidths) {
    SCOPED_TRACE(width);
    std::vector<float> values = RandomNormal(40 * width, 1);
    for (size_t i = 0; i < values.size(); i += 3) values[i] = std::bit_cast<float>(0x7f812345u);
    const std::vector<int32_t> rows = {39, 0, 7, 7, 12};
    const DeviceArray<float> x(*backend_, values);
    const SharedArray<int32_t> index(*backend_, rows);
    const DeviceArray<float> out(*backend_, std::vector<float>(rows.size() * width));
    ASSERT_OK(backend_->GatherRows(kMain, {x.data(), index.data(), out.data(), 5, width}));
    const std::vector<float> got = out.Get();
    for (size_t i = 0; i < got.size(); ++i) {
      const float want = values[rows[i / width] * width + i % width];
      ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(want)) << i;
    }
    EXPECT_OK(backend_->GatherRows(kMain, {.rows = 0, .width = width}));
  }
}

}  // namespace
}  // namespace infllm::kernels
