// Backend::ScoreBlocks of every backend against numbers worked out by hand, against the reference,
// and against what its kinds promise.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
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
using ::infllm::testing::DeviceElements;
using ::infllm::testing::ExpectNear;
using ::infllm::testing::RandomNormal;
using ::testing::ElementsAre;
using Kind = RepresentativeKind;

// |got - want| <= bound (1 + |want|), for every element.
void ExpectClose(const std::vector<float>& got, const std::vector<float>& want, double bound) {
  ExpectNear(got, want, [&](size_t i) { return bound * (1 + std::abs(want[i])); });
}

struct Problem {
  Kind kind = Kind::kMeanKey;
  DType dtype = DType::kF32;
  int64_t q_heads = 1;
  int64_t kv_heads = 1;
  int64_t head_dim = 1;
  Scoring scoring = Scoring::kMean;
  float scale = 1;
  std::vector<int64_t> chunks;  // blocks of each

  RepresentativeShape shape() const { return ShapeOf(kind, q_heads, kv_heads); }
  int64_t block_size() const { return shape().rows() * head_dim; }
  int64_t blocks() const { return std::accumulate(chunks.begin(), chunks.end(), int64_t{0}); }
  // Terms that a score is the sum of.
  double terms() const { return static_cast<double>(q_heads * head_dim); }
};
void PrintTo(const Problem& p, std::ostream* os) {
  *os << "kind " << static_cast<int>(p.kind) << ", " << Name(p.dtype) << ", " << p.q_heads << "/"
      << p.kv_heads << " heads of " << p.head_dim << ", "
      << (p.scoring == Scoring::kMean ? "mean" : "vote") << ", " << p.blocks() << " blocks";
}

// `query` may be several.
std::vector<float> Score(Backend& backend, const Problem& problem, const std::vector<float>& query,
                         const std::vector<float>& blocks) {
  const DeviceArray<float> q(backend, query);
  std::vector<std::unique_ptr<DeviceElements>> data;
  std::vector<RepresentativeChunk> chunks;
  auto at = blocks.begin();
  for (const int64_t count : problem.chunks) {
    const std::vector<float> chunk(at, at + count * problem.block_size());
    at += count * problem.block_size();
    data.push_back(std::make_unique<DeviceElements>(backend, chunk, problem.dtype));
    chunks.push_back({data.back()->data(), count});
  }
  ScoreBlocksArgs args;
  args.query = q.data();
  args.chunks = chunks;
  args.kind = problem.kind;
  args.dtype = problem.dtype;
  args.q_heads = problem.q_heads;
  args.kv_heads = problem.kv_heads;
  args.head_dim = problem.head_dim;
  args.queries = static_cast<int64_t>(query.size()) / (problem.q_heads * problem.head_dim);
  args.scale = problem.scale;
  args.scoring = problem.scoring;
  const DeviceArray<float> out(
      backend, std::vector<float>(static_cast<size_t>(args.queries * problem.blocks()), -1.0f));
  args.out = out.data();
  EXPECT_OK(backend.ScoreBlocks(args));
  return out.Get();
}

std::vector<float> RandomQuery(const Problem& problem) {
  return RandomNormal(problem.q_heads * problem.head_dim, 4);
}
std::vector<float> RandomBlocks(const Problem& problem) {
  std::vector<float> data = RandomNormal(problem.blocks() * problem.block_size(), 5);
  if (problem.kind == Kind::kBounds) {  // the least before the largest
    const int64_t slot = problem.block_size() / 2;
    for (int64_t i = 0; i < problem.blocks() * slot; ++i) {
      const int64_t low = i / slot * 2 * slot + i % slot;
      if (data[low] > data[low + slot]) std::swap(data[low], data[low + slot]);
    }
  }
  return data;
}

class ScoreBlocksContract : public testing::BackendTest {
 protected:
  void SetUp() override {
    BackendTest::SetUp();
    if (IsSkipped()) return;
    INFLLM_NEEDS_OP("ScoreBlocks");
  }

  void ExpectSame(const Problem& problem) {
    SCOPED_TRACE(::testing::PrintToString(problem));
    const std::vector<float> query = RandomQuery(problem), blocks = RandomBlocks(problem);
    // The bound of a sum of rounded products. An error of a logit is one of its exponential:
    // relative to the largest logit.
    const double bound =
        problem.scoring == Scoring::kMean ? 1e-6 * std::sqrt(problem.terms()) : 1e-4;
    ExpectClose(Score(*backend_, problem, query, blocks),
                Score(*reference_, problem, query, blocks), bound);
  }

  // Every kind, dtype and scoring of a problem with these heads.
  static std::vector<Problem> AllOf(const Problem& problem) {
    std::vector<Problem> all;
    for (const Kind kind : {Kind::kMeanKey, Kind::kBounds}) {
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        for (const Scoring scoring : {Scoring::kMean, Scoring::kHeadVote}) {
          all.push_back(problem);
          all.back().kind = kind;
          all.back().dtype = dtype;
          all.back().scoring = scoring;
        }
      }
    }
    return all;
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, ScoreBlocksContract, ::testing::ValuesIn(BackendsUnderTest()),
                         BackendName);

// ---- By hand ----

TEST_P(ScoreBlocksContract, MeanScoreIsOneDotProductOverAllHeads) {
  const Problem problem{.q_heads = 2, .kv_heads = 2, .head_dim = 2, .scale = 100, .chunks = {1, 2}};
  const std::vector<float> query = {1, 2, 3, 4};
  const std::vector<float> blocks = {1, 1, 1, 1, 0, 0, 0, -1, 10, 0, 1, 0};
  EXPECT_THAT(Score(*backend_, problem, query, blocks), ElementsAre(10, -4, 13));
}

TEST_P(ScoreBlocksContract, HeadVoteSumsTheSoftmaxOfEachHead) {
  // Head 0 has logits 0 and ln 3 (1/4, 3/4); head 1 has ln 4 and 0 (4/5, 1/5). Scale 1/2.
  const Problem problem{.q_heads = 2,
                        .kv_heads = 2,
                        .head_dim = 1,
                        .scoring = Scoring::kHeadVote,
                        .scale = 0.5f,
                        .chunks = {1, 1}};
  const std::vector<float> blocks = {0, std::log(4.0f), std::log(3.0f), 0};
  ExpectClose(Score(*backend_, problem, {2, 2}, blocks), {1.05f, 0.95f}, 1e-6);
}

TEST_P(ScoreBlocksContract, QueriesAtOnceScoreAsEachAlone) {
  for (const Problem& problem : AllOf({.q_heads = 6,
                                .kv_heads = 2,
                                .head_dim = 40,
                                .scale = 0.1f,
                                .chunks = {3, 700, 1, 2100}})) {
    SCOPED_TRACE(::testing::PrintToString(problem));
    const std::vector<float> blocks = RandomBlocks(problem);
    const int64_t size = problem.q_heads * problem.head_dim;
    const std::vector<float> queries = RandomNormal(3 * size, 6);
    std::vector<float> alone;
    for (auto at = queries.begin(); at != queries.end(); at += size) {
      const std::vector<float> scores = Score(*backend_, problem, {at, at + size}, blocks);
      alone.insert(alone.end(), scores.begin(), scores.end());
    }
    EXPECT_EQ(Score(*backend_, problem, queries, blocks), alone);
  }
}

TEST_P(ScoreBlocksContract, BoundsTakeTheBetterEndOfEachChannel) {
  // One KV head, two query heads. Block 0: channels [-1, 2] and [3, 5]; block 1: [0, 1] and [-4,
  // 0].
  const Problem problem{
      .kind = Kind::kBounds, .q_heads = 2, .kv_heads = 1, .head_dim = 2, .chunks = {1, 1}};
  EXPECT_THAT(Score(*backend_, problem, {10, 1, -1, -10}, {-1, 3, 2, 5, 0, -4, 1, 0}),
              ElementsAre((20 + 5) + (1 - 30), (10 + 0) + (0 + 40)));
}

// ---- Against the reference ----

TEST_P(ScoreBlocksContract, EveryKindEqualsTheReference) {
  const Problem problems[] = {
      {.q_heads = 1, .kv_heads = 1, .head_dim = 1, .chunks = {1}},
      {.q_heads = 8, .kv_heads = 4, .head_dim = 8, .scale = 0.35f, .chunks = {3, 0, 41}},
      {.q_heads = 3, .kv_heads = 3, .head_dim = 5, .scale = 0.5f, .chunks = {17, 16, 1}},
      {.q_heads = 20, .kv_heads = 5, .head_dim = 24, .scale = 0.2f, .chunks = {9, 33}},
      {.q_heads = 28, .kv_heads = 4, .head_dim = 16, .scale = 0.2f, .chunks = {19}},
      {.q_heads = 40, .kv_heads = 2, .head_dim = 17, .scale = 0.1f, .chunks = {5, 30}},
      {.q_heads = 32, .kv_heads = 8, .head_dim = 128, .scale = 0.088f, .chunks = {21, 7}},
      {.q_heads = 4, .kv_heads = 1, .head_dim = 256, .scale = 0.0625f, .chunks = {40}},
      {.q_heads = 2, .kv_heads = 2, .head_dim = 531, .scale = 0.04f, .chunks = {18}},
      {.q_heads = 8, .kv_heads = 2, .head_dim = 72, .scale = 0.1f, .chunks = {600, 3}},
  };
  for (const Problem& problem : problems) {
    for (const Problem& variant : AllOf(problem)) ExpectSame(variant);
  }
}

TEST_P(ScoreBlocksContract, ManyBlocksAndLargeLogitsEqualTheReference) {
  for (const Scoring scoring : {Scoring::kMean, Scoring::kHeadVote}) {
    ExpectSame({.q_heads = 8,
                .kv_heads = 8,
                .head_dim = 8,
                .scoring = scoring,
                .scale = 5,
                .chunks = {2000, 1000, 3}});
    ExpectSame({.q_heads = 17,  // logits of a hundred and more
                .kv_heads = 17,
                .head_dim = 3,
                .scoring = scoring,
                .scale = 40,
                .chunks = {4000}});
  }
}

TEST_P(ScoreBlocksContract, ScoresDoNotDependOnThreadsOrChunks) {
  const Problem base{.q_heads = 16, .kv_heads = 4, .head_dim = 8, .scale = 0.3f};
  for (Problem problem : AllOf(base)) {
    SCOPED_TRACE(::testing::PrintToString(problem));
    problem.chunks = {2000};
    const std::vector<float> query = RandomQuery(problem), blocks = RandomBlocks(problem);
    const std::vector<float> whole = Score(*backend_, problem, query, blocks);
    problem.chunks = {1, 999, 17, 983};
    EXPECT_EQ(Score(*backend_, problem, query, blocks), whole);
    for (const int threads : {1, 2, 4}) {
      ThreadPool pool(threads);
      ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Backend> backend, GetParam().make(pool));
      EXPECT_EQ(Score(*backend, problem, query, blocks), whole);
    }
  }
}

TEST_P(ScoreBlocksContract, NoBlocksNoScores) {
  for (Problem problem : AllOf({.q_heads = 2, .kv_heads = 2, .head_dim = 1})) {
    EXPECT_THAT(Score(*backend_, problem, {1, 2}, {}), ElementsAre());
    problem.chunks = {0, 0};
    EXPECT_THAT(Score(*backend_, problem, {1, 2}, {}), ElementsAre());
  }
}

// ---- What the kinds promise ----

TEST_P(ScoreBlocksContract, HeadVotesSumToTheHeads) {
  for (const Problem& problem :
       AllOf({.q_heads = 10, .kv_heads = 2, .head_dim = 16, .scale = 3, .chunks = {2500}})) {
    if (problem.scoring != Scoring::kHeadVote) continue;
    SCOPED_TRACE(::testing::PrintToString(problem));
    const std::vector<float> votes =
        Score(*backend_, problem, RandomQuery(problem), RandomBlocks(problem));
    EXPECT_NEAR(std::accumulate(votes.begin(), votes.end(), 0.0), 10.0, 1e-4);
  }
}

// The largest q . k over the tokens of a block is no more than its bounds score.
TEST_P(ScoreBlocksContract, BoundsScoreNoLessThanTheBestKey) {
  INFLLM_NEEDS_OP("Representatives");
  const int64_t tokens = 13, dim = 24, blocks = 9;
  const std::vector<float> query = RandomNormal(dim, 6);
  std::vector<float> best, bounds;
  for (int64_t b = 0; b < blocks; ++b) {
    const std::vector<float> k = RandomNormal(tokens * dim, static_cast<uint32_t>(7 + b));
    const DeviceArray<float> data(*backend_, k);
    const DeviceArray<float> out(*backend_, std::vector<float>(2 * dim));
    ASSERT_OK(backend_->Representatives({.kind = Kind::kBounds,
                                         .k = data.data(),
                                         .out = out.data(),
                                         .block_tokens = tokens,
                                         .q_heads = 1,
                                         .kv_heads = 1,
                                         .head_dim = dim}));
    const std::vector<float> got = out.Get();
    bounds.insert(bounds.end(), got.begin(), got.end());
    double largest = -std::numeric_limits<double>::infinity();
    for (int64_t t = 0; t < tokens; ++t) {
      largest = std::max(largest,
                         std::inner_product(query.begin(), query.end(), k.begin() + t * dim, 0.0));
    }
    best.push_back(static_cast<float>(largest));
  }
  const Problem of_bounds{.kind = Kind::kBounds, .head_dim = dim, .chunks = {blocks}};
  const std::vector<float> bound = Score(*backend_, of_bounds, query, bounds);
  for (size_t b = 0; b < best.size(); ++b) EXPECT_GE(bound[b], best[b]) << b;
}

}  // namespace
}  // namespace infllm::kernels
