#include "memstore/block_index.h"

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "kernels/core/thread_pool.h"
#include "tests/memstore/scoring_oracle.h"
#include "tests/memstore/test_blocks.h"
#include "tests/support/status_matchers.h"

namespace infllm::memstore {
namespace {

using ::infllm::testing::IsOk;
using ::infllm::testing::StatusIs;
using kernels::DType;
using kernels::RepresentativeKind;
using kernels::Scoring;
using ::testing::HasSubstr;

// Whole numbers of up to ten bits, so that bf16 rounds most of them and scores are still exact.
// Bounds are in order.
std::vector<float> WideRepresentatives(uint64_t seed, int64_t count, const Geometry& geometry) {
  const size_t floats = geometry.representative_floats();
  std::vector<float> values(count * floats);
  for (float& value : values) {
    value = static_cast<float>(static_cast<int64_t>(SplitMix(seed) % 1999) - 999);
  }
  if (geometry.representative == RepresentativeKind::kBounds) {
    for (int64_t block = 0; block < count; ++block) {
      OrderBounds(std::span(values).subspan(block * floats, floats));
    }
  }
  return values;
}

std::vector<int64_t> Indices(const std::vector<ScoredBlock>& blocks) {
  std::vector<int64_t> indices;
  for (const ScoredBlock& block : blocks) indices.push_back(block.index);
  return indices;
}

class BlockIndexTest
    : public ::testing::TestWithParam<std::tuple<const char*, DType, RepresentativeKind>> {
 protected:
  Geometry Shape(int32_t q_heads, int32_t kv_heads, int32_t head_dim) const {
    Geometry shape = kGeometry;
    shape.q_heads = q_heads;
    shape.kv_heads = kv_heads;
    shape.head_dim = head_dim;
    shape.dtype = std::get<1>(GetParam());
    shape.representative = std::get<2>(GetParam());
    return shape;
  }
  std::unique_ptr<BlockIndex> NewIndex(const Geometry& shape) {
    return NewBlockIndex(*backend_, shape, allocated_);
  }

  kernels::ThreadPool pool_{2};
  std::unique_ptr<kernels::Backend> backend_ = std::string_view(std::get<0>(GetParam())) == "cpu"
                                                   ? kernels::NewCpuBackend(pool_)
                                                   : kernels::NewReferenceBackend();
  std::atomic<int64_t> allocated_ = 0;
};
std::string ParamName(const ::testing::TestParamInfo<BlockIndexTest::ParamType>& info) {
  constexpr const char* kKinds[] = {"mean_key", "bounds"};
  const auto [backend, dtype, kind] = info.param;
  return std::string(backend) + "_" + std::string(kernels::Name(dtype)) + "_" +
         kKinds[static_cast<int>(kind)];
}
INSTANTIATE_TEST_SUITE_P(All, BlockIndexTest,
                         ::testing::Combine(::testing::Values("reference", "cpu"),
                                            ::testing::Values(DType::kF32, DType::kBF16),
                                            ::testing::Values(RepresentativeKind::kMeanKey,
                                                              RepresentativeKind::kBounds)),
                         ParamName);

TEST_P(BlockIndexTest, TopKIsThatOfTheBruteForce) {
  for (const Geometry& shape :
       {Shape(1, 1, 8), Shape(4, 2, 24), Shape(8, 8, 64), Shape(3, 1, 128), Shape(6, 2, 20)}) {
    const auto index = NewIndex(shape);
    std::vector<float> all;
    int64_t size = 0;
    for (const int64_t count : {1, 7, 8, 1, 30, 200}) {
      const std::vector<float> added = WideRepresentatives(size, count, shape);
      ASSERT_OK(index->Add(added));
      all.insert(all.end(), added.begin(), added.end());
      size += count;
      ASSERT_EQ(index->size(), size);
      const std::vector<float> query = Query(size, shape);
      const std::vector<double> expected = OracleScores(all, query, shape, Scoring::kMean);
      for (const int64_t k : {int64_t{0}, int64_t{1}, int64_t{5}, size, size + 1}) {
        ASSERT_OK_AND_ASSIGN(const auto best, index->TopK(query, k, Scoring::kMean));
        const std::vector<int64_t> order = OracleTopK(expected, k);
        ASSERT_EQ(best.size(), order.size());
        for (size_t i = 0; i < order.size(); ++i) {
          ASSERT_EQ(best[i].index, order[i]) << "rank " << i << " of " << size;
          ASSERT_EQ(best[i].score, static_cast<float>(expected[order[i]]));
        }
      }
    }
  }
}

TEST_P(BlockIndexTest, HeadVoteRanksByTheSumOfSoftmaxes) {
  const Geometry shape = Shape(6, 3, 16);
  const auto index = NewIndex(shape);
  const std::vector<float> all = WideRepresentatives(0, 50, shape);
  ASSERT_OK(index->Add(all));
  std::vector<float> query = Query(3, shape);
  for (float& value : query) value /= 2048;  // logits of a few units
  const std::vector<double> expected = OracleScores(all, query, shape, Scoring::kHeadVote);
  ASSERT_OK_AND_ASSIGN(const auto best, index->TopK(query, 10, Scoring::kHeadVote));
  std::vector<double> sorted = expected;
  std::sort(sorted.rbegin(), sorted.rend());
  ASSERT_EQ(best.size(), 10u);
  for (size_t i = 0; i < best.size(); ++i) {
    EXPECT_NEAR(best[i].score, sorted[i], 1e-5);
    EXPECT_NEAR(expected[best[i].index], sorted[i], 1e-5);
  }
}

TEST_P(BlockIndexTest, EqualScoresGoToTheSmallerIndex) {
  const Geometry shape = Shape(2, 2, 8);
  const auto index = NewIndex(shape);
  for (int i = 0; i < 20; ++i) {
    ASSERT_OK(index->Add(std::vector<float>(shape.representative_floats(), i % 3 == 1 ? 2 : 1)));
  }
  ASSERT_OK_AND_ASSIGN(const auto best,
                       index->TopK(std::vector<float>(shape.query_floats(), 1), 4, Scoring::kMean));
  EXPECT_EQ(Indices(best), (std::vector<int64_t>{1, 4, 7, 10}));
}

TEST_P(BlockIndexTest, ForksShareThePastAndGrowApart) {
  const Geometry shape = Shape(4, 2, 8);
  auto root = NewIndex(shape);
  const auto blocks = [&](int64_t first, int64_t count, int64_t flavour) {
    return Representatives(0, first, count, flavour, shape);
  };
  ASSERT_OK(root->Add(blocks(0, 21, 0)));
  const int64_t before = allocated_;
  auto fork = root->Fork();
  auto second = fork->Fork();
  EXPECT_EQ(allocated_, before) << "a fork copies nothing";
  ASSERT_OK(root->Add(blocks(21, 5, 1)));
  ASSERT_OK(fork->Add(blocks(21, 40, 2)));
  ASSERT_OK(second->Add(blocks(21, 1, 3)));
  ASSERT_OK(root->Add(blocks(26, 30, 1)));

  const auto expect = [&](BlockIndex& index, int64_t size, int64_t flavour) {
    ASSERT_EQ(index.size(), size);
    std::vector<float> all = blocks(0, 21, 0);
    const std::vector<float> own = blocks(21, size - 21, flavour);
    all.insert(all.end(), own.begin(), own.end());
    const size_t floats = shape.representative_floats();
    for (int64_t i = 0; i < size; ++i) {
      EXPECT_TRUE(index.Holds(i, std::span(all).subspan(i * floats, floats))) << i;
    }
    const std::vector<float> query = Query(5, shape);
    ASSERT_OK_AND_ASSIGN(const auto best, index.TopK(query, 9, Scoring::kMean));
    EXPECT_EQ(Indices(best), OracleTopK(OracleScores(all, query, shape, Scoring::kMean), 9));
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

TEST_P(BlockIndexTest, HoldsComparesAsKept) {
  const Geometry shape = Shape(2, 1, 4);
  const auto index = NewIndex(shape);
  const size_t floats = shape.representative_floats();
  // To nearest even: 1 + 2^-8 lies half way to 1 + 2^-7, 1 + 3 * 2^-8 half way to 1 + 2^-6.
  std::vector<float> first(floats, 1.00390625f), last(floats, 1.01171875f);
  ASSERT_OK(index->Add(std::vector<float>(9 * floats, 7.0f)));  // more than a chunk
  ASSERT_OK(index->Add(first));
  ASSERT_OK(index->Add(last));
  EXPECT_TRUE(index->Holds(9, first));
  EXPECT_TRUE(index->Holds(10, last));
  const bool rounds = shape.dtype == DType::kBF16;
  EXPECT_EQ(index->Holds(9, std::vector<float>(floats, 1.0f)), rounds);
  EXPECT_EQ(index->Holds(10, std::vector<float>(floats, 1.015625f)), rounds);
  EXPECT_FALSE(index->Holds(9, std::vector<float>(floats, 1.0078125f)));
  EXPECT_FALSE(index->Holds(9, last));
  last.back() = -last.back();
  EXPECT_FALSE(index->Holds(10, last)) << "to the last value";
  EXPECT_FALSE(index->Holds(9, std::span(first).first(floats - 1))) << "of another shape";
}

TEST_P(BlockIndexTest, MemoryIsThatOfTheDtype) {
  const Geometry shape = Shape(4, 2, 8);
  const auto index = NewIndex(shape);
  EXPECT_EQ(index->size_bytes(), 0u);
  ASSERT_OK(index->Add(Representatives(0, 0, 64, 0, shape)));
  const size_t bytes = 64 * shape.representative_floats() * kernels::SizeOf(shape.dtype);
  EXPECT_EQ(index->size_bytes(), bytes);
  EXPECT_EQ(static_cast<size_t>(allocated_), bytes) << "a first chunk holds what it was made for";
}

TEST_P(BlockIndexTest, RepresentativesLargerThanAChunkAreKept) {
  const Geometry shape = Shape(1024, 1024, 2048);  // 8 or 16 MiB as fp32
  const auto index = NewIndex(shape);
  std::vector<float> one(shape.representative_floats(), 1.0f);
  ASSERT_OK(index->Add(one));
  EXPECT_EQ(static_cast<size_t>(allocated_), std::max<size_t>(index->size_bytes(), 4 << 20));
  one.back() = 2;
  ASSERT_OK(index->Add(one));
  EXPECT_TRUE(index->Holds(1, one));
  EXPECT_FALSE(index->Holds(0, one));
}

TEST_P(BlockIndexTest, WrongSizesAreRefused) {
  const Geometry shape = Shape(2, 2, 8);
  const auto index = NewIndex(shape);
  EXPECT_THAT(index->Add(std::vector<float>(shape.representative_floats() + 1)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("slots * heads")));
  EXPECT_THAT(index->TopK(std::vector<float>(15), 1, Scoring::kMean),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("15")));
}

}  // namespace
}  // namespace infllm::memstore
