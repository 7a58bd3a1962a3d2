// PackWeight and Linear: every backend against hand-computed numbers and against the reference.
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
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
using ::testing::ElementsAre;

struct Shape {
  int64_t rows, in, out;
  bool bias = false;
  bool accumulate = false;
};
void PrintTo(const Shape& s, std::ostream* os) {
  *os << s.rows << "x" << s.in << "x" << s.out << (s.bias ? " bias" : "")
      << (s.accumulate ? " accumulate" : "");
}

class LinearContract : public testing::BackendTest {
 protected:
  void SetUp() override {
    testing::BackendTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    INFLLM_NEEDS_OP("Linear");
  }

  std::vector<float> Multiply(const Weight& weight, const std::vector<float>& x,
                              const std::vector<float>& bias, std::vector<float> y,
                              bool accumulate = false) {
    const DeviceArray<float> device_x(*backend_, x), device_bias(*backend_, bias),
        device_y(*backend_, y);
    EXPECT_OK(
        backend_->Linear(kMain, {.x = device_x.data(),
                                 .weight = weight.packed,
                                 .bias = bias.empty() ? nullptr : device_bias.data(),
                                 .y = device_y.data(),
                                 .rows = static_cast<int64_t>(x.size()) / weight.packed.in_features,
                                 .accumulate = accumulate}));
    return device_y.Get();
  }

  // Where bf16 products are done in fp32, the activations are not rounded to bf16 as the
  // reference does: with 8 significant bits that is up to 2^-8 of each.
  double ActivationRounding(DType compute) const {
    const bool rounds = GetParam().name == "reference" || backend_->preferred_dtype() == compute;
    return compute == DType::kBF16 && !rounds ? std::ldexp(1.0, -8) : 0.0;
  }

  void ExpectLikeReference(const Shape& shape, DType compute, uint32_t seed) {
    SCOPED_TRACE(::testing::PrintToString(shape) + " " + std::string(Name(compute)));
    const std::vector<float> x = RandomNormal(shape.rows * shape.in, seed);
    const std::vector<float> w = RandomNormal(shape.out * shape.in, seed + 1);
    const std::vector<float> bias = RandomNormal(shape.bias ? shape.out : 0, seed + 2);
    std::vector<float> want = RandomNormal(shape.rows * shape.out, seed + 3);
    const WeightSource source = {w.data(), DType::kF32, shape.out};
    ASSERT_OK_AND_ASSIGN(const Weight weight,
                         backend_->PackWeight({&source, 1}, shape.in, compute));
    ASSERT_OK_AND_ASSIGN(const Weight oracle,
                         reference_->PackWeight({&source, 1}, shape.in, compute));
    EXPECT_EQ(weight.packed.in_features, shape.in);
    EXPECT_EQ(weight.packed.out_features, shape.out);

    const std::vector<float> got = Multiply(weight, x, bias, want, shape.accumulate);
    const std::vector<float> before = want;
    ASSERT_OK(reference_->Linear(kMain, {.x = x.data(),
                                         .weight = oracle.packed,
                                         .bias = shape.bias ? bias.data() : nullptr,
                                         .y = want.data(),
                                         .rows = shape.rows,
                                         .accumulate = shape.accumulate}));
    // A chain of n roundings, each of at most half a unit in the last place of a partial sum,
    // which is at most the sum of the magnitudes: as a random walk, sqrt(n) of them.
    const double unit =
        std::ldexp(1.0, -24) * (2 + std::sqrt(shape.in)) + ActivationRounding(compute);
    ExpectNear(got, want, [&](size_t i) {
      const int64_t r = i / shape.out, o = i % shape.out;
      double magnitude = shape.bias ? std::abs(bias[o]) : 0;
      if (shape.accumulate) magnitude += std::abs(before[i]);
      for (int64_t k = 0; k < shape.in; ++k) {
        magnitude += std::abs(static_cast<double>(x[r * shape.in + k]) * w[o * shape.in + k]);
      }
      return unit * magnitude;
    });
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, LinearContract, ::testing::ValuesIn(BackendsUnderTest()),
                         BackendName);

TEST_P(LinearContract, ByHand) {
  // All values and sums are exact in bf16 too.
  const std::vector<float> w = {1,  2, 3,  //
                                -1, 0, 4};
  const WeightSource source = {w.data(), DType::kF32, 2};
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    ASSERT_OK_AND_ASSIGN(const Weight weight, backend_->PackWeight({&source, 1}, 3, compute));
    EXPECT_THAT(Multiply(weight, {1, 1, 1, 2, 0, -1}, {}, {9, 9, 9, 9}), ElementsAre(6, 3, -1, -6));
    EXPECT_THAT(Multiply(weight, {1, 1, 1, 2, 0, -1}, {10, 20}, {9, 9, 9, 9}),
                ElementsAre(16, 23, 9, 14));
    EXPECT_THAT(Multiply(weight, {1, 1, 1, 2, 0, -1}, {10, 20}, {1, 2, 3, 4}, true),
                ElementsAre(17, 25, 12, 18));
    EXPECT_GE(weight.size_bytes(), 6 * SizeOf(compute));
  }
}

TEST_P(LinearContract, ZeroRowsDoNothing) {
  const std::vector<float> w = {1, 2};
  const WeightSource source = {w.data(), DType::kF32, 1};
  ASSERT_OK_AND_ASSIGN(const Weight weight, backend_->PackWeight({&source, 1}, 2, DType::kF32));
  EXPECT_OK(backend_->Linear(kMain, {.weight = weight.packed, .rows = 0}));
}

// Every height of a tile and the splits into several, against odd depths and widths.
TEST_P(LinearContract, EveryNumberOfRowsIsLikeTheReference) {
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    for (int64_t rows = 1; rows <= 26; ++rows) {
      ExpectLikeReference({rows, 37, 67, rows % 2 == 0, rows % 3 == 0}, compute, rows);
    }
  }
}

TEST_P(LinearContract, EveryDepthIsLikeTheReference) {
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    for (const int64_t in : {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 511, 513}) {
      ExpectLikeReference({1, in, 33, true}, compute, in);
      ExpectLikeReference({5, in, 33, false, true}, compute, in);
    }
  }
}

TEST_P(LinearContract, EveryWidthIsLikeTheReference) {
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    for (const int64_t out :
         {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 127, 129, 255, 257}) {
      ExpectLikeReference({1, 20, out, true, true}, compute, out);
      ExpectLikeReference({3, 20, out, true}, compute, out);
      ExpectLikeReference({14, 20, out, false, true}, compute, out);
    }
  }
}

// Large enough for several threads, passes over the depth, and blocks of rows.
TEST_P(LinearContract, LargeProductsAreLikeTheReference) {
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    ExpectLikeReference({1, 1100, 530, true}, compute, 1);
    ExpectLikeReference({7, 1100, 530, false, true}, compute, 2);
    ExpectLikeReference({40, 1030, 201, true, true}, compute, 3);
    ExpectLikeReference({300, 130, 70, true}, compute, 4);
  }
}

TEST_P(LinearContract, StacksSourcesOfDifferentDtypes) {
  // in_features is odd, so that rows start anywhere; the second source starts inside a panel.
  constexpr int64_t kIn = 19;
  const std::vector<float> first = RandomNormal(5 * kIn, 1), last = RandomNormal(40 * kIn, 2);
  std::vector<uint16_t> bf16, f16;
  std::vector<float> whole = first;
  for (const float value : RandomNormal(3 * kIn, 3)) {
    bf16.push_back(BF16(value).bits);
    whole.push_back(static_cast<float>(BF16(value)));
  }
  std::mt19937 random(4);
  for (int64_t i = 0; i < 2 * kIn; ++i) {
    f16.push_back(random() & 0xbbffu);  // finite
    whole.push_back(HalfToFloat(f16.back()));
  }
  whole.insert(whole.end(), last.begin(), last.end());
  const WeightSource parts[] = {{first.data(), DType::kF32, 5},
                                {bf16.data(), DType::kBF16, 3},
                                {f16.data(), DType::kF16, 2},
                                {last.data(), DType::kF32, 40}};
  const WeightSource one = {whole.data(), DType::kF32, 50};
  const std::vector<float> x = RandomNormal(4 * kIn, 5);
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    ASSERT_OK_AND_ASSIGN(const Weight stacked, backend_->PackWeight(parts, kIn, compute));
    ASSERT_OK_AND_ASSIGN(const Weight plain, backend_->PackWeight({&one, 1}, kIn, compute));
    ASSERT_EQ(stacked.packed.out_features, 50);
    const std::vector<float> y(4 * 50);
    EXPECT_EQ(Multiply(stacked, x, {}, y), Multiply(plain, x, {}, y));
  }
}

// One column times one: y is the weight as packed.
TEST_P(LinearContract, ReadsEveryHalfAndEveryBf16Exactly) {
  std::vector<uint16_t> bits(1 << 16);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    const WeightSource source = {bits.data(), dtype, 1 << 16};
    ASSERT_OK_AND_ASSIGN(const Weight weight, backend_->PackWeight({&source, 1}, 1, DType::kF32));
    const std::vector<float> y = Multiply(weight, {1}, {}, std::vector<float>(1 << 16));
    for (uint32_t i = 0; i < bits.size(); ++i) {
      const float want =
          dtype == DType::kF16 ? HalfToFloat(bits[i]) : std::bit_cast<float>(i << 16);
      ASSERT_TRUE(y[i] == want || (std::isnan(y[i]) && std::isnan(want)))
          << Name(dtype) << " " << i << ": " << y[i] << ", want " << want;
    }
  }
}

TEST_P(LinearContract, ReadsUnalignedHostMemoryWhichMayGoAfterwards) {
  const std::vector<float> values = RandomNormal(7 * 33, 1);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    std::vector<float> expected;
    std::vector<std::byte> bytes(values.size() * SizeOf(dtype) + 1);
    for (size_t i = 0; i < values.size(); ++i) {
      const BF16 half(values[i]);
      expected.push_back(dtype == DType::kF32 ? values[i] : static_cast<float>(half));
      std::memcpy(bytes.data() + 1 + i * SizeOf(dtype),
                  dtype == DType::kF32 ? static_cast<const void*>(&values[i]) : &half,
                  SizeOf(dtype));
    }
    const WeightSource source = {bytes.data() + 1, dtype, 33};
    ASSERT_OK_AND_ASSIGN(const Weight weight, backend_->PackWeight({&source, 1}, 7, DType::kF32));
    std::fill(bytes.begin(), bytes.end(), std::byte{0xff});
    for (int64_t i = 0; i < 7; ++i) {
      std::vector<float> unit(7);
      unit[i] = 1;
      const std::vector<float> column = Multiply(weight, unit, {}, std::vector<float>(33));
      for (int64_t o = 0; o < 33; ++o) ASSERT_EQ(column[o], expected[o * 7 + i]);
    }
  }
}

TEST_P(LinearContract, InfinitiesAndNansStayInTheirRow) {
  const std::vector<float> w(20 * 40, 1.0f);
  const WeightSource source = {w.data(), DType::kF32, 40};
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    ASSERT_OK_AND_ASSIGN(const Weight weight, backend_->PackWeight({&source, 1}, 20, compute));
    std::vector<float> x(3 * 20, 1.0f);
    x[5] = std::numeric_limits<float>::infinity();
    x[20 + 7] = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> y = Multiply(weight, x, {}, std::vector<float>(3 * 40));
    for (int64_t o = 0; o < 40; ++o) {
      EXPECT_EQ(y[o], std::numeric_limits<float>::infinity());
      EXPECT_TRUE(std::isnan(y[40 + o]));
      EXPECT_EQ(y[80 + o], 20.0f);
    }
  }
}

TEST_P(LinearContract, RefusesAWeightOfAnotherBackend) {
  const std::vector<float> w = {1};
  const WeightSource source = {w.data(), DType::kF32, 1};
  const DeviceArray<float> x(*backend_, {1}), y(*backend_, {1});
  for (const auto& other : BackendsUnderTest()) {
    if (other.name == GetParam().name) continue;
    SCOPED_TRACE(other.name);
    const auto made = other.make(Pool());
    if (!made.ok()) continue;  // not on this machine
    const absl::StatusOr<Weight> weight = (*made)->PackWeight({&source, 1}, 1, DType::kF32);
    if (!weight.ok()) continue;  // packs none yet
    EXPECT_THAT(
        backend_->Linear(kMain,
                         {.x = x.data(), .weight = weight->packed, .y = y.data(), .rows = 1}),
        testing::StatusIs(absl::StatusCode::kInvalidArgument, ::testing::HasSubstr("packed by")));
  }
}

}  // namespace
}  // namespace infllm::kernels
