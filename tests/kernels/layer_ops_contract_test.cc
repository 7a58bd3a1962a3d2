// The ops between the products, memory, and the refusal of bad arguments: every backend against
// hand-computed numbers and against the reference.
#include <bit>
#include <cmath>
#include <cstring>
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
using ::infllm::testing::RandomNormal;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr double kEps = std::numeric_limits<float>::epsilon();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// One less, equal and one more than the lanes of every instruction set, and a few larger ones.
constexpr int64_t kWidths[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 128, 1000};

class LayerOpsContract : public testing::BackendTest {};
INSTANTIATE_TEST_SUITE_P(Backends, LayerOpsContract, ::testing::ValuesIn(BackendsUnderTest()),
                         BackendName);

// ---- Memory ----

TEST_P(LayerOpsContract, AllocatesAlignedMemory) {
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{63}, size_t{64}, size_t{4096},
                             (size_t{4} << 20) - 1, (size_t{4} << 20) + 1}) {
    ASSERT_OK_AND_ASSIGN(Buffer buffer, backend_->Allocate(bytes));
    EXPECT_EQ(buffer.size_bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u) << bytes;
    EXPECT_OK(backend_->Zero(buffer.data(), bytes));
  }
}

TEST_P(LayerOpsContract, AnImpossibleAllocationIsAnError) {
  for (const size_t bytes : {size_t{1} << 60, std::numeric_limits<size_t>::max()}) {
    EXPECT_THAT(backend_->Allocate(bytes), testing::StatusIs(absl::StatusCode::kResourceExhausted,
                                                             HasSubstr(std::to_string(bytes))));
  }
}

TEST_P(LayerOpsContract, MemoryComesBackAsItWent) {
  const std::vector<float> values = RandomNormal(3 << 20, 1);  // one of the mapped ones, too
  for (const size_t n : {size_t{0}, size_t{1}, size_t{1000}, values.size()}) {
    ASSERT_OK_AND_ASSIGN(Buffer buffer, backend_->Allocate(n * sizeof(float)));
    std::vector<float> back(n, -1.0f);
    ASSERT_OK(backend_->Upload(buffer.data(), values.data(), n * sizeof(float)));
    ASSERT_OK(backend_->Download(back.data(), buffer.data(), n * sizeof(float)));
    EXPECT_TRUE(std::equal(back.begin(), back.end(), values.begin()));
    ASSERT_OK(backend_->Zero(buffer.data(), n * sizeof(float)));
    ASSERT_OK(backend_->Download(back.data(), buffer.data(), n * sizeof(float)));
    EXPECT_EQ(std::count(back.begin(), back.end(), 0.0f), static_cast<int64_t>(n));
    ASSERT_OK(backend_->Synchronize());
  }
}

TEST_P(LayerOpsContract, CopiesOfNothingNeedNoMemory) {
  EXPECT_OK(backend_->Upload(nullptr, nullptr, 0));
  EXPECT_OK(backend_->Download(nullptr, nullptr, 0));
  EXPECT_OK(backend_->Zero(nullptr, 0));
  float x = 0;
  EXPECT_THAT(backend_->Upload(nullptr, &x, 4),
              testing::StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(backend_->Download(&x, nullptr, 4),
              testing::StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(backend_->Zero(nullptr, 4), testing::StatusIs(absl::StatusCode::kInvalidArgument));
}

// ---- RmsNorm ----

TEST_P(LayerOpsContract, RmsNormByHand) {
  INFLLM_NEEDS_OP("RmsNorm");
  // mean(x^2) is 12.5 and, for the second row, 0: only eps stands below the root.
  const DeviceArray<float> x(*backend_, {3, 4, 0, 0}), weight(*backend_, {1, 2}),
      y(*backend_, {9, 9, 9, 9});
  ASSERT_OK(backend_->RmsNorm({x.data(), weight.data(), y.data(), 2, 2, 1e-20f}));
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
      ASSERT_OK(
          reference_->RmsNorm({values.data(), weights.data(), want.data(), rows, width, 1e-5f}));
      // In place.
      ASSERT_OK(backend_->RmsNorm({x.data(), weight.data(), x.data(), rows, width, 1e-5f}));
      // The sum of squares has positive terms only: its relative error grows at most with depth.
      ExpectNear(x.Get(), want,
                 [&](size_t i) { return (4 + width / 64.0) * kEps * std::abs(want[i]); });
    }
  }
}

// ---- Rope ----

TEST_P(LayerOpsContract, RopeByHand) {
  INFLLM_NEEDS_OP("Rope");
  // head_dim 4: pairs (0, 2) and (1, 3), rotated by 90 and 0 degrees; two heads.
  const DeviceArray<float> x(*backend_, {1, 2, 3, 4, 5, 6, 7, 8}), table(*backend_, {0, 1, 1, 0}),
      y(*backend_, std::vector<float>(8));
  ASSERT_OK(backend_->Rope({x.data(), table.data(), y.data(), 1, 2, 4, 1}));
  EXPECT_THAT(y.Get(), ElementsAre(-3, 2, 1, 4, -7, 6, 5, 8));
}

TEST_P(LayerOpsContract, RopeIsLikeTheReference) {
  INFLLM_NEEDS_OP("Rope");
  for (const int64_t head_dim : {2, 6, 8, 16, 24, 32, 34, 64, 80, 128, 256}) {
    for (const int64_t heads : {1, 3}) {
      for (const int64_t rows : {0, 1, 5, 300}) {
        for (const int64_t step : {0, 1}) {
          SCOPED_TRACE(::testing::Message()
                       << rows << "x" << heads << "x" << head_dim << " step " << step);
          const std::vector<float> values = RandomNormal(rows * heads * head_dim, 1);
          std::vector<float> angles = RandomNormal((rows + 1) * head_dim, 2);
          for (float& value : angles) value = std::sin(value);
          const DeviceArray<float> x(*backend_, values), table(*backend_, angles);
          std::vector<float> want(values.size());
          RopeArgs args = {values.data(), angles.data(), want.data(), rows, heads, head_dim, step};
          ASSERT_OK(reference_->Rope(args));
          args.x = args.y = x.data();  // in place
          args.y = x.data();
          args.table = table.data();
          ASSERT_OK(backend_->Rope(args));
          ExpectNear(x.Get(), want, [&](size_t i) {
            const size_t half = head_dim / 2;
            const size_t partner = i % head_dim < half ? i + half : i - half;
            return kEps * (std::abs(values[i]) + std::abs(values[partner]));
          });
        }
      }
    }
  }
}

// ---- SiluMul ----

TEST_P(LayerOpsContract, SiluMulByHand) {
  INFLLM_NEEDS_OP("SiluMul");
  // silu(0) = 0, silu(1) = 0.7310586, silu(-1) = -0.2689414; far out it is x and 0.
  const DeviceArray<float> gate_up(*backend_, {0, 1, -1, 100, -200, 5, 1, 2, 3, 4});
  const DeviceArray<float> out(*backend_, std::vector<float>(5));
  ASSERT_OK(backend_->SiluMul(gate_up.data(), out.data(), 1, 5));
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
      ASSERT_OK(reference_->SiluMul(values.data(), want.data(), rows, width));
      ASSERT_OK(backend_->SiluMul(gate_up.data(), out.data(), rows, width));
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
  ASSERT_OK(reference_->SiluMul(values.data(), want.data(), 1, width));
  ASSERT_OK(backend_->SiluMul(gate_up.data(), out.data(), 1, width));
  // Below -87 e^-x leaves the range of floats, and silu is zero to every purpose.
  ExpectNear(out.Get(), want, [&](size_t i) { return 6 * kEps * std::abs(want[i]) + 1e-35; });
}

// ---- CopyColumns ----

TEST_P(LayerOpsContract, CopyColumnsMovesBitsAndNothingElse) {
  INFLLM_NEEDS_OP("CopyColumns");
  for (const int64_t width : {0, 1, 3, 16, 17, 300}) {
    for (const int64_t rows : {0, 1, 5, 200}) {
      SCOPED_TRACE(::testing::Message() << rows << " rows of " << width);
      const int64_t src_width = width + 5, dst_width = width + 3;
      std::vector<float> values = RandomNormal(rows * src_width, 1);
      // Also used to move bf16 pairs: a signalling NaN must keep its bits.
      for (size_t i = 0; i < values.size(); i += 3) values[i] = std::bit_cast<float>(0x7f812345u);
      const DeviceArray<float> src(*backend_, values);
      std::vector<float> want = RandomNormal(rows * dst_width, 2);
      const DeviceArray<float> dst(*backend_, want);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < width; ++i)
          want[r * dst_width + 1 + i] = values[r * src_width + 4 + i];
      }
      ASSERT_OK(
          backend_->CopyColumns(src.data(), src_width, 4, dst.data(), dst_width, 1, rows, width));
      const std::vector<float> got = dst.Get();
      for (size_t i = 0; i < got.size(); ++i) {
        ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(want[i])) << i;
      }
    }
  }
}

// ---- StorePage ----

// Every bit pattern class at the rounding boundary of bf16.
std::vector<float> Bf16Nasties() {
  std::vector<float> values = {0.0f,
                               -0.0f,
                               kInf,
                               -kInf,
                               kNan,
                               std::bit_cast<float>(0x7f800001u),
                               std::bit_cast<float>(0xff812345u),
                               3.4028235e38f,
                               1e-45f,
                               -1e-45f};
  for (uint32_t high : {0x0000u, 0x0001u, 0x007fu, 0x3f80u, 0x3f81u, 0x7f7fu, 0xbf80u, 0x8001u}) {
    for (uint32_t low : {0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      values.push_back(std::bit_cast<float>((high << 16) | low));
    }
  }
  return values;
}

TEST_P(LayerOpsContract, StorePageRoundsToNearestEven) {
  INFLLM_NEEDS_OP("StorePage");
  const std::vector<float> values = Bf16Nasties();
  const DeviceArray<float> src(*backend_, values);
  const int64_t n = static_cast<int64_t>(values.size());
  const DeviceArray<uint16_t> dst(*backend_, std::vector<uint16_t>(n));
  ASSERT_OK(backend_->StorePage({.src = src.data(),
                                 .dst = dst.data(),
                                 .dtype = DType::kBF16,
                                 .head_stride = n,
                                 .tokens = 1,
                                 .heads = 1,
                                 .head_dim = n}));
  const std::vector<uint16_t> got = dst.Get();
  for (int64_t i = 0; i < n; ++i) EXPECT_EQ(got[i], BF16(values[i]).bits) << values[i];
  // By hand: ties go to the even neighbour, NaN stays NaN.
  EXPECT_EQ(BF16(std::bit_cast<float>(0x3f808000u)).bits, 0x3f80);
  EXPECT_EQ(BF16(std::bit_cast<float>(0x3f818000u)).bits, 0x3f82);
  EXPECT_EQ(BF16(std::bit_cast<float>(0x7f800001u)).bits, 0x7fc0);
}

TEST_P(LayerOpsContract, StorePageTurnsTokensIntoHeads) {
  INFLLM_NEEDS_OP("StorePage");
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t head_dim : {1, 8, 16, 24, 32, 64, 128, 130}) {
      for (const int64_t heads : {1, 3}) {
        for (const int64_t tokens : {0, 1, 7, 200}) {
          SCOPED_TRACE(::testing::Message()
                       << Name(dtype) << " " << tokens << "x" << heads << "x" << head_dim);
          const std::vector<float> values = RandomNormal(tokens * heads * head_dim, 1);
          const int64_t stride = (tokens + 2) * head_dim;  // a page that is not full
          const size_t size = heads * stride * SizeOf(dtype);
          const DeviceArray<float> src(*backend_, values);
          const DeviceArray<uint8_t> dst(*backend_, std::vector<uint8_t>(size, 0x5a));
          std::vector<uint8_t> want(size, 0x5a);
          StorePageArgs args = {values.data(), want.data(), dtype, stride, tokens, heads, head_dim};
          ASSERT_OK(reference_->StorePage(args));
          args.src = src.data();
          args.dst = dst.data();
          ASSERT_OK(backend_->StorePage(args));
          ASSERT_EQ(dst.Get(), want);
        }
      }
    }
  }
}

}  // namespace
}  // namespace infllm::kernels
