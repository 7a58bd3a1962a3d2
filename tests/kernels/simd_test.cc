// The vector functions that the SIMD kernels share, on every instruction set of this CPU.
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/core/dtype.h"
#include "kernels/cpu/isa.h"
#include "tests/kernels/simd_functions.h"

namespace infllm::kernels {
namespace {

const SimdFunctions& FunctionsFor(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx2:
      return avx2::kSimdFunctions;
    case Isa::kAvx512:
      return avx512::kSimdFunctions;
    case Isa::kAvx512Bf16:
    case Isa::kAmx:
      return avx512bf16::kSimdFunctions;
#endif
    default:
      return generic::kSimdFunctions;
  }
}

class SimdTest : public ::testing::TestWithParam<Isa> {
 protected:
  const SimdFunctions& simd_ = FunctionsFor(GetParam());
  const int lanes_ = simd_.lanes;

  // In a lane in the middle, the others holding something else.
  float Exp(float x) const {
    std::vector<float> in(lanes_, 1.0f), out(lanes_);
    in[lanes_ / 2] = x;
    simd_.exp(in.data(), out.data());
    EXPECT_NEAR(out[0], 2.7182818f, 5e-7f);
    return out[lanes_ / 2];
  }
};
INSTANTIATE_TEST_SUITE_P(Isas, SimdTest, ::testing::ValuesIn(SupportedIsas()),
                         [](const auto& info) { return std::string(Name(info.param)); });

TEST_P(SimdTest, ExpIsWithinTwoUlpWhereItIsNormal) {
  const float highest = std::bit_cast<float>(0x42b17218u - 1);  // below ln(FLT_MAX)
  for (const float sign : {1.0f, -1.0f}) {
    for (uint32_t bits = 0; bits < std::bit_cast<uint32_t>(highest); bits += 4099) {
      const float x = sign * std::bit_cast<float>(bits);
      const double want = std::exp(static_cast<double>(x));
      if (want < std::numeric_limits<float>::min()) break;
      const float rounded = static_cast<float>(want);
      const double ulp = std::nextafter(rounded, HUGE_VALF) - rounded;
      ASSERT_NEAR(Exp(x), want, 2 * ulp) << x;
    }
  }
}

TEST_P(SimdTest, ExpAtTheEnds) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const float x : {-inf, -std::numeric_limits<float>::max(), -1e10f, -1000.0f, -88.0f}) {
    EXPECT_EQ(Exp(x), 0.0f) << x;
    EXPECT_FALSE(std::signbit(Exp(x))) << x;
  }
  for (const float x : {inf, std::numeric_limits<float>::max(), 1000.0f, 88.8f}) {
    EXPECT_EQ(Exp(x), inf) << x;
  }
  EXPECT_EQ(Exp(0.0f), 1.0f);
  EXPECT_EQ(Exp(-0.0f), 1.0f);
  EXPECT_TRUE(std::isnan(Exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST_P(SimdTest, Bf16RoundsAsTheScalarTypeDoesAndComesBackExactly) {
  std::vector<float> in(lanes_), back(lanes_);
  std::vector<uint16_t> bits(lanes_);
  for (uint32_t start = 0; start < (1u << 16); start += lanes_) {
    for (const uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      for (int i = 0; i < lanes_; ++i) in[i] = std::bit_cast<float>(((start + i) << 16) | low);
      simd_.to_bf16(in.data(), bits.data());
      simd_.load_bf16(bits.data(), back.data());
      for (int i = 0; i < lanes_; ++i) {
        ASSERT_EQ(bits[i], BF16(in[i]).bits) << std::hex << std::bit_cast<uint32_t>(in[i]);
        ASSERT_EQ(std::bit_cast<uint32_t>(back[i]), static_cast<uint32_t>(bits[i]) << 16);
      }
    }
  }
}

TEST_P(SimdTest, PartialLoadsAndStoresTouchTheFirstLanesOnly) {
  for (int n = 0; n <= lanes_; ++n) {
    const auto in = std::make_unique<float[]>(n);  // a read past n is past the allocation
    std::vector<float> out(2 * lanes_, -1.0f);
    for (int i = 0; i < n; ++i) in[i] = static_cast<float>(i + 1);
    simd_.copy_partial(in.get(), out.data(), n);
    for (int i = 0; i < lanes_; ++i) {
      EXPECT_EQ(out[i], i < n ? i + 1 : 0);
      EXPECT_EQ(out[lanes_ + i], i < n ? i + 1 : -1);
    }
  }
}

TEST_P(SimdTest, PartialBf16LoadsAndStoresTouchTheFirstLanesOnly) {
  for (int n = 0; n <= lanes_; ++n) {
    const auto in = std::make_unique<uint16_t[]>(n);
    std::vector<float> out(lanes_, -1.0f);
    std::vector<uint16_t> stored(lanes_, 7);
    for (int i = 0; i < n; ++i) in[i] = BF16(static_cast<float>(i + 1)).bits;
    simd_.copy_partial_bf16(in.get(), out.data(), stored.data(), n);
    for (int i = 0; i < lanes_; ++i) {
      EXPECT_EQ(out[i], i < n ? i + 1 : 0);
      EXPECT_EQ(stored[i], i < n ? in[i] : 7);
    }
  }
}

TEST_P(SimdTest, ReductionsCoverEveryLane) {
  for (int hot = 0; hot < lanes_; ++hot) {
    std::vector<float> x(lanes_, -3.0f);
    x[hot] = 5.0f;
    EXPECT_EQ(simd_.reduce_max(x.data()), 5.0f);
    EXPECT_EQ(simd_.reduce_add(x.data()), 5.0f - 3.0f * (lanes_ - 1));
  }
}

TEST_P(SimdTest, TransposeTransposes) {
  std::vector<float> x(lanes_ * lanes_), y(lanes_ * lanes_);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  simd_.transpose(x.data(), y.data());
  for (int i = 0; i < lanes_; ++i) {
    for (int j = 0; j < lanes_; ++j) ASSERT_EQ(y[j * lanes_ + i], x[i * lanes_ + j]);
  }
}

TEST_P(SimdTest, SetKeepsTheSignOfZero) {
  std::vector<float> y(lanes_);
  simd_.set(-0.0f, y.data());
  for (const float value : y) EXPECT_TRUE(std::signbit(value));
}

}  // namespace
}  // namespace infllm::kernels
