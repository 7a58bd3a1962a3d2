// Far segments that one KV head attends alone (KvSegment::kv_head), on every backend. The oracle
// gives each KV head a call of its own, with a list of segments that names no heads.
#include <algorithm>
#include <cmath>
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
using ::testing::Each;

// As in the contract of segments that all heads attend.
constexpr double kOutBound = 2e-5;
constexpr double kMassBound = 5e-5;

void ExpectClose(const std::vector<float>& got, const std::vector<float>& want, double bound) {
  testing::ExpectNear(got, want, [&](size_t i) { return bound * (1 + std::abs(want[i])); });
}

// What one call of Attention writes.
struct Results {
  std::vector<float> out;               // [tokens, q_heads, head_dim]
  std::vector<float> near_mass;         // [q_heads, near keys]
  std::vector<float> far_mass;          // [q_heads, far keys]
  std::vector<float> far_segment_mass;  // [far segments]
};

class AttentionKvHeadContract : public testing::BackendTest {
 protected:
  void SetUp() override {
    BackendTest::SetUp();
    if (IsSkipped()) return;
    INFLLM_NEEDS_OP("Attention");
  }

  static Results Run(Backend& backend, const AttentionShape& shape, const std::vector<Cut>& near,
                     const std::vector<Cut>& far) {
    const AttentionProblem problem(backend, shape, near, far);
    EXPECT_OK(backend.Attention(problem.args()));
    return {problem.out(), problem.near_mass(), problem.far_mass(), problem.far_segment_mass()};
  }

  // The heads of KV head g, from a call of the reference where all heads attend what g does.
  Results Oracle(const AttentionShape& shape, const std::vector<Cut>& near,
                 const std::vector<Cut>& far) {
    int64_t near_keys = 0, far_keys = 0;
    for (const Cut& cut : near) near_keys += cut.tokens;
    for (const Cut& cut : far) far_keys += cut.tokens;
    const int64_t heads = shape.q_heads / shape.kv_heads, dim = shape.head_dim;
    Results all;
    all.out.resize(shape.tokens * shape.q_heads * dim);
    if (shape.near_mass) all.near_mass.resize(shape.q_heads * near_keys);
    if (shape.far_mass) all.far_mass.resize(shape.q_heads * far_keys);
    all.far_segment_mass.resize(far.size());
    for (int64_t g = 0; g < shape.kv_heads; ++g) {
      std::vector<Cut> own;
      for (const Cut& cut : far) {
        if (cut.kv_head < 0 || cut.kv_head == g) own.push_back({cut.position, cut.tokens});
      }
      AttentionShape with_mass = shape;  // the mass of a segment is that of its tokens
      with_mass.far_mass = true;
      const Results part = Run(*reference_, with_mass, near, own);
      const int64_t own_keys = static_cast<int64_t>(part.far_mass.size()) / shape.q_heads;
      for (int64_t h = g * heads; h < (g + 1) * heads; ++h) {
        for (int64_t t = 0; t < shape.tokens; ++t) {
          const int64_t row = (t * shape.q_heads + h) * dim;
          std::copy_n(part.out.begin() + row, dim, all.out.begin() + row);
        }
        if (shape.near_mass) {
          std::copy_n(part.near_mass.begin() + h * near_keys, near_keys,
                      all.near_mass.begin() + h * near_keys);
        }
        int64_t to = 0, from = 0;
        for (size_t s = 0; s < far.size(); ++s) {
          if (far[s].kv_head < 0 || far[s].kv_head == g) {
            const auto mass = part.far_mass.begin() + h * own_keys + from;
            from += far[s].tokens;
            if (shape.far_mass) {
              std::copy_n(mass, far[s].tokens, all.far_mass.begin() + h * far_keys + to);
            }
            all.far_segment_mass[s] += std::accumulate(mass, mass + far[s].tokens, 0.0f);
          }
          to += far[s].tokens;
        }
      }
    }
    if (!shape.far_segment_mass) all.far_segment_mass.assign(far.size(), 0.0f);
    return all;
  }

  void ExpectLikeTheOracle(const AttentionShape& shape, const std::vector<Cut>& near,
                           const std::vector<Cut>& far) {
    const Results got = Run(*backend_, shape, near, far), want = Oracle(shape, near, far);
    ExpectClose(got.out, want.out, kOutBound);
    ExpectClose(got.near_mass, want.near_mass, kMassBound);
    ExpectClose(got.far_mass, want.far_mass, kMassBound);
    ExpectClose(got.far_segment_mass, want.far_segment_mass, kMassBound);
  }

  // Each KV head has `blocks` blocks of `block_tokens` among those before `end`, some of them those
  // of other heads too; `shared` sinks first.
  static std::vector<Cut> Selected(int64_t kv_heads, int64_t blocks, int64_t block_tokens,
                                   int64_t end, int64_t shared, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<Cut> far;
    if (shared > 0) far.push_back({0, shared});
    for (int64_t b = 0; b < blocks; ++b) {
      for (int64_t g = 0; g < kv_heads; ++g) {
        const auto block = static_cast<int64_t>(random()) % (end / block_tokens);
        far.push_back({block * block_tokens, block_tokens, g});
      }
    }
    return far;
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, AttentionKvHeadContract,
                         ::testing::ValuesIn(BackendsUnderTest()), BackendName);

TEST_P(AttentionKvHeadContract, EachHeadReadsItsOwnBlocks) {
  for (const int64_t tokens : {1, 3, 50, 130}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      for (const int64_t group : {1, 3}) {
        SCOPED_TRACE(::testing::Message()
                     << tokens << " tokens, " << Name(dtype) << ", group " << group);
        ExpectLikeTheOracle({.tokens = tokens,
                             .q_heads = 4 * group,
                             .kv_heads = 4,
                             .head_dim = 24,
                             .first_position = 1000,
                             .window = 150,
                             .kv_dtype = dtype,
                             .near_mass = true,
                             .far_mass = true,
                             .far_segment_mass = true},
                            CutsOf(850, 1000 + tokens, 64),
                            Selected(4, 3, 32, 850, /*shared=*/16, /*seed=*/1));
      }
    }
  }
}

TEST_P(AttentionKvHeadContract, HeadsMayHaveAnyNumberOfSegments) {
  const AttentionShape shape{.tokens = 7,
                             .q_heads = 6,
                             .kv_heads = 3,
                             .head_dim = 16,
                             .first_position = 5000,
                             .window = 40,
                             .far_mass = true,
                             .far_segment_mass = true};
  // Head 1 has none, head 2 has many and so decides into how many units the work is split.
  std::vector<Cut> far = {{100, 60, 0}};
  for (const Cut& cut : CutsOf(0, 4000, 128)) far.push_back({cut.position, cut.tokens, 2});
  ExpectLikeTheOracle(shape, CutsOf(4960, 5007, 20), far);
  ExpectLikeTheOracle(shape, {}, far);
}

TEST_P(AttentionKvHeadContract, RandomShapesAreLikeTheOracle) {
  std::mt19937 random(20240608);
  const auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  for (int round = 0; round < 25; ++round) {
    AttentionShape shape;
    shape.tokens = std::vector<int64_t>{1, 1, 2, 17, 64, 97}[pick(0, 5)];
    shape.kv_heads = pick(1, 4);
    shape.q_heads = shape.kv_heads * pick(1, 5);
    shape.head_dim = std::vector<int64_t>{8, 16, 24, 5}[pick(0, 3)];
    shape.first_position = pick(300, 900);
    shape.window = pick(1, 400);
    shape.kv_dtype = pick(0, 1) == 0 ? DType::kF32 : DType::kBF16;
    shape.far_unmasked = pick(0, 4) == 0;
    shape.near_mass = pick(0, 1) == 1;
    shape.far_mass = pick(0, 1) == 1;
    shape.far_segment_mass = pick(0, 1) == 1;
    shape.seed = static_cast<uint32_t>(round);
    std::vector<Cut> far;
    for (int64_t at = 0; at < shape.first_position;) {
      const int64_t tokens = pick(1, 90);
      far.push_back({at, tokens, pick(-1, shape.kv_heads - 1)});
      at += tokens;
    }
    std::shuffle(far.begin(), far.end(), random);
    const int64_t begin = std::max<int64_t>(0, shape.first_position - pick(0, 300));
    SCOPED_TRACE("round " + std::to_string(round));
    ExpectLikeTheOracle(shape, CutsOf(begin, shape.first_position + shape.tokens, pick(1, 100)),
                        far);
  }
}

TEST_P(AttentionKvHeadContract, NamingTheOnlyHeadChangesNothing) {
  const AttentionShape shape{.tokens = 40,
                             .q_heads = 4,
                             .kv_heads = 1,
                             .head_dim = 32,
                             .first_position = 700,
                             .window = 100,
                             .near_mass = true,
                             .far_mass = true,
                             .far_segment_mass = true};
  std::vector<Cut> far = CutsOf(0, 500, 64);
  const Results all = Run(*backend_, shape, CutsOf(600, 740, 64), far);
  for (Cut& cut : far) cut.kv_head = 0;
  const Results named = Run(*backend_, shape, CutsOf(600, 740, 64), far);
  EXPECT_EQ(named.out, all.out);
  EXPECT_EQ(named.near_mass, all.near_mass);
  EXPECT_EQ(named.far_mass, all.far_mass);
  EXPECT_EQ(named.far_segment_mass, all.far_segment_mass);
}

TEST_P(AttentionKvHeadContract, HeadsThatSeeNothingAreZero) {
  const AttentionShape shape{.tokens = 2,
                             .q_heads = 2,
                             .kv_heads = 2,
                             .head_dim = 8,
                             .first_position = 100,
                             .window = 10,
                             .far_mass = true};
  const Results got = Run(*backend_, shape, {}, {{0, 20, 1}});
  for (int64_t t = 0; t < 2; ++t) {
    const auto head = got.out.begin() + t * 2 * 8;
    EXPECT_THAT(std::vector<float>(head, head + 8), Each(0.0f));
  }
  EXPECT_THAT(std::vector<float>(got.far_mass.begin(), got.far_mass.begin() + 20), Each(0.0f));
}

TEST_P(AttentionKvHeadContract, ResultsDoNotDependOnThreads) {
  for (const int64_t tokens : {1, 130}) {
    const AttentionShape shape{.tokens = tokens,
                               .q_heads = 8,
                               .kv_heads = 4,
                               .head_dim = 32,
                               .first_position = 3000,
                               .window = 200,
                               .near_mass = true,
                               .far_mass = true,
                               .far_segment_mass = true};
    const std::vector<Cut> near = CutsOf(2800, 3000 + tokens, 128);
    const std::vector<Cut> far = Selected(4, 9, 64, 2800, /*shared=*/32, /*seed=*/2);
    const Results first = Run(*backend_, shape, near, far);
    for (const int threads : {1, 2}) {
      ThreadPool pool(threads);
      ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Backend> backend, GetParam().make(pool));
      const Results again = Run(*backend, shape, near, far);
      EXPECT_EQ(again.out, first.out);
      EXPECT_EQ(again.near_mass, first.near_mass);
      EXPECT_EQ(again.far_mass, first.far_mass);
      EXPECT_EQ(again.far_segment_mass, first.far_segment_mass);
    }
  }
}

}  // namespace
}  // namespace infllm::kernels
