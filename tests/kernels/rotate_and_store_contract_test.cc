// Backend::RotateAndStore of every backend against numbers worked out by hand, and against the
// reference: queries, and what it leaves in pages, bit by bit where nothing is computed.
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
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
using ::testing::ElementsAre;

constexpr double kEps = std::numeric_limits<float>::epsilon();
constexpr uint8_t kUntouched = 0x5a;

std::vector<float> ToFloats(const std::vector<uint8_t>& stored, DType dtype) {
  std::vector<float> values(stored.size() / SizeOf(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    BF16 half;
    if (dtype == DType::kF32) {
      std::memcpy(&values[i], stored.data() + i * 4, 4);
    } else {
      std::memcpy(&half, stored.data() + i * 2, 2);
      values[i] = static_cast<float>(half);
    }
  }
  return values;
}

// Rows of one sequence from `first_slot` of its first page on; each page has two layers, of which
// the second is written.
struct Problem {
  PageShape page;
  int64_t q_heads = 1;
  std::vector<float> qkv, angles, far_angle;
  int64_t first_slot = 0;

  int64_t rows() const { return static_cast<int64_t>(angles.size()) / page.head_dim; }
};
struct Result {
  std::vector<float> q_near, q_far;
  std::vector<std::vector<uint8_t>> pages;  // the layer written
};

class RotateAndStoreContract : public testing::BackendTest {
 protected:
  void SetUp() override {
    BackendTest::SetUp();
    if (IsSkipped()) return;
    INFLLM_NEEDS_OP("RotateAndStore");
  }

  static Result Run(Backend& backend, const Problem& problem) {
    const int64_t rows = problem.rows(), layer = problem.page.page_bytes();
    const int64_t page_tokens = problem.page.page_tokens;
    std::vector<DeviceArray<uint8_t>> memory;
    std::vector<std::byte*> pages;
    std::vector<int32_t> slots;
    for (int64_t i = 0; i <= (problem.first_slot + rows) / page_tokens; ++i) {
      memory.emplace_back(backend, std::vector<uint8_t>(2 * layer, kUntouched));
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = problem.first_slot + r;
      pages.push_back(reinterpret_cast<std::byte*>(memory[at / page_tokens].data()));
      slots.push_back(static_cast<int32_t>(at % page_tokens));
    }
    const DeviceArray<float> qkv(backend, problem.qkv), angles(backend, problem.angles);
    const DeviceArray<float> far_angle(backend, problem.far_angle);
    const std::vector<float> before(rows * problem.q_heads * problem.page.head_dim, -7.0f);
    const DeviceArray<float> q_near(backend, before), q_far(backend, before);
    const SharedArray<std::byte*> page_list(backend, pages);
    const SharedArray<int32_t> slot_list(backend, slots);
    EXPECT_OK(backend.RotateAndStore(
        kMain, {.qkv = qkv.data(),
                .angles = angles.data(),
                .far_angle = problem.far_angle.empty() ? nullptr : far_angle.data(),
                .q_near = q_near.data(),
                .q_far = q_far.data(),
                .pages = page_list.data(),
                .slots = slot_list.data(),
                .layer_offset = layer,
                .rows = rows,
                .q_heads = problem.q_heads,
                .page = problem.page}));
    Result result = {q_near.Get(), q_far.Get(), {}};
    for (const DeviceArray<uint8_t>& page : memory) {
      std::vector<uint8_t> both = page.Get();
      for (int64_t i = 0; i < layer; ++i) EXPECT_EQ(both[i], kUntouched) << "another layer: " << i;
      result.pages.emplace_back(both.begin() + layer, both.end());
    }
    return result;
  }

  static Problem Random(PageShape page, int64_t q_heads, int64_t rows, int64_t first_slot,
                        bool far) {
    Problem problem;
    problem.page = page;
    problem.q_heads = q_heads;
    problem.first_slot = first_slot;
    problem.qkv = RandomNormal(rows * (q_heads + 2 * page.kv_heads) * page.head_dim, 1);
    problem.angles = RandomNormal(rows * page.head_dim, 2);
    if (far) problem.far_angle = RandomNormal(page.head_dim, 3);
    for (float& value : problem.angles) value = std::sin(value);
    for (float& value : problem.far_angle) value = std::sin(value);
    return problem;
  }

  void ExpectLikeReference(const Problem& problem) {
    const DType dtype = problem.page.dtype;
    const Result got = Run(*backend_, problem), want = Run(*reference_, problem);
    // Sums of two products of numbers below 6; in bf16 one may round to the other neighbour.
    const auto bound = [](size_t) { return 12 * kEps; };
    ExpectNear(got.q_near, want.q_near, bound);
    ExpectNear(got.q_far, want.q_far, bound);
    ASSERT_EQ(got.pages.size(), want.pages.size());
    const PageShape& page = problem.page;
    const auto size = static_cast<int64_t>(SizeOf(dtype));
    for (size_t i = 0; i < want.pages.size(); ++i) {
      const std::vector<float> floats = ToFloats(want.pages[i], dtype);
      ExpectNear(ToFloats(got.pages[i], dtype), floats, [&](size_t e) {
        return 12 * kEps + (dtype == DType::kF32 ? 0 : std::abs(floats[e]) / 128);
      });
      // What is but stored has the same bits.
      const auto same = [&](int64_t element) {
        const auto from = element * size, bytes = page.head_elements() * size;
        EXPECT_EQ(std::memcmp(&got.pages[i][from], &want.pages[i][from], bytes), 0);
      };
      for (int64_t h = 0; h < page.kv_heads; ++h) {
        same(page.value(h, 0));
        if (page.rotated_behind) same(page.key(h, 0));
      }
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, RotateAndStoreContract, ::testing::ValuesIn(BackendsUnderTest()),
                         BackendName);

TEST_P(RotateAndStoreContract, ByHand) {
  // Two rows, rotated by 90 and by 180 degrees; far by -90. One KV head, pages of one token.
  Problem problem;
  problem.page = {.kv_heads = 1, .head_dim = 2, .page_tokens = 1};
  problem.qkv = {1, 2, 3, 4,  5,  6,  //
                 7, 8, 9, 10, 11, 12};
  problem.angles = {0, 1, -1, 0};
  problem.far_angle = {0, -1};
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const bool rotated_behind : {false, true}) {
      problem.page.dtype = dtype;
      problem.page.rotated_behind = rotated_behind;
      const Result got = Run(*backend_, problem);
      EXPECT_THAT(got.q_near, ElementsAre(-2, 1, -7, -8));
      EXPECT_THAT(got.q_far, ElementsAre(2, -1, 8, -7));
      ASSERT_GE(got.pages.size(), 2u);
      const std::vector<float> first = ToFloats(got.pages[0], dtype);
      const std::vector<float> second = ToFloats(got.pages[1], dtype);
      if (rotated_behind) {
        EXPECT_THAT(first, ElementsAre(3, 4, 5, 6, -4, 3));
        EXPECT_THAT(second, ElementsAre(9, 10, 11, 12, -9, -10));
      } else {
        EXPECT_THAT(first, ElementsAre(-4, 3, 5, 6));
        EXPECT_THAT(second, ElementsAre(-9, -10, 11, 12));
      }
    }
  }
}

TEST_P(RotateAndStoreContract, IsLikeTheReferenceAcrossPages) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const bool rotated_behind : {false, true}) {
      for (const int64_t head_dim : {2, 6, 8, 16, 24, 34, 64, 128, 130}) {
        for (const int64_t kv_heads : {1, 3}) {
          for (const int64_t rows : {0, 1, 5, 90}) {
            SCOPED_TRACE(::testing::Message()
                         << Name(dtype) << " " << rows << " rows " << kv_heads << "x" << head_dim
                         << (rotated_behind ? " behind" : ""));
            const PageShape page = {kv_heads, head_dim, 32, dtype, rotated_behind};
            ExpectLikeReference(Random(page, 2 * kv_heads, rows, /*first_slot=*/29, true));
          }
        }
      }
    }
  }
}

// A page is made again, bit for bit, from the keys and values of its record.
TEST_P(RotateAndStoreContract, ARecordAloneGivesThePageBack) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const PageShape page = {
        .kv_heads = 2, .head_dim = 24, .page_tokens = 8, .dtype = dtype, .rotated_behind = true};
    Problem problem = Random(page, 2, 8, 0, /*far=*/false);
    const Result first = Run(*backend_, problem);
    const std::vector<float> kept = ToFloats(first.pages[0], dtype);
    for (int64_t row = 0; row < 8; ++row) {
      for (int64_t i = 0; i < 2 * 24; ++i) {
        const int64_t at = row * 6 * 24 + 2 * 24 + i;  // behind two query heads
        problem.qkv[at] = kept[page.key(i / 24, row) + i % 24];
        problem.qkv[at + 2 * 24] = kept[page.value(i / 24, row) + i % 24];
      }
    }
    EXPECT_EQ(Run(*backend_, problem).pages, first.pages) << Name(dtype);
  }
}

TEST_P(RotateAndStoreContract, WithoutAFarAngleQFarIsLeftAlone) {
  const PageShape page = {.kv_heads = 2, .head_dim = 16, .page_tokens = 8};
  const Problem problem = Random(page, 4, 20, 0, /*far=*/false);
  ExpectLikeReference(problem);
  EXPECT_THAT(Run(*backend_, problem).q_far, ::testing::Each(-7.0f));
}

// Every bit pattern class at the rounding boundary of bf16.
TEST_P(RotateAndStoreContract, StoresRoundedToNearestEven) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  std::vector<float> values = {0.0f,
                               -0.0f,
                               kInf,
                               -kInf,
                               3.4028235e38f,
                               1e-45f,
                               -1e-45f,
                               std::numeric_limits<float>::quiet_NaN(),
                               std::bit_cast<float>(0x7f800001u),
                               std::bit_cast<float>(0xff812345u)};
  for (const uint32_t high :
       {0x0000u, 0x0001u, 0x007fu, 0x3f80u, 0x3f81u, 0x7f7fu, 0xbf80u, 0x8001u}) {
    for (const uint32_t low : {0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      values.push_back(std::bit_cast<float>((high << 16) | low));
    }
  }
  const auto dim = static_cast<int64_t>(values.size());
  ASSERT_EQ(dim % 2, 0);
  Problem problem;
  problem.page = {1, dim, 1, DType::kBF16, /*rotated_behind=*/true};
  for (int copy = 0; copy < 3; ++copy) {
    problem.qkv.insert(problem.qkv.end(), values.begin(), values.end());
  }
  problem.angles.assign(dim, 1.0f);
  const Result got = Run(*backend_, problem);
  for (int64_t i = 0; i < dim; ++i) {
    uint16_t key = 0, value = 0;
    std::memcpy(&key, &got.pages[0][2 * (problem.page.key(0, 0) + i)], 2);
    std::memcpy(&value, &got.pages[0][2 * (problem.page.value(0, 0) + i)], 2);
    EXPECT_EQ(key, BF16(values[i]).bits) << values[i];
    EXPECT_EQ(value, BF16(values[i]).bits) << values[i];
  }
  // By hand: ties go to the even neighbour, NaN stays NaN.
  EXPECT_EQ(BF16(std::bit_cast<float>(0x3f808000u)).bits, 0x3f80);
  EXPECT_EQ(BF16(std::bit_cast<float>(0x3f818000u)).bits, 0x3f82);
  EXPECT_EQ(BF16(std::bit_cast<float>(0x7f800001u)).bits, 0x7fc0);
}

}  // namespace
}  // namespace infllm::kernels
