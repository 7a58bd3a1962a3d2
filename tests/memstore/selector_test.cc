#include "memstore/selector.h"

#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/thread_pool.h"
#include "memstore/block_index.h"
#include "tests/memstore/device_double.h"
#include "tests/memstore/scoring_oracle.h"
#include "tests/memstore/test_blocks.h"
#include "tests/support/status_matchers.h"

namespace infllm::memstore {
namespace {

using ::infllm::testing::IsOk;
using kernels::DType;
using kernels::RepresentativeKind;
using kernels::Scoring;

class SelectorTest
    : public ::testing::TestWithParam<std::tuple<const char*, DType, RepresentativeKind>> {
 protected:
  std::unique_ptr<kernels::Backend> NewBackend() {
    const std::string_view name = std::get<0>(GetParam());
    if (name == "cpu") return kernels::NewCpuBackend(pool_);
    if (name == "device") return std::make_unique<DeviceDouble>();
    return kernels::NewReferenceBackend();
  }
  Geometry Shape(int32_t q_heads, int32_t kv_heads, int32_t head_dim) const {
    Geometry shape = kGeometry;
    shape.q_heads = q_heads;
    shape.kv_heads = kv_heads;
    shape.head_dim = head_dim;
    shape.dtype = std::get<1>(GetParam());
    shape.representative = std::get<2>(GetParam());
    return shape;
  }
  std::shared_ptr<const IndexView> View(const Geometry& shape,
                                        const std::vector<float>& representatives) {
    BlockIndex index(*backend_, kernels::Backend::kMainStream, shape, allocated_);
    EXPECT_OK(index.Add(representatives));
    return std::make_shared<const IndexView>(index.View());
  }
  std::vector<RankedBlock> RankOne(const RankQuery& query, Scoring scoring = Scoring::kMean) {
    auto ranked = selector_.Rank(scoring, {&query, 1});
    EXPECT_OK(ranked);
    return ranked.ok() ? std::move((*ranked)[0]) : std::vector<RankedBlock>();
  }

  kernels::ThreadPool pool_{2};
  const std::unique_ptr<kernels::Backend> backend_ = NewBackend();
  std::atomic<int64_t> allocated_ = 0;
  Selector selector_{*backend_};
};
std::string ParamName(const ::testing::TestParamInfo<SelectorTest::ParamType>& info) {
  const auto [backend, dtype, kind] = info.param;
  return absl::StrCat(backend, dtype == DType::kF32 ? "_f32_" : "_bf16_",
                      kind == RepresentativeKind::kBounds ? "bounds" : "mean_key");
}
INSTANTIATE_TEST_SUITE_P(All, SelectorTest,
                         ::testing::Combine(::testing::Values("reference", "cpu", "device"),
                                            ::testing::Values(DType::kF32, DType::kBF16),
                                            ::testing::Values(RepresentativeKind::kMeanKey,
                                                              RepresentativeKind::kBounds)),
                         ParamName);

std::vector<int64_t> Indices(const std::vector<RankedBlock>& blocks) {
  std::vector<int64_t> indices;
  for (const RankedBlock& block : blocks) indices.push_back(block.index);
  return indices;
}

TEST_P(SelectorTest, RanksAsTheBruteForce) {
  for (const Geometry& shape :
       {Shape(1, 1, 8), Shape(4, 2, 24), Shape(8, 8, 64), Shape(3, 1, 128), Shape(6, 2, 20)}) {
    for (const int64_t size : {1, 8, 17, 300}) {
      const std::vector<float> all = WideRepresentatives(7, size, shape);
      const auto view = View(shape, all);
      const std::vector<float> query = Query(size, shape);
      const auto scores = OracleScores(all, query, shape, Scoring::kMean);
      for (const int64_t k : {int64_t{0}, int64_t{1}, int64_t{5}, size, size + 1}) {
        const auto best = RankOne({.query = query, .geometry = &shape, .view = view, .k = k});
        ASSERT_EQ(Indices(best), OracleTopK(scores, k)) << k << " of " << size;
        for (const RankedBlock& block : best) {
          ASSERT_EQ(block.score, static_cast<float>(scores[block.index]));
        }
      }
    }
  }
}

// Long enough for codes. What a view shows stays, whatever the index and its forks become.
TEST_P(SelectorTest, RanksLongContextsAsTheBruteForceWhileTheyGrowAndFork) {
  const Geometry shape = Shape(4, 2, 4);
  constexpr int64_t kBlocks = 14'000;
  const std::vector<float> all = WideRepresentatives(3, kBlocks, shape);
  const std::vector<float> other = WideRepresentatives(4, kBlocks, shape);
  const size_t floats = shape.representative_floats();
  const auto add = [&](BlockIndex& index, const std::vector<float>& from, int64_t blocks) {
    while (index.size() < blocks) {  // 1 to 700 at a time
      const int64_t first = index.size(), count = std::min(first % 700 + 1, blocks - first);
      ASSERT_OK(index.Add(std::span(from).subspan(first * floats, count * floats)));
    }
  };
  BlockIndex index(*backend_, kernels::Backend::kMainStream, shape, allocated_);
  add(index, all, 9'000);
  const auto early = std::make_shared<const IndexView>(index.View());
  BlockIndex fork = index.Fork(7'777);
  add(index, all, kBlocks);
  add(fork, other, kBlocks);
  std::vector<float> forked = all;
  std::copy(other.begin() + 7'777 * floats, other.end(), forked.begin() + 7'777 * floats);
  const auto whole = std::make_shared<const IndexView>(index.View());
  const auto of_fork = std::make_shared<const IndexView>(fork.View());

  std::vector<std::vector<float>> vectors;
  for (int64_t i = 0; i < 4; ++i) vectors.push_back(Query(i, shape));
  std::vector<RankQuery> queries;
  std::vector<std::vector<int64_t>> want;
  for (const std::vector<float>& query : vectors) {
    for (const auto& [view, values] : {std::pair{early, &all}, {whole, &all}, {of_fork, &forked}}) {
      queries.push_back({.query = query, .geometry = &shape, .view = view, .k = 48});
      const std::vector<float> seen(values->begin(), values->begin() + view->blocks * floats);
      want.push_back(OracleTopK(OracleScores(seen, query, shape, Scoring::kMean), 48));
    }
  }
  ASSERT_OK_AND_ASSIGN(const auto best, selector_.Rank(Scoring::kMean, queries));
  for (size_t i = 0; i < queries.size(); ++i) {
    EXPECT_EQ(Indices(best[i]), want[i]) << i;
    EXPECT_EQ(Indices(RankOne(queries[i])), want[i]) << i << ", alone";
  }
}

TEST_P(SelectorTest, HeadVoteRanksByTheSumOfSoftmaxes) {
  const Geometry shape = Shape(6, 3, 16);
  const std::vector<float> all = WideRepresentatives(0, 50, shape);
  std::vector<float> query = Query(3, shape);
  for (float& value : query) value /= 2048;  // logits of a few units
  const auto scores = OracleScores(all, query, shape, Scoring::kHeadVote);
  const auto best = RankOne({.query = query, .geometry = &shape, .view = View(shape, all), .k = 10},
                            Scoring::kHeadVote);
  ASSERT_EQ(best.size(), 10u);
  const std::vector<int64_t> expected = OracleTopK(scores, 10);
  double worst = 1e9;
  for (const int64_t index : expected) worst = std::min(worst, scores[index]);
  for (const RankedBlock& block : best) {
    EXPECT_NEAR(block.score, scores[block.index], 1e-5);
    EXPECT_GE(scores[block.index], worst - 1e-5);
  }
}

TEST_P(SelectorTest, EqualScoresGoToTheSmallerIndex) {
  const Geometry shape = Shape(2, 2, 8);
  std::vector<float> all;
  for (int i = 0; i < 20; ++i) {
    all.insert(all.end(), shape.representative_floats(), i % 3 == 1 ? 2.0f : 1.0f);
  }
  const std::vector<float> query(shape.query_floats(), 1);
  EXPECT_EQ(
      Indices(RankOne({.query = query, .geometry = &shape, .view = View(shape, all), .k = 4})),
      (std::vector<int64_t>{1, 4, 7, 10}));
}

// Shapes that alternate, views that are shared, or empty.
TEST_P(SelectorTest, AnAnswerDoesNotDependOnOtherQueries) {
  const Geometry shapes[] = {Shape(4, 2, 8), Shape(2, 1, 20)};
  std::vector<std::shared_ptr<const IndexView>> views[2];
  for (size_t s = 0; s < 2; ++s) {
    for (const int64_t size : {0, 100, 333}) {
      std::vector<float> all = WideRepresentatives(static_cast<uint64_t>(size), size, shapes[s]);
      for (float& value : all) value /= 7;
      views[s].push_back(View(shapes[s], all));
    }
  }
  std::vector<std::vector<float>> vectors;
  for (int64_t i = 0; i < 40; ++i) {
    vectors.push_back(Query(i, shapes[i % 2]));
    for (float& value : vectors.back()) value /= 13;
  }
  std::vector<RankQuery> queries;
  for (size_t i = 0; i < vectors.size(); ++i) {
    queries.push_back({.query = vectors[i],
                       .geometry = &shapes[i % 2],
                       .view = views[i % 2][i / 2 % 3],
                       .k = static_cast<int64_t>(i % 7)});
  }
  for (const Scoring scoring : {Scoring::kMean, Scoring::kHeadVote}) {
    ASSERT_OK_AND_ASSIGN(const auto together, selector_.Rank(scoring, queries));
    ASSERT_EQ(together.size(), queries.size());
    for (size_t i = 0; i < queries.size(); ++i) {
      const auto alone = RankOne(queries[i], scoring);
      ASSERT_EQ(Indices(together[i]), Indices(alone)) << i;
      for (size_t j = 0; j < alone.size(); ++j) {
        EXPECT_EQ(together[i][j].score, alone[j].score) << i;
      }
    }
  }
}

// What a step of many queries costs the device.
TEST(Selector, QueriesOfOneShapeAreOneCall) {
  DeviceDouble device;
  std::atomic<int64_t> allocated = 0;
  BlockIndex index(device, kernels::Backend::kMainStream, kGeometry, allocated);
  ASSERT_OK(index.Add(Representatives(0, 0, 50)));
  BlockIndex fork = index.Fork(index.size());
  ASSERT_OK(fork.Add(Representatives(0, 50, 9)));
  const auto view = std::make_shared<const IndexView>(index.View());
  const auto of_fork = std::make_shared<const IndexView>(fork.View());
  EXPECT_EQ(of_fork->chunks[0].data, view->chunks[0].data) << "scored in one pass";
  std::vector<std::vector<float>> vectors;
  for (int64_t i = 0; i < 32; ++i) vectors.push_back(Query(i));
  std::vector<RankQuery> queries;
  for (const std::vector<float>& vector : vectors) {
    queries.push_back({.query = vector,
                       .geometry = &kGeometry,
                       .view = queries.size() % 2 == 0 ? view : of_fork,
                       .k = 4});
  }
  Selector selector(device);
  for (int step = 0; step < 2; ++step) {
    const DeviceDouble::Calls before = device.calls();
    ASSERT_OK(selector.Rank(Scoring::kMean, queries));
    const DeviceDouble::Calls after = device.calls();
    EXPECT_EQ(after.select_blocks - before.select_blocks, 1);
    EXPECT_EQ(after.synchronize - before.synchronize, 1);
    EXPECT_EQ(after.allocate - before.allocate, step == 0 ? 1 : 0) << "memory is kept";
  }
}

TEST(Selector, QueriesWhoseScoresDoNotFitTogetherAreScoredInTurn) {
  kernels::ThreadPool pool(2);
  const auto backend = kernels::NewCpuBackend(pool);
  const Geometry shape = {.layers = 1,
                          .q_heads = 1,
                          .kv_heads = 1,
                          .head_dim = 1,
                          .block_tokens = 1,
                          .representative = RepresentativeKind::kMeanKey};
  std::atomic<int64_t> allocated = 0;
  BlockIndex index(*backend, kernels::Backend::kMainStream, shape, allocated);
  const std::vector<float> all = WideRepresentatives(1, 50'000, shape);
  ASSERT_OK(index.Add(all));
  const auto view = std::make_shared<const IndexView>(index.View());
  const std::vector<float> up = {1}, down = {-1};
  std::vector<RankQuery> queries;
  for (int i = 0; i < 400; ++i) {  // 20 million scores
    queries.push_back({.query = i % 2 == 0 ? up : down, .geometry = &shape, .view = view, .k = 3});
  }
  Selector selector(*backend);
  ASSERT_OK_AND_ASSIGN(const auto best, selector.Rank(Scoring::kMean, queries));
  ASSERT_EQ(best.size(), queries.size());
  const auto first = OracleTopK(OracleScores(all, up, shape, Scoring::kMean), 3);
  const auto second = OracleTopK(OracleScores(all, down, shape, Scoring::kMean), 3);
  for (size_t i = 0; i < best.size(); ++i) {
    EXPECT_EQ(Indices(best[i]), i % 2 == 0 ? first : second) << i;
  }
}

}  // namespace
}  // namespace infllm::memstore
