// Backend::Attention of every backend against numbers worked out by hand, and against the
// reference.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
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

  void Run(const AttentionProblem& problem) { ASSERT_OK(backend_->Attention(problem.args())); }
  void RunReference(const AttentionProblem& problem) {
    ASSERT_OK(reference_->Attention(problem.args()));
  }

  // Runs both on the same inputs and compares all that they write.
  void ExpectSame(const AttentionShape& shape, const std::vector<Cut>& near,
                  const std::vector<Cut>& far) {
    const AttentionProblem actual(*backend_, shape, near, far);
    const AttentionProblem expected(*reference_, shape, near, far);
    Run(actual);
    RunReference(expected);
    ExpectClose(actual.out(), expected.out(), kOutBound);
    ExpectClose(actual.near_mass(), expected.near_mass(), kMassBound);
    ExpectClose(actual.far_mass(), expected.far_mass(), kMassBound);
    ExpectClose(actual.far_segment_mass(), expected.far_segment_mass(), kMassBound);
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, AttentionContract, ::testing::ValuesIn(BackendsUnderTest()),
                         BackendName);

// ---- By hand ----

// One head of one dimension, scale 1. K and V of consecutive positions as given.
class HandMade {
 public:
  HandMade(Backend& backend, const std::vector<float>& k, const std::vector<float>& v)
      : tokens_(static_cast<int64_t>(k.size())),
        k_(backend, k),
        v_(backend, v),
        mass_(backend, std::vector<float>(k.size())) {}
  KvSegment segment(int64_t position) const {
    return {k_.data(), v_.data(), tokens_, position, tokens_, mass_.data(), tokens_};
  }
  std::vector<float> mass() const { return mass_.Get(); }

 private:
  int64_t tokens_;
  DeviceArray<float> k_, v_, mass_;
};

class AttentionByHand : public AttentionContract {
 protected:
  // Runs with these queries (one a row) and returns the output.
  std::vector<float> Attend(const std::vector<float>& q_near, const std::vector<float>& q_far,
                            AttentionArgs args) {
    const DeviceArray<float> near(*backend_, q_near), far(*backend_, q_far);
    const DeviceArray<float> out(*backend_, std::vector<float>(q_near.size(), -1.0f));
    args.q_near = near.data();
    args.q_far = far.data();
    args.out = out.data();
    args.tokens = static_cast<int64_t>(q_near.size());
    args.q_heads = args.kv_heads = args.head_dim = 1;
    EXPECT_OK(backend_->Attention(args));
    return out.Get();
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, AttentionByHand, ::testing::ValuesIn(BackendsUnderTest()),
                         BackendName);

TEST_P(AttentionByHand, ProbabilitiesAreExponentialsOverTheirSum) {
  // Logits 0 and ln 3: probabilities 1/4 and 3/4.
  const HandMade near(*backend_, {0, std::log(3.0f)}, {4, 8});
  const KvSegment segment = near.segment(0);
  AttentionArgs args;
  args.near = {&segment, 1};
  args.first_position = 1;
  args.window = 2;
  ExpectClose(Attend({1}, {}, args), {7}, kHandBound);
  ExpectClose(near.mass(), {0.25f, 0.75f}, kHandBound);
}

TEST_P(AttentionByHand, NearAndFarShareOneSoftmaxAndMeetTheirOwnQueries) {
  // At position 5 with window 2: near keys 4 and 5; the far keys at 0 and 3 are in, at 4 is out.
  // q_near = 0, so near logits are 0; q_far = 1: far logits ln 2, ln 4. Sum 1 + 1 + 2 + 4 = 8.
  const HandMade near(*backend_, {9, 9}, {8, 16});
  const HandMade sink(*backend_, {std::log(2.0f)}, {24});
  const HandMade far(*backend_, {std::log(4.0f), 50}, {40, 1000});
  const KvSegment near_segment = near.segment(4);
  const KvSegment far_segments[] = {sink.segment(0), far.segment(3)};
  const DeviceArray<float> far_mass(*backend_, {10, 20});
  AttentionArgs args;
  args.near = {&near_segment, 1};
  args.far = far_segments;
  args.far_segment_mass = far_mass.data();
  args.first_position = 5;
  args.window = 2;
  ExpectClose(Attend({0}, {1}, args), {1 + 2 + 6 + 20}, kHandBound);
  ExpectClose(near.mass(), {0.125f, 0.125f}, kHandBound);
  ExpectClose(sink.mass(), {0.25f}, kHandBound);
  ExpectClose(far.mass(), {0.5f, 0}, kHandBound);
  ExpectClose(far_mass.Get(), {10.25f, 20.5f}, kHandBound);
}

TEST_P(AttentionByHand, FarUnmaskedLetsEveryFarKeyIn) {
  // One near key, a far key within the window, and one in the future: a third each.
  const HandMade near(*backend_, {0}, {1});
  const HandMade within(*backend_, {0}, {4}), future(*backend_, {0}, {7});
  const KvSegment near_segment = near.segment(1);
  const KvSegment far_segments[] = {within.segment(1), future.segment(9)};
  AttentionArgs args;
  args.near = {&near_segment, 1};
  args.far = far_segments;
  args.first_position = 1;
  args.window = 100;
  args.far_unmasked = true;
  ExpectClose(Attend({1}, {1}, args), {4}, kHandBound);
}

TEST_P(AttentionByHand, AQueryNeitherSeesTheFutureNorBeyondTheWindow) {
  const HandMade near(*backend_, {0, 0, 0, 0}, {1, 3, 7, 100});
  const KvSegment segment = near.segment(0);
  AttentionArgs args;
  args.near = {&segment, 1};
  args.window = 2;
  ExpectClose(Attend({1, 1, 1}, {}, args), {1, 2, 5}, kHandBound);
  ExpectClose(near.mass(), {1.5f, 1, 0.5f, 0}, kHandBound);
}

TEST_P(AttentionByHand, ARowThatSeesNothingIsZero) {
  const HandMade near(*backend_, {1, 1}, {3, 5});
  const KvSegment segment = near.segment(7);
  AttentionArgs args;
  args.near = {&segment, 1};
  args.window = 2;
  EXPECT_THAT(Attend({1}, {}, args), Each(0.0f));
  EXPECT_THAT(near.mass(), Each(0.0f));
}

// ---- Against the reference ----

TEST_P(AttentionContract, EqualsTheReferenceForEveryHeadDimAndGrouping) {
  for (const int64_t head_dim : {1, 7, 8, 16, 24, 32, 40, 64, 80, 128, 256}) {
    for (const int64_t group : {1, 2, 4, 8}) {
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        SCOPED_TRACE("head_dim " + std::to_string(head_dim) + ", group " + std::to_string(group) +
                     ", " + std::string(Name(dtype)));
        ExpectSame({.tokens = 13,
                    .q_heads = 2 * group,
                    .kv_heads = 2,
                    .head_dim = head_dim,
                    .first_position = 190,
                    .window = 77,
                    .kv_dtype = dtype,
                    .near_mass = true,
                    .far_mass = true,
                    .far_segment_mass = true,
                    .seed = static_cast<uint32_t>(head_dim * 8 + group)},
                   CutsOf(100, 203, 31), CutsOf(0, 130, 64));
      }
    }
  }
}

TEST_P(AttentionContract, EqualsTheReferenceOnRandomShapes) {
  std::mt19937 random(20240607);
  const auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  for (int round = 0; round < 60; ++round) {
    AttentionShape shape;
    shape.tokens = std::vector<int64_t>{1, 1, 2, 5, 6, 17, 64, 97, 130}[pick(0, 8)];
    shape.kv_heads = pick(1, 3);
    shape.q_heads = shape.kv_heads * (int64_t{1} << pick(0, 3));
    shape.head_dim = std::vector<int64_t>{8, 8, 16, 24, 32, 64, 5}[pick(0, 6)];
    shape.first_position = pick(0, 900);
    shape.window = pick(1, 600);
    shape.kv_dtype = pick(0, 1) == 0 ? DType::kF32 : DType::kBF16;
    shape.far_unmasked = pick(0, 4) == 0;
    shape.near_mass = pick(0, 1) == 1;
    shape.far_mass = pick(0, 2) == 0;
    shape.far_segment_mass = pick(0, 1) == 1;
    shape.logit_scale = pick(0, 3) == 0 ? 8.0f : 1.0f;
    shape.seed = static_cast<uint32_t>(round);
    const auto random_cuts = [&](int64_t begin, int64_t end) {
      std::vector<Cut> cuts;
      while (begin < end) {
        const int64_t tokens = std::min(end - begin, pick(0, 3) == 0 ? pick(1, 3) : pick(1, 200));
        if (pick(0, 9) != 0) cuts.push_back({begin, tokens});
        begin += tokens;
      }
      return cuts;
    };
    std::vector<Cut> near = random_cuts(std::max<int64_t>(0, shape.first_position - pick(0, 700)),
                                        shape.first_position + shape.tokens);
    std::vector<Cut> far = random_cuts(0, pick(0, shape.first_position));
    std::shuffle(far.begin(), far.end(), random);
    if (pick(0, 3) == 0) std::shuffle(near.begin(), near.end(), random);
    SCOPED_TRACE("round " + std::to_string(round));
    ExpectSame(shape, near, far);
  }
}

TEST_P(AttentionContract, NearKeysWithAnEndlessWindowArePlainCausalAttention) {
  const AttentionShape shape{.tokens = 150,
                             .q_heads = 2,
                             .kv_heads = 1,
                             .head_dim = 16,
                             .window = kNoWindow,
                             .near_mass = true};
  ExpectSame(shape, {{0, 150}}, {});
  // Told apart from a window that just covers everything by nothing.
  AttentionShape covering = shape;
  covering.window = 150;
  const AttentionProblem endless(*backend_, shape, {{0, 150}}, {});
  const AttentionProblem covered(*backend_, covering, {{0, 150}}, {});
  Run(endless);
  Run(covered);
  EXPECT_EQ(endless.out(), covered.out());
  EXPECT_EQ(endless.near_mass(), covered.near_mass());
}

TEST_P(AttentionContract, DecodeOverManyKeysIsSplitAndMerged) {
  for (const int64_t tokens : {1, 3}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      ExpectSame({.tokens = tokens,
                  .q_heads = 6,
                  .kv_heads = 2,
                  .head_dim = 32,
                  .first_position = 5000,
                  .window = 2200,
                  .kv_dtype = dtype,
                  .near_mass = true,
                  .far_mass = true,
                  .far_segment_mass = true},
                 CutsOf(2700, 5000 + tokens, 500), CutsOf(0, 2048, 128));
    }
  }
}

TEST_P(AttentionContract, MassBeyondWhatIsKeptIsComputedAgain) {
  // Two query tiles of 50 rows (so that keys are not split), which keep 327 tiles of 128 keys.
  ExpectSame({.tokens = 49,
              .q_heads = 2,
              .kv_heads = 1,
              .head_dim = 8,
              .first_position = 44000,
              .window = 43000,
              .near_mass = true,
              .far_segment_mass = true},
             CutsOf(0, 44049, 3000), CutsOf(100, 1000, 90));
}

TEST_P(AttentionContract, MassOfManyQueryTilesIsAddedInGroups) {
  ExpectSame({.tokens = 200,
              .q_heads = 64,
              .kv_heads = 1,
              .head_dim = 8,
              .first_position = 400,
              .window = 450,
              .near_mass = true},
             CutsOf(0, 600, 300), {});
}

TEST_P(AttentionContract, CuttingTheSameKeysDifferentlyAgreesToRounding) {
  const AttentionShape shape{.tokens = 33,
                             .q_heads = 4,
                             .kv_heads = 2,
                             .head_dim = 64,
                             .first_position = 700,
                             .window = 400,
                             .near_mass = true,
                             .far_mass = true};
  const AttentionProblem whole(*backend_, shape, {{200, 533}}, {{0, 350}});
  Run(whole);
  for (const int64_t step : {1, 7, 64, 100}) {
    const AttentionProblem cut(*backend_, shape, CutsOf(200, 733, step), CutsOf(0, 350, step));
    Run(cut);
    ExpectClose(cut.out(), whole.out(), kOutBound);
    ExpectClose(cut.near_mass(), whole.near_mass(), kMassBound);
    ExpectClose(cut.far_mass(), whole.far_mass(), kMassBound);
  }
}

TEST_P(AttentionContract, OrderOfFarSegmentsDoesNotMatter) {
  const AttentionShape shape{.tokens = 20,
                             .q_heads = 2,
                             .kv_heads = 2,
                             .head_dim = 32,
                             .first_position = 900,
                             .window = 100};
  std::vector<Cut> far = CutsOf(0, 640, 64);
  const AttentionProblem ascending(*backend_, shape, {{800, 120}}, far);
  std::reverse(far.begin(), far.end());
  const AttentionProblem descending(*backend_, shape, {{800, 120}}, far);
  Run(ascending);
  Run(descending);
  ExpectClose(descending.out(), ascending.out(), kOutBound);
}

TEST_P(AttentionContract, ResultsDoNotDependOnThreadsOrMemory) {
  for (const int64_t tokens : {1, 40, 130}) {
    AttentionShape shape{.tokens = tokens,
                         .q_heads = 4,
                         .kv_heads = 2,
                         .head_dim = 32,
                         .first_position = 1500,
                         .window = 700,
                         .near_mass = true,
                         .far_mass = true,
                         .far_segment_mass = true};
    const std::vector<Cut> near = CutsOf(700, 1500 + tokens, 256), far = CutsOf(0, 800, 128);
    const AttentionProblem first(*backend_, shape, near, far);
    Run(first);
    for (const int threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      const AttentionProblem again(*backend_, shape, near, far);
      ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Backend> backend, GetParam().make(pool));
      ASSERT_OK(backend->Attention(again.args()));
      EXPECT_EQ(again.out(), first.out());
      EXPECT_EQ(again.near_mass(), first.near_mass());
      EXPECT_EQ(again.far_mass(), first.far_mass());
      EXPECT_EQ(again.far_segment_mass(), first.far_segment_mass());
    }
  }
}

TEST_P(AttentionContract, MassOfAHeadSumsToItsQueries) {
  const int64_t tokens = 70, heads = 3;
  const AttentionProblem problem(*backend_,
                                 {.tokens = tokens,
                                  .q_heads = heads,
                                  .kv_heads = 1,
                                  .head_dim = 24,
                                  .first_position = 500,
                                  .window = 300,
                                  .near_mass = true,
                                  .far_mass = true,
                                  .far_segment_mass = true},
                                 CutsOf(150, 570, 128), CutsOf(0, 260, 64));
  Run(problem);
  const std::vector<float> near = problem.near_mass(), far = problem.far_mass();
  for (int64_t h = 0; h < heads; ++h) {
    const auto sum = [&](const std::vector<float>& mass) {
      const auto keys = static_cast<int64_t>(mass.size()) / heads;
      return std::accumulate(mass.begin() + h * keys, mass.begin() + (h + 1) * keys, 0.0);
    };
    EXPECT_NEAR(sum(near) + sum(far), tokens, 1e-3);
  }
  const std::vector<float>& segments = problem.far_segment_mass();
  EXPECT_NEAR(std::accumulate(segments.begin(), segments.end(), 0.0),
              std::accumulate(far.begin(), far.end(), 0.0), 1e-3);
}

TEST_P(AttentionContract, MassIsAddedToWhatIsThere) {
  const AttentionShape shape{.tokens = 9,
                             .q_heads = 2,
                             .kv_heads = 1,
                             .head_dim = 8,
                             .first_position = 50,
                             .window = 40,
                             .near_mass = true,
                             .far_segment_mass = true};
  const AttentionProblem problem(*backend_, shape, CutsOf(0, 59, 20), {{0, 15}});
  Run(problem);
  const std::vector<float> once = problem.near_mass();
  const std::vector<float> segments_once = problem.far_segment_mass();
  Run(problem);
  const std::vector<float> twice = problem.near_mass();
  for (size_t i = 0; i < once.size(); ++i) EXPECT_NEAR(twice[i], 2 * once[i], 1e-5);
  EXPECT_NEAR(problem.far_segment_mass()[0], 2 * segments_once[0], 1e-5);
}

TEST_P(AttentionContract, OnlySegmentsThatAskGetMass) {
  const AttentionShape shape{.tokens = 4,
                             .q_heads = 2,
                             .kv_heads = 2,
                             .head_dim = 8,
                             .first_position = 96,
                             .window = 100,
                             .near_mass = true};
  const AttentionProblem expected(*reference_, shape, CutsOf(0, 100, 50), {});
  const AttentionProblem problem(*backend_, shape, CutsOf(0, 100, 50), {});
  RunReference(expected);
  AttentionArgs args = problem.args();
  std::vector<KvSegment> segments(args.near.begin(), args.near.end());
  segments[0].mass = nullptr;
  args.near = segments;
  ASSERT_OK(backend_->Attention(args));
  ExpectClose(problem.out(), expected.out(), kOutBound);
  const std::vector<float> want = expected.near_mass(), got = problem.near_mass();
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_NEAR(got[i], i % 100 < 50 ? 0.0f : want[i], 1e-5) << i;
  }
}

TEST_P(AttentionContract, HugeLogitsDoNotOverflow) {
  // Logits of about 1e5: the softmax is all but one-hot.
  for (const int64_t tokens : {1, 40}) {
    const AttentionShape shape{.tokens = tokens,
                               .q_heads = 2,
                               .kv_heads = 1,
                               .head_dim = 16,
                               .first_position = 300,
                               .window = 200,
                               .near_mass = true,
                               .logit_scale = 1e5f};
    const AttentionProblem actual(*backend_, shape, CutsOf(100, 300 + tokens, 64), {{0, 100}});
    const AttentionProblem expected(*reference_, shape, CutsOf(100, 300 + tokens, 64), {{0, 100}});
    Run(actual);
    RunReference(expected);
    ExpectClose(actual.out(), expected.out(), 1e-3);
  }
}

TEST_P(AttentionContract, RowsThatSeeNothingAreZeroAndDrawNoMass) {
  // Tokens at 10..29 see the near keys at 20..39; no far key is out of the window yet.
  const AttentionShape shape{.tokens = 20,
                             .q_heads = 2,
                             .kv_heads = 2,
                             .head_dim = 8,
                             .first_position = 10,
                             .window = 64,
                             .near_mass = true,
                             .far_mass = true,
                             .far_segment_mass = true};
  ExpectSame(shape, {{20, 20}}, {{0, 5}});
  const AttentionProblem problem(*backend_, shape, {{20, 20}}, {{0, 5}});
  Run(problem);
  for (size_t i = 0; i < 10 * 2 * 8; ++i) EXPECT_EQ(problem.out()[i], 0.0f);
  EXPECT_THAT(problem.far_mass(), Each(0.0f));

  const AttentionProblem none(*backend_, shape, {}, {});
  Run(none);
  EXPECT_THAT(none.out(), Each(0.0f));
}

TEST_P(AttentionContract, ZeroTokensAreDoneAtOnce) {
  const AttentionProblem problem(*backend_, {.tokens = 0, .near_mass = true}, {{0, 4}}, {});
  Run(problem);
  EXPECT_THAT(problem.near_mass(), Each(0.0f));
}

TEST_P(AttentionContract, PositionsBeyondThirtyTwoBits) {
  const int64_t far_out = int64_t{5} << 32;
  ExpectSame({.tokens = 7,
              .q_heads = 1,
              .kv_heads = 1,
              .head_dim = 8,
              .first_position = far_out,
              .window = far_out - 10,
              .near_mass = true,
              .far_segment_mass = true},
             {{0, 30}, {far_out - 50, 57}}, {{0, 30}});
}

}  // namespace
}  // namespace infllm::kernels
