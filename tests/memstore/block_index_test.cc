#include "memstore/block_index.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include "kernels/core/thread_pool.h"
#include "tests/memstore/test_blocks.h"
#include "tests/support/status_matchers.h"

namespace infllm::memstore {
namespace {

using ::infllm::testing::IsOk;
using ::infllm::testing::StatusIs;
using kernels::Scoring;

Geometry Shape(int32_t q_heads, int32_t head_dim) {
  Geometry shape = kGeometry;
  shape.q_heads = q_heads;
  shape.head_dim = head_dim;
  return shape;
}

// The definitions of kernels/backend.h, in double.
std::vector<double> Scores(const std::vector<float>& representatives,
                           const std::vector<float>& query, const Geometry& shape,
                           Scoring scoring) {
  const size_t heads = shape.q_heads, dim = shape.head_dim;
  const size_t blocks = representatives.size() / (heads * dim);
  std::vector<double> scores(blocks, 0.0);
  for (size_t h = 0; h < heads; ++h) {
    std::vector<double> logits(blocks, 0.0);
    for (size_t b = 0; b < blocks; ++b) {
      for (size_t d = 0; d < dim; ++d) {
        logits[b] += double{query[h * dim + d]} * representatives[(b * heads + h) * dim + d];
      }
    }
    if (scoring == Scoring::kHeadVote) {
      double sum = 0;
      const double scale = 1 / std::sqrt(static_cast<double>(dim));
      const double most = *std::max_element(logits.begin(), logits.end());
      for (double& logit : logits) sum += logit = std::exp(scale * (logit - most));
      for (double& logit : logits) logit /= sum;
    }
    for (size_t b = 0; b < blocks; ++b) scores[b] += logits[b];
  }
  return scores;
}

class BlockIndexTest : public ::testing::TestWithParam<const char*> {
 protected:
  kernels::ThreadPool pool_{2};
  std::unique_ptr<kernels::Backend> backend_ = std::string_view(GetParam()) == "cpu"
                                                   ? kernels::NewCpuBackend(pool_)
                                                   : kernels::NewReferenceBackend();
  std::atomic<int64_t> allocated_ = 0;
};
INSTANTIATE_TEST_SUITE_P(Backends, BlockIndexTest, ::testing::Values("reference", "cpu"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(BlockIndexTest, TopKIsThatOfTheBruteForce) {
  for (const Geometry& shape : {Shape(1, 8), Shape(4, 24), Shape(8, 64), Shape(3, 128)}) {
    const auto index = NewBlockIndex(*backend_, shape.q_heads, shape.head_dim, allocated_);
    std::vector<float> all;
    int64_t size = 0;
    for (const int64_t count : {1, 7, 8, 1, 30, 200}) {
      const std::vector<float> added = Representatives(1, size, count, 0, shape);
      ASSERT_OK(index->Add(added));
      all.insert(all.end(), added.begin(), added.end());
      size += count;
      ASSERT_EQ(index->size(), size);
      const std::vector<float> query = Query(size, shape);
      const std::vector<double> expected = Scores(all, query, shape, Scoring::kMean);
      std::vector<int64_t> order(size);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(),
                       [&](int64_t a, int64_t b) { return expected[a] > expected[b]; });
      for (const int64_t k : {int64_t{0}, int64_t{1}, int64_t{5}, size, size + 1}) {
        ASSERT_OK_AND_ASSIGN(const auto best, index->TopK(query, k, Scoring::kMean));
        ASSERT_EQ(best.size(), static_cast<size_t>(std::min(k, size)));
        for (size_t i = 0; i < best.size(); ++i) {
          ASSERT_EQ(best[i].index, order[i]) << "rank " << i << " of " << size;
          ASSERT_EQ(best[i].score, static_cast<float>(expected[order[i]]));
        }
      }
    }
  }
}

TEST_P(BlockIndexTest, HeadVoteRanksByTheSumOfSoftmaxes) {
  const Geometry shape = Shape(4, 16);
  const auto index = NewBlockIndex(*backend_, shape.q_heads, shape.head_dim, allocated_);
  const std::vector<float> all = Representatives(0, 0, 50, 0, shape);
  ASSERT_OK(index->Add(all));
  const std::vector<float> query = Query(3, shape);
  std::vector<double> expected = Scores(all, query, shape, Scoring::kHeadVote);
  ASSERT_OK_AND_ASSIGN(const auto best, index->TopK(query, 10, Scoring::kHeadVote));
  std::vector<double> sorted = expected;
  std::sort(sorted.rbegin(), sorted.rend());
  for (size_t i = 0; i < best.size(); ++i) {
    EXPECT_NEAR(best[i].score, sorted[i], 1e-5);
    EXPECT_NEAR(expected[best[i].index], sorted[i], 1e-5);
  }
}

TEST_P(BlockIndexTest, EqualScoresGoToTheSmallerIndex) {
  const auto index = NewBlockIndex(*backend_, 2, 8, allocated_);
  for (int i = 0; i < 20; ++i) ASSERT_OK(index->Add(std::vector<float>(16, i % 3 == 1 ? 2 : 1)));
  ASSERT_OK_AND_ASSIGN(const auto best, index->TopK(std::vector<float>(16, 1), 4, Scoring::kMean));
  std::vector<int64_t> indices;
  for (const ScoredBlock& block : best) indices.push_back(block.index);
  EXPECT_EQ(indices, (std::vector<int64_t>{1, 4, 7, 10}));
}

TEST_P(BlockIndexTest, ForksShareThePastAndGrowApart) {
  const size_t width = kGeometry.representative_floats();
  auto root = NewBlockIndex(*backend_, kGeometry.q_heads, kGeometry.head_dim, allocated_);
  ASSERT_OK(root->Add(Representatives(0, 0, 21)));
  const int64_t before = allocated_;
  auto fork = root->Fork();
  auto second = fork->Fork();
  EXPECT_EQ(allocated_, before) << "a fork copies nothing";
  ASSERT_OK(root->Add(Representatives(0, 21, 5, /*flavour=*/1)));
  ASSERT_OK(fork->Add(Representatives(0, 21, 40, /*flavour=*/2)));
  ASSERT_OK(second->Add(Representatives(0, 21, 1, /*flavour=*/3)));
  ASSERT_OK(root->Add(Representatives(0, 26, 30, /*flavour=*/1)));
  EXPECT_EQ(root->size_bytes(), 56 * width * sizeof(float));

  const auto expect = [&](const BlockIndex& index, int64_t size, int64_t flavour) {
    ASSERT_EQ(index.size(), size);
    for (int64_t i = 0; i < size; ++i) {
      const auto stored = index.representative(i);
      EXPECT_EQ(std::vector<float>(stored.begin(), stored.end()),
                Representatives(0, i, 1, i < 21 ? 0 : flavour))
          << i;
    }
  };
  expect(*root, 56, 1);
  expect(*fork, 61, 2);
  root.reset();
  expect(*second, 22, 3);
  expect(*fork, 61, 2);
  fork.reset();
  second.reset();
  EXPECT_EQ(allocated_, 0);
}

TEST_P(BlockIndexTest, WrongSizesAreRefused) {
  const auto index = NewBlockIndex(*backend_, 2, 8, allocated_);
  EXPECT_THAT(index->Add(std::vector<float>(17)), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(index->TopK(std::vector<float>(15), 1, Scoring::kMean),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace infllm::memstore
