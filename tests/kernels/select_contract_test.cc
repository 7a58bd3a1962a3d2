// Block selection of every backend (Representatives, MeanQuery, ScoreBlocks, TopK) against numbers
// worked out by hand and against the reference.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
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

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// |got - want| <= bound (1 + |want|), for every element.
void ExpectClose(const std::vector<float>& got, const std::vector<float>& want, double bound) {
  ExpectNear(got, want, [&](size_t i) { return bound * (1 + std::abs(want[i])); });
}

class SelectContract : public testing::BackendTest {};
INSTANTIATE_TEST_SUITE_P(Backends, SelectContract, ::testing::ValuesIn(BackendsUnderTest()),
                         BackendName);

// ---- Representatives ----

TEST_P(SelectContract, RepresentativesAreMeansOfTheHeaviestKeys) {
  INFLLM_NEEDS_OP("Representatives");
  // One KV head with keys (t, 10 t), two query heads. Head 0: tokens 1 and 3. Head 1: a tie of
  // tokens 0, 2 and 3 for the second place behind token 1, which the earliest wins.
  const DeviceArray<float> k(*backend_, {0, 0, 1, 10, 2, 20, 3, 30});
  const DeviceArray<float> mass(*backend_, {0.1f, 5, 0.2f, 4, -1, 7, 9, 7, 7, -1});
  const DeviceArray<float> out(*backend_, std::vector<float>(4));
  RepresentativeArgs args;
  args.k = k.data();
  args.mass = mass.data();
  args.out = out.data();
  args.head_stride = 8;
  args.mass_stride = 5;
  args.block_tokens = 4;
  args.q_heads = 2;
  args.kv_heads = 1;
  args.head_dim = 2;
  args.top = 2;
  ASSERT_OK(backend_->Representatives(args));
  EXPECT_THAT(out.Get(), ElementsAre(2, 20, 0.5f, 5));
}

TEST_P(SelectContract, RepresentativesEqualTheReference) {
  INFLLM_NEEDS_OP("Representatives");
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t dim : {1, 7, 8, 24, 64, 128, 136}) {
      for (const int64_t top : {1, 4, 37}) {
        const int64_t tokens = 37, q_heads = 6, kv_heads = 2, stride = (tokens + 2) * dim;
        std::vector<float> keys = RandomNormal(kv_heads * stride, 1);
        std::vector<uint16_t> bits(keys.size());
        for (size_t i = 0; i < keys.size(); ++i) bits[i] = BF16(keys[i]).bits;
        std::vector<float> masses = RandomNormal(q_heads * (tokens + 3), 2);
        for (float& mass : masses) mass = std::round(mass * 4);  // many ties
        const auto run = [&](Backend& backend) {
          const DeviceArray<float> k(backend, keys), mass(backend, masses);
          const DeviceArray<uint16_t> k_bits(backend, bits);
          const DeviceArray<float> out(backend, std::vector<float>(q_heads * dim));
          RepresentativeArgs args;
          args.k = dtype == DType::kF32 ? static_cast<const void*>(k.data()) : k_bits.data();
          args.mass = mass.data();
          args.out = out.data();
          args.kv_dtype = dtype;
          args.head_stride = stride;
          args.mass_stride = tokens + 3;
          args.block_tokens = tokens;
          args.q_heads = q_heads;
          args.kv_heads = kv_heads;
          args.head_dim = dim;
          args.top = top;
          EXPECT_OK(backend.Representatives(args));
          return out.Get();
        };
        ExpectClose(run(*backend_), run(*reference_), 1e-6);
      }
    }
  }
}

// ---- MeanQuery ----

TEST_P(SelectContract, MeanQueryIsTheMeanOverTokens) {
  INFLLM_NEEDS_OP("MeanQuery");
  const DeviceArray<float> q(*backend_, {1, 2, 3, 4, 5, 7, 8, 9});
  const DeviceArray<float> out(*backend_, std::vector<float>(4));
  MeanQueryArgs args;
  args.q = q.data();
  args.out = out.data();
  args.tokens = args.q_heads = args.head_dim = 2;
  ASSERT_OK(backend_->MeanQuery(args));
  EXPECT_THAT(out.Get(), ElementsAre(3, 4.5f, 5.5f, 6.5f));
}

TEST_P(SelectContract, MeanQueryEqualsTheReference) {
  INFLLM_NEEDS_OP("MeanQuery");
  for (const int64_t tokens : {1, 2, 33, 512}) {
    for (const int64_t heads : {1, 5}) {
      for (const int64_t dim : {3, 8, 128, 200}) {
        const std::vector<float> values = RandomNormal(tokens * heads * dim, 3);
        const auto run = [&](Backend& backend) {
          const DeviceArray<float> q(backend, values);
          const DeviceArray<float> out(backend, std::vector<float>(heads * dim));
          EXPECT_OK(backend.MeanQuery({q.data(), out.data(), tokens, heads, dim}));
          return out.Get();
        };
        ExpectClose(run(*backend_), run(*reference_), 2e-6);
      }
    }
  }
}

// ---- ScoreBlocks ----

struct BlockProblem {
  int64_t q_heads = 1;
  int64_t head_dim = 1;
  std::vector<int64_t> chunks;  // blocks of each
  float scale = 1;
};

std::vector<float> Score(Backend& backend, const BlockProblem& problem, Scoring scoring,
                         const std::vector<float>& query, const std::vector<float>& blocks) {
  const int64_t width = problem.q_heads * problem.head_dim;
  const DeviceArray<float> q(backend, query);
  std::vector<std::unique_ptr<DeviceArray<float>>> data;
  std::vector<RepresentativeChunk> chunks;
  auto at = blocks.begin();
  for (const int64_t count : problem.chunks) {
    const std::vector<float> chunk(at, at + count * width);
    at += count * width;
    data.push_back(std::make_unique<DeviceArray<float>>(backend, chunk));
    chunks.push_back({data.back()->data(), count});
  }
  const auto total = std::accumulate(problem.chunks.begin(), problem.chunks.end(), int64_t{0});
  const DeviceArray<float> out(backend, std::vector<float>(static_cast<size_t>(total)));
  ScoreBlocksArgs args;
  args.query = q.data();
  args.chunks = chunks;
  args.out = out.data();
  args.q_heads = problem.q_heads;
  args.kv_heads = 1;
  args.head_dim = problem.head_dim;
  args.scale = problem.scale;
  args.scoring = scoring;
  EXPECT_OK(backend.ScoreBlocks(args));
  return out.Get();
}

TEST_P(SelectContract, MeanScoreIsOneDotProductOverAllHeads) {
  INFLLM_NEEDS_OP("ScoreBlocks");
  const BlockProblem problem{.q_heads = 2, .head_dim = 2, .chunks = {1, 2}, .scale = 100};
  EXPECT_THAT(Score(*backend_, problem, Scoring::kMean, {1, 2, 3, 4},
                    {1, 1, 1, 1, 0, 0, 0, -1, 10, 0, 1, 0}),
              ElementsAre(10, -4, 13));
}

TEST_P(SelectContract, HeadVoteSumsTheSoftmaxOfEachHead) {
  INFLLM_NEEDS_OP("ScoreBlocks");
  // Head 0 has logits 0 and ln 3 (1/4, 3/4); head 1 has ln 4 and 0 (4/5, 1/5). Scale 1/2.
  const BlockProblem problem{.q_heads = 2, .head_dim = 1, .chunks = {1, 1}, .scale = 0.5f};
  ExpectClose(
      Score(*backend_, problem, Scoring::kHeadVote, {2, 2}, {0, std::log(4.0f), std::log(3.0f), 0}),
      {1.05f, 0.95f}, 1e-6);
}

TEST_P(SelectContract, ScoresEqualTheReference) {
  INFLLM_NEEDS_OP("ScoreBlocks");
  const BlockProblem problems[] = {
      {1, 1, {1}, 1},
      {8, 8, {3, 0, 40, 500}, 0.35f},
      {3, 5, {17, 16, 15, 1}, 0.5f},
      {20, 24, {9, 33}, 0.2f},
      {32, 128, {50, 7}, 0.088f},
      {4, 256, {100}, 1},
      {8, 8, {2000, 1000, 3}, 5},
      {17, 3, {4000}, 40},  // logits of a hundred and more
  };
  for (const BlockProblem& problem : problems) {
    const int64_t width = problem.q_heads * problem.head_dim;
    const auto total = std::accumulate(problem.chunks.begin(), problem.chunks.end(), int64_t{0});
    const std::vector<float> query = RandomNormal(width, 4);
    const std::vector<float> blocks = RandomNormal(total * width, 5);
    SCOPED_TRACE(total);
    // The bound of a sum of `width` rounded products.
    ExpectClose(Score(*backend_, problem, Scoring::kMean, query, blocks),
                Score(*reference_, problem, Scoring::kMean, query, blocks),
                1e-6 * std::sqrt(static_cast<double>(width)));
    // An error of a logit is one of its exponential: relative to the largest logit.
    ExpectClose(Score(*backend_, problem, Scoring::kHeadVote, query, blocks),
                Score(*reference_, problem, Scoring::kHeadVote, query, blocks), 1e-4);
  }
}

TEST_P(SelectContract, ScoresDoNotDependOnThreadsOrChunks) {
  INFLLM_NEEDS_OP("ScoreBlocks");
  const std::vector<float> query = RandomNormal(16 * 8, 6);
  const std::vector<float> blocks = RandomNormal(3000 * 16 * 8, 7);
  for (const Scoring scoring : {Scoring::kMean, Scoring::kHeadVote}) {
    BlockProblem problem{16, 8, {3000}, 0.3f};
    const std::vector<float> whole = Score(*backend_, problem, scoring, query, blocks);
    problem.chunks = {1, 999, 17, 1983};
    EXPECT_EQ(Score(*backend_, problem, scoring, query, blocks), whole);
    for (const int threads : {1, 2, 4}) {
      ThreadPool pool(threads);
      ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Backend> backend, GetParam().make(pool));
      EXPECT_EQ(Score(*backend, problem, scoring, query, blocks), whole);
    }
  }
}

TEST_P(SelectContract, HeadVotesSumToTheHeads) {
  INFLLM_NEEDS_OP("ScoreBlocks");
  const BlockProblem problem{.q_heads = 5, .head_dim = 16, .chunks = {2500}, .scale = 3};
  const std::vector<float> votes = Score(*backend_, problem, Scoring::kHeadVote,
                                         RandomNormal(80, 8), RandomNormal(2500 * 80, 9));
  EXPECT_NEAR(std::accumulate(votes.begin(), votes.end(), 0.0), 5, 1e-4);
}

TEST_P(SelectContract, NoBlocksNoScores) {
  INFLLM_NEEDS_OP("ScoreBlocks");
  for (const Scoring scoring : {Scoring::kMean, Scoring::kHeadVote}) {
    EXPECT_THAT(Score(*backend_, {1, 2, {}, 1}, scoring, {1, 2}, {}), ElementsAre());
    EXPECT_THAT(Score(*backend_, {1, 2, {0, 0}, 1}, scoring, {1, 2}, {}), ElementsAre());
  }
}

// ---- TopK ----

std::vector<int64_t> Top(Backend& backend, const std::vector<float>& scores, int64_t k) {
  const auto n = static_cast<int64_t>(scores.size());
  const DeviceArray<float> data(backend, scores);
  std::vector<int64_t> best(static_cast<size_t>(std::min(n, k)));
  EXPECT_OK(backend.TopK(data.data(), n, k, best));
  return best;
}

TEST_P(SelectContract, TopKIsBestFirstWithTiesToTheSmallerIndex) {
  INFLLM_NEEDS_OP("TopK");
  EXPECT_THAT(Top(*backend_, {1, 3, 2, 3, -5, 3}, 4), ElementsAre(1, 3, 5, 2));
  EXPECT_THAT(Top(*backend_, {7, 7, 7}, 2), ElementsAre(0, 1));
  EXPECT_THAT(Top(*backend_, {0.0f, -0.0f, 0.0f}, 3), ElementsAre(0, 1, 2));
}

TEST_P(SelectContract, TopKOfFewerThanKIsAllOfThem) {
  INFLLM_NEEDS_OP("TopK");
  EXPECT_THAT(Top(*backend_, {1, 2}, 5), ElementsAre(1, 0));
  EXPECT_THAT(Top(*backend_, {}, 5), ElementsAre());
  EXPECT_THAT(Top(*backend_, {1, 2}, 0), ElementsAre());
}

TEST_P(SelectContract, TopKPutsNanBehindEverything) {
  INFLLM_NEEDS_OP("TopK");
  EXPECT_THAT(Top(*backend_, {kNan, -kInf, 1, kNan, kInf}, 5), ElementsAre(4, 2, 1, 0, 3));
  std::vector<float> scores(1000, kNan);
  scores[900] = -kInf;
  scores[950] = -7;
  EXPECT_THAT(Top(*backend_, scores, 3), ElementsAre(950, 900, 0));
}

TEST_P(SelectContract, TopKEqualsASort) {
  INFLLM_NEEDS_OP("TopK");
  std::mt19937 random(11);
  for (const int64_t n : {1, 15, 16, 17, 100, 1000, 20000}) {
    for (const int64_t k : {1, 2, 16, 96, 1000, 20000}) {
      std::vector<float> scores = RandomNormal(n, static_cast<uint32_t>(n + k));
      for (const int kind : {0, 1, 2, 3}) {
        if (kind == 1) std::sort(scores.begin(), scores.end());  // every score beats all before it
        if (kind == 2) std::reverse(scores.begin(), scores.end());
        if (kind == 3) {
          for (float& score : scores) score = static_cast<float>(random() % 5);
        }
        std::vector<int64_t> order(static_cast<size_t>(n));
        std::iota(order.begin(), order.end(), int64_t{0});
        std::stable_sort(order.begin(), order.end(),
                         [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
        order.resize(static_cast<size_t>(std::min(n, k)));
        ASSERT_EQ(Top(*backend_, scores, k), order) << n << " " << k << " " << kind;
      }
    }
  }
}

TEST_P(SelectContract, TopKOfMillions) {
  INFLLM_NEEDS_OP("TopK");
  std::vector<float> scores(3000000);
  std::minstd_rand random(12);
  for (float& score : scores) score = static_cast<float>(random() % 100000);
  EXPECT_EQ(Top(*backend_, scores, 96), Top(*reference_, scores, 96));
}

}  // namespace
}  // namespace infllm::kernels
