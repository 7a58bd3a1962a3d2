// Backend::Attention of every backend against numbers worked out by hand, and against the
// reference.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/kernels/attention_problem.h"
#include "tests/kernels/backends_under_test.h"
#include "tests/support/status_matchers.h"

namespace infllm::kernels {
namespace {

using ::infllm::testing::AttentionProblem;
using ::infllm::testing::AttentionShape;
using ::infllm::testing::BackendName;
using ::infllm::testing::BackendsUnderTest;
using ::infllm::testing::Cut;
using ::infllm::testing::CutsOf;
using ::infllm::testing::DeviceArray;
using ::infllm::testing::kMain;
using ::infllm::testing::SharedArray;
using ::infllm::testing::SpanResult;
using ::infllm::testing::SpanShape;
using ::testing::Each;

constexpr int64_t kNoWindow = std::numeric_limits<int64_t>::max();

// Sums of a few thousand fp32 products and exponentials of a few ulp each.
constexpr double kOutBound = 2e-5;
constexpr double kMassBound = 5e-5;
constexpr double kHandBound = 1e-6;

// |got - want| <= bound (1 + |want|), for every element.
void ExpectClose(const std::vector<float>& got, const std::vector<float>& want, double bound) {
  testing::ExpectNear(got, want, [&](size_t i) { return bound * (1 + std::abs(want[i])); });
}

class AttentionContract : public testing::BackendTest {
 protected:
  void SetUp() override {
    BackendTest::SetUp();
    if (IsSkipped()) return;
    INFLLM_NEEDS_OP("Attention");
  }

  SpanResult Run(const AttentionShape& shape, const SpanShape& span) {
    AttentionProblem problem(*backend_, shape, {span});
    EXPECT_OK(problem.Run());
    return problem.result();
  }

  // Runs both on the same inputs and compares all that they write.
  void ExpectSame(const AttentionShape& shape, const std::vector<SpanShape>& spans) {
    AttentionProblem actual(*backend_, shape, spans), expected(*reference_, shape, spans);
    ASSERT_OK(actual.Run());
    ASSERT_OK(expected.Run());
    for (size_t i = 0; i < spans.size(); ++i) {
      const SpanResult got = actual.result(i), want = expected.result(i);
      const std::vector<float> rounding = testing::RoundingOfWeights(GetParam(), shape, spans[i]);
      testing::ExpectNear(got.out, want.out, [&](size_t e) {
        return kOutBound * (1 + std::abs(want.out[e])) + rounding[e];
      });
      ExpectClose(got.near_mass, want.near_mass, kMassBound);
      ExpectClose(got.block_mass, want.block_mass, kMassBound);
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, AttentionContract, ::testing::ValuesIn(BackendsUnderTest()),
                         BackendName);

// ---- By hand ----

// One span of one head of one dimension, scale 1: pages of two slots whose keys are rotated.
class AttentionByHand : public AttentionContract {
 protected:
  struct Page {
    int64_t position;
    std::vector<float> k, v;
  };
  struct Problem {
    std::vector<float> q_near, q_far;  // one a row
    int64_t first_position = 0;
    std::vector<Page> near, far, blocks;
  };
  struct Result {
    std::vector<float> out;
    std::vector<float> near_mass;  // [near pages, 2]
    std::vector<float> block_mass;
  };

  Result Attend(const Problem& problem, AttentionArgs args) {
    std::vector<DeviceArray<float>> memory;
    const auto table = [&](const std::vector<Page>& pages) {
      std::vector<PageEntry> entries;
      for (const Page& page : pages) {
        std::vector<float> record(4);
        std::copy(page.k.begin(), page.k.end(), record.begin());
        std::copy(page.v.begin(), page.v.end(), record.begin() + 2);
        memory.emplace_back(*backend_, record);
        entries.push_back({reinterpret_cast<const std::byte*>(memory.back().data()), page.position,
                           0, static_cast<int32_t>(page.k.size())});
      }
      return SharedArray<PageEntry>(*backend_, entries);
    };
    const auto near = table(problem.near), far = table(problem.far), blocks = table(problem.blocks);
    const DeviceArray<float> q_near(*backend_, problem.q_near), q_far(*backend_, problem.q_far);
    const DeviceArray<float> out(*backend_, std::vector<float>(problem.q_near.size(), -1.0f));
    const DeviceArray<float> mass(*backend_, std::vector<float>(problem.near.size() * 2));
    const DeviceArray<float> block_mass(*backend_, std::vector<float>(problem.blocks.size(), 9.0f));
    std::vector<float*> mass_pages;
    for (size_t i = 0; i < problem.near.size(); ++i) mass_pages.push_back(mass.data() + 2 * i);
    const SharedArray<float*> near_mass(*backend_, mass_pages);
    AttentionSpan span;
    span.rows = static_cast<int64_t>(problem.q_near.size());
    span.first_position = problem.first_position;
    span.near = near.data();
    span.near_pages = near.size();
    span.far = far.data();
    span.far_pages = far.size();
    span.blocks = blocks.data();
    span.block_count = blocks.size();
    span.near_mass = near_mass.data();
    span.block_mass = block_mass.data();
    const SharedArray<AttentionSpan> spans(*backend_, {span});
    args.q_near = q_near.data();
    args.q_far = q_far.data();
    args.out = out.data();
    args.spans = spans.data();
    args.span_count = 1;
    args.q_heads = 1;
    args.page = {.kv_heads = 1, .head_dim = 1, .page_tokens = 2};
    EXPECT_OK(backend_->Attention(kMain, args));
    return {out.Get(), mass.Get(), block_mass.Get()};
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, AttentionByHand, ::testing::ValuesIn(BackendsUnderTest()),
                         BackendName);

TEST_P(AttentionByHand, ProbabilitiesAreExponentialsOverTheirSum) {
  // Logits 0 and ln 3: probabilities 1/4 and 3/4.
  const Result got = Attend({.q_near = {1},
                             .q_far = {0},
                             .first_position = 1,
                             .near = {{0, {0, std::log(3.0f)}, {4, 8}}}},
                            {.window = 2});
  ExpectClose(got.out, {7}, kHandBound);
  ExpectClose(got.near_mass, {0.25f, 0.75f}, kHandBound);
}

TEST_P(AttentionByHand, NearFarAndBlocksShareOneSoftmaxAndMeetTheirOwnQueries) {
  // At position 5 with window 2: near keys 4 and 5; the far keys at 0 and 3 are in, at 4 is out.
  // q_near = 0, so near logits are 0; q_far = 1: far logits ln 2, ln 4; the logit of the block is
  // 0 and raised by ln 8, though it lies within the window. Sum 1 + 1 + 2 + 4 + 8 = 16.
  const Result got =
      Attend({.q_near = {0},
              .q_far = {1},
              .first_position = 5,
              .near = {{4, {9, 9}, {16, 32}}},
              .far = {{0, {std::log(2.0f)}, {48}}, {3, {std::log(4.0f), 50}, {80, 1000}}},
              .blocks = {{5, {0}, {12}}}},
             {.window = 2, .block_bias = std::log(8.0f)});
  ExpectClose(got.out, {1 + 2 + 6 + 20 + 6}, kHandBound);
  ExpectClose(got.near_mass, {1 / 16.0f, 1 / 16.0f}, kHandBound);
  ExpectClose(got.block_mass, {0.5f}, kHandBound);
}

TEST_P(AttentionByHand, FarUnmaskedLetsEveryFarKeyIn) {
  // One near key, a far key within the window, and one in the future: a third each.
  const Result got = Attend({.q_near = {1},
                             .q_far = {1},
                             .first_position = 1,
                             .near = {{1, {0}, {1}}},
                             .far = {{1, {0}, {4}}, {9, {0}, {7}}}},
                            {.window = 100, .far_unmasked = true});
  ExpectClose(got.out, {4}, kHandBound);
}

TEST_P(AttentionByHand, AQueryNeitherSeesTheFutureNorBeyondTheWindow) {
  const Result got = Attend({.q_near = {1, 1, 1},
                             .q_far = {1, 1, 1},
                             .near = {{0, {0, 0}, {1, 3}}, {2, {0, 0}, {7, 100}}}},
                            {.window = 2});
  ExpectClose(got.out, {1, 2, 5}, kHandBound);
  ExpectClose(got.near_mass, {1.5f, 1, 0.5f, 0}, kHandBound);
}

TEST_P(AttentionByHand, ARowThatSeesNothingIsZero) {
  const Result got =
      Attend({.q_near = {1}, .q_far = {1}, .near = {{7, {1, 1}, {3, 5}}}}, {.window = 2});
  EXPECT_THAT(got.out, Each(0.0f));
  EXPECT_THAT(got.near_mass, Each(0.0f));
}

// ---- Against the reference ----

TEST_P(AttentionContract, EqualsTheReferenceForEveryHeadDimAndGrouping) {
  for (const int64_t head_dim : {1, 7, 8, 16, 24, 32, 40, 64, 80, 128, 256}) {
    for (const int64_t group : {1, 2, 4, 8}) {
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        SCOPED_TRACE("head_dim " + std::to_string(head_dim) + ", group " + std::to_string(group) +
                     ", " + std::string(Name(dtype)));
        ExpectSame({.q_heads = 2 * group,
                    .kv_heads = 2,
                    .head_dim = head_dim,
                    .window = 77,
                    .dtype = dtype,
                    .block_bias = 0.5f},
                   {{.rows = 13,
                     .first_position = 190,
                     .near = CutsOf(100, 203, 31),
                     .far = CutsOf(0, 130, 64),
                     .blocks = CutsOf(20, 100, 40),
                     .near_mass = true,
                     .block_mass = true,
                     .seed = static_cast<uint32_t>(head_dim * 8 + group)}});
      }
    }
  }
}

TEST_P(AttentionContract, EqualsTheReferenceOnRandomShapes) {
  std::mt19937 random(20240607);
  const auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  const auto random_cuts = [&](int64_t begin, int64_t end) {
    std::vector<Cut> cuts;
    while (begin < end) {
      const int64_t tokens = std::min(end - begin, pick(0, 3) == 0 ? pick(1, 3) : pick(1, 200));
      if (pick(0, 9) != 0) cuts.push_back({begin, tokens});
      begin += tokens;
    }
    return cuts;
  };
  for (int round = 0; round < 40; ++round) {
    AttentionShape shape;
    shape.kv_heads = pick(1, 3);
    shape.q_heads = shape.kv_heads * (int64_t{1} << pick(0, 3));
    shape.head_dim = std::vector<int64_t>{8, 8, 16, 24, 32, 64, 5}[pick(0, 6)];
    shape.window = pick(1, 600);
    shape.dtype = pick(0, 1) == 0 ? DType::kF32 : DType::kBF16;
    shape.rotated_behind = pick(0, 1) == 0;
    shape.far_rotated = pick(0, 1) == 0;
    shape.far_unmasked = pick(0, 4) == 0;
    shape.block_bias = std::vector<float>{0, 0, -3, 1.5f}[pick(0, 3)];
    shape.logit_scale = pick(0, 3) == 0 ? 8.0f : 1.0f;
    std::vector<SpanShape> spans(static_cast<size_t>(pick(1, 4)));
    for (SpanShape& span : spans) {
      span.rows = std::vector<int64_t>{0, 1, 1, 2, 5, 6, 17, 64, 97, 130}[pick(0, 9)];
      span.first_position = pick(0, 900);
      span.near_mass = pick(0, 1) == 1;
      span.block_mass = pick(0, 1) == 1;
      span.seed = static_cast<uint32_t>(pick(0, 1 << 20));
      span.near = random_cuts(std::max<int64_t>(0, span.first_position - pick(0, 700)),
                              span.first_position + span.rows);
      span.far = random_cuts(0, pick(0, span.first_position));
      span.blocks = random_cuts(0, pick(0, 700));
      std::shuffle(span.blocks.begin(), span.blocks.end(), random);
      if (pick(0, 3) == 0) std::shuffle(span.near.begin(), span.near.end(), random);
    }
    SCOPED_TRACE("round " + std::to_string(round));
    ExpectSame(shape, spans);
  }
}

TEST_P(AttentionContract, KeysOfRecordsAndRotatedKeysAreToldApart) {
  for (const bool rotated_behind : {false, true}) {
    for (const bool far_rotated : {false, true}) {
      ExpectSame({.q_heads = 4,
                  .kv_heads = 2,
                  .head_dim = 16,
                  .window = 60,
                  .rotated_behind = rotated_behind,
                  .far_rotated = far_rotated},
                 {{.rows = 9,
                   .first_position = 200,
                   .near = CutsOf(130, 209, 40),
                   .far = CutsOf(0, 60, 30),
                   .blocks = CutsOf(60, 130, 35)}});
    }
  }
}

TEST_P(AttentionContract, BiasActsOnBlocksAlone) {
  for (const int64_t rows : {1, 130}) {
    for (const float bias : {-40.0f, -1.0f, 2.5f, 40.0f}) {
      ExpectSame({.q_heads = 4, .kv_heads = 2, .head_dim = 32, .window = 90, .block_bias = bias},
                 {{.rows = rows,
                   .first_position = 700,
                   .near = CutsOf(600, 700 + rows, 64),
                   .far = CutsOf(0, 40, 40),
                   .blocks = CutsOf(100, 500, 64),
                   .near_mass = true,
                   .block_mass = true}});
    }
  }
}

TEST_P(AttentionContract, NearKeysWithAnEndlessWindowArePlainCausalAttention) {
  const AttentionShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 16, .window = kNoWindow};
  const SpanShape span{.rows = 150, .near = {{0, 150}}, .near_mass = true};
  ExpectSame(shape, {span});
  // Told apart from a window that just covers everything by nothing.
  AttentionShape covering = shape;
  covering.window = 150;
  const SpanResult endless = Run(shape, span), covered = Run(covering, span);
  EXPECT_EQ(endless.out, covered.out);
  EXPECT_EQ(endless.near_mass, covered.near_mass);
}

TEST_P(AttentionContract, DecodeOverManyKeysIsSplitAndMerged) {
  for (const int64_t rows : {1, 3}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      ExpectSame({.q_heads = 6, .kv_heads = 2, .head_dim = 32, .window = 2200, .dtype = dtype},
                 {{.rows = rows,
                   .first_position = 5000,
                   .near = CutsOf(2700, 5000 + rows, 128),
                   .far = CutsOf(0, 256, 128),
                   .blocks = CutsOf(256, 2048, 128),
                   .near_mass = true,
                   .block_mass = true}});
    }
  }
}

TEST_P(AttentionContract, CuttingTheSameKeysDifferentlyAgreesToRounding) {
  AttentionShape shape{
      .q_heads = 4, .kv_heads = 2, .head_dim = 64, .window = 400, .page_tokens = 600};
  SpanShape span{.rows = 33,
                 .first_position = 700,
                 .near = {{200, 533}},
                 .far = {{0, 350}},
                 .blocks = {{300, 200}},
                 .near_mass = true};
  const SpanResult whole = Run(shape, span);
  for (const int64_t step : {1, 7, 64, 100}) {
    shape.page_tokens = step + 4;
    span.near = CutsOf(200, 733, step);
    span.far = CutsOf(0, 350, step);
    span.blocks = CutsOf(300, 500, step);
    const SpanResult cut = Run(shape, span);
    ExpectClose(cut.out, whole.out, kOutBound);
    ExpectClose(cut.near_mass, whole.near_mass, kMassBound);
  }
}

TEST_P(AttentionContract, OrderOfBlocksDoesNotMatter) {
  const AttentionShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 32, .window = 100};
  SpanShape span{
      .rows = 20, .first_position = 900, .near = {{800, 120}}, .blocks = CutsOf(0, 640, 64)};
  const SpanResult ascending = Run(shape, span);
  std::reverse(span.blocks.begin(), span.blocks.end());
  ExpectClose(Run(shape, span).out, ascending.out, kOutBound);
}

TEST_P(AttentionContract, BlocksThatAreNotThereAreLeftOut) {
  const AttentionShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 8, .window = 50};
  SpanShape span{.rows = 3,
                 .first_position = 300,
                 .near = CutsOf(250, 303, 64),
                 .blocks = {{0, 64}, {64, 0}, {128, 64}},
                 .block_mass = true};
  const SpanResult with = Run(shape, span);
  EXPECT_EQ(with.block_mass[1], 0.0f);
  span.blocks = {{0, 64}, {128, 64}};
  EXPECT_EQ(Run(shape, span).out, with.out);
}

// ---- Mass ----

TEST_P(AttentionContract, MassOfAHeadSumsToItsQueries) {
  const int64_t rows = 70, heads = 3;
  const SpanResult got = Run({.q_heads = heads, .kv_heads = 1, .head_dim = 24, .window = 300},
                             {.rows = rows,
                              .first_position = 500,
                              .near = CutsOf(150, 570, 128),
                              .blocks = CutsOf(0, 260, 64),
                              .near_mass = true,
                              .block_mass = true});
  const auto sum = [](const std::vector<float>& mass) {
    return std::accumulate(mass.begin(), mass.end(), 0.0);
  };
  EXPECT_NEAR(sum(got.near_mass) + sum(got.block_mass), rows * heads, 1e-3);
}

TEST_P(AttentionContract, NearMassIsAddedAndBlockMassWritten) {
  AttentionProblem problem(*backend_, {.q_heads = 2, .kv_heads = 1, .head_dim = 8, .window = 40},
                           {{.rows = 9,
                             .first_position = 50,
                             .near = CutsOf(0, 59, 20),
                             .blocks = {{0, 15}},
                             .near_mass = true,
                             .block_mass = true}});
  ASSERT_OK(problem.Run());
  const SpanResult once = problem.result();
  ASSERT_OK(problem.Run());
  const SpanResult twice = problem.result();
  for (size_t i = 0; i < once.near_mass.size(); ++i) {
    EXPECT_NEAR(twice.near_mass[i], 2 * once.near_mass[i], 1e-5);
  }
  EXPECT_EQ(twice.block_mass, once.block_mass);
}

TEST_P(AttentionContract, MassesSumToOneWhateverIsRounded) {
  for (const int64_t rows : {1, 2, 40}) {
    const AttentionShape shape{.q_heads = 4,
                               .kv_heads = 2,
                               .head_dim = 64,
                               .window = 1000,
                               .dtype = DType::kBF16,
                               .logit_scale = 6,
                               .round_queries = false};
    const SpanResult got = Run(shape, {.rows = rows,
                                       .first_position = 400,
                                       .near = CutsOf(0, 400 + rows, 100),
                                       .blocks = CutsOf(2000, 2300, 100),
                                       .near_mass = true,
                                       .block_mass = true});
    double sum = 0;
    for (const float mass : got.near_mass) sum += mass;
    for (const float mass : got.block_mass) sum += mass;
    const double whole = static_cast<double>(rows * shape.q_heads);
    EXPECT_NEAR(sum, whole, 1e-5 * whole);
  }
}

TEST_P(AttentionContract, OnlyPagesThatAskGetMass) {
  const AttentionShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 8, .window = 100};
  const SpanShape span{
      .rows = 4, .first_position = 96, .near = CutsOf(0, 100, 50), .near_mass = true};
  AttentionProblem expected(*reference_, shape, {span}), problem(*backend_, shape, {span});
  ASSERT_OK(expected.Run());
  problem.LeaveOut(0, 0);
  ASSERT_OK(problem.Run());
  ExpectClose(problem.result().out, expected.result().out, kOutBound);
  const std::vector<float> want = expected.result().near_mass, got = problem.result().near_mass;
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_NEAR(got[i], i % 100 < 50 ? 0.0f : want[i], 1e-5) << i;
  }
}

// ---- Edges ----

TEST_P(AttentionContract, HugeLogitsDoNotOverflow) {
  // Logits of about 1e5: the softmax is all but one-hot.
  for (const int64_t rows : {1, 40}) {
    const AttentionShape shape{
        .q_heads = 2, .kv_heads = 1, .head_dim = 16, .window = 200, .logit_scale = 1e5f};
    const SpanShape span{.rows = rows,
                         .first_position = 300,
                         .near = CutsOf(100, 300 + rows, 64),
                         .far = {{0, 100}},
                         .near_mass = true};
    AttentionProblem actual(*backend_, shape, {span}), expected(*reference_, shape, {span});
    ASSERT_OK(actual.Run());
    ASSERT_OK(expected.Run());
    ExpectClose(actual.result().out, expected.result().out, 1e-3);
  }
}

TEST_P(AttentionContract, RowsThatSeeNothingAreZeroAndDrawNoMass) {
  // Rows at 10..29 see the near keys at 20..39; no far key is out of the window yet.
  const AttentionShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 8, .window = 64};
  const SpanShape span{
      .rows = 20, .first_position = 10, .near = {{20, 20}}, .far = {{0, 5}}, .near_mass = true};
  ExpectSame(shape, {span});
  const SpanResult got = Run(shape, span);
  for (size_t i = 0; i < 10 * 2 * 8; ++i) EXPECT_EQ(got.out[i], 0.0f);
  EXPECT_THAT(Run(shape, {.rows = 20, .first_position = 10}).out, Each(0.0f));
}

TEST_P(AttentionContract, NothingToDoIsValid) {
  const AttentionShape shape{.q_heads = 1, .kv_heads = 1};
  AttentionProblem none(*backend_, shape, {});
  EXPECT_OK(none.Run());
  EXPECT_THAT(Run(shape, {.rows = 0, .near = {{0, 4}}, .near_mass = true}).near_mass, Each(0.0f));
}

TEST_P(AttentionContract, PositionsBeyondThirtyTwoBits) {
  const int64_t far_out = int64_t{5} << 32;
  ExpectSame({.q_heads = 1, .kv_heads = 1, .head_dim = 8, .window = far_out - 10},
             {{.rows = 7,
               .first_position = far_out,
               .near = {{0, 30}, {far_out - 50, 57}},
               .far = {{0, 30}},
               .near_mass = true}});
}

}  // namespace
}  // namespace infllm::kernels
