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
using ::infllm::testing::Refused;
using ::infllm::testing::RunOp;
using ::infllm::testing::SharedArray;
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

  int64_t query_size() const { return q_heads * head_dim; }
  int64_t block_size() const { return ShapeOf(kind, q_heads, kv_heads).rows() * head_dim; }
  int64_t blocks() const { return std::accumulate(chunks.begin(), chunks.end(), int64_t{0}); }
};
void PrintTo(const Problem& p, std::ostream* os) {
  *os << "kind " << static_cast<int>(p.kind) << ", " << Name(p.dtype) << ", " << p.q_heads << "/"
      << p.kv_heads << " heads of " << p.head_dim << ", "
      << (p.scoring == Scoring::kMean ? "mean" : "vote") << ", " << p.blocks() << " blocks";
}

// A query and the chunks that it meets: which one, and how many blocks of it.
struct Item {
  std::vector<float> query;
  std::vector<std::pair<size_t, int64_t>> chunks;
};

// Scores all items in one call, over chunks that lie in memory once.
std::vector<std::vector<float>> ScoreItems(Backend& backend, const Problem& problem,
                                           const std::vector<float>& blocks,
                                           const std::vector<Item>& items) {
  std::vector<std::unique_ptr<DeviceElements>> data;
  auto at = blocks.begin();
  for (const int64_t count : problem.chunks) {
    const std::vector<float> chunk(at, at + count * problem.block_size());
    at += count * problem.block_size();
    data.push_back(std::make_unique<DeviceElements>(backend, chunk, problem.dtype));
  }
  std::vector<std::unique_ptr<DeviceArray<float>>> queries, outs;
  std::vector<std::unique_ptr<SharedArray<RepresentativeChunk>>> lists;
  std::vector<ScoreItem> score_items;
  for (const Item& item : items) {
    std::vector<RepresentativeChunk> chunks;
    int64_t count = 0;
    for (const auto& [chunk, here] : item.chunks) {
      chunks.push_back({data[chunk]->data(), here});
      count += here;
    }
    queries.push_back(std::make_unique<DeviceArray<float>>(backend, item.query));
    outs.push_back(std::make_unique<DeviceArray<float>>(
        backend, std::vector<float>(static_cast<size_t>(count), -1.0f)));
    lists.push_back(std::make_unique<SharedArray<RepresentativeChunk>>(backend, chunks));
    score_items.push_back({queries.back()->data(), lists.back()->data(),
                           static_cast<int64_t>(chunks.size()), outs.back()->data()});
  }
  const SharedArray<ScoreItem> list(backend, score_items);
  ScoreBlocksArgs args;
  args.items = list.data();
  args.count = static_cast<int64_t>(items.size());
  args.kind = problem.kind;
  args.dtype = problem.dtype;
  args.q_heads = problem.q_heads;
  args.kv_heads = problem.kv_heads;
  args.head_dim = problem.head_dim;
  args.scale = problem.scale;
  args.scoring = problem.scoring;
  EXPECT_OK(RunOp(backend, [&](Stream stream) { return backend.ScoreBlocks(stream, args); }));
  std::vector<std::vector<float>> scores;
  for (const auto& out : outs) scores.push_back(out->Get());
  return scores;
}

// One query over all chunks.
Item All(const Problem& problem, const std::vector<float>& query) {
  Item item{query, {}};
  for (size_t c = 0; c < problem.chunks.size(); ++c) item.chunks.push_back({c, problem.chunks[c]});
  return item;
}
std::vector<float> Score(Backend& backend, const Problem& problem, const std::vector<float>& query,
                         const std::vector<float>& blocks) {
  return ScoreItems(backend, problem, blocks, {All(problem, query)})[0];
}

std::vector<float> RandomQuery(const Problem& problem, uint32_t seed = 4) {
  return RandomNormal(problem.query_size(), seed);
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
    const double bound = problem.scoring == Scoring::kMean
                             ? 1e-6 * std::sqrt(static_cast<double>(problem.query_size()))
                             : 1e-4;
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
  EXPECT_THAT(Score(*backend_, problem, {1, 2, 3, 4}, {1, 1, 1, 1, 0, 0, 0, -1, 10, 0, 1, 0}),
              ElementsAre(10, -4, 13));
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

// ---- Items of one call ----

// Contexts that share chunks, as exec blocks and forks do: whole, up to some block of the last one,
// with a tail of their own, a chunk twice, none at all; 1 to 13 queries per chunk.
std::vector<Item> SharingItems(const Problem& problem) {
  std::vector<Item> items;
  const auto add = [&](std::vector<std::pair<size_t, int64_t>> chunks) {
    items.push_back({RandomQuery(problem, static_cast<uint32_t>(10 + items.size())), chunks});
  };
  for (int i = 0; i < 5; ++i) add({{0, 700}, {1, 61}});
  add({{0, 700}, {1, 60}});
  add({{0, 700}, {1, 1}});
  add({{0, 700}, {1, 0}});
  add({{0, 3}});
  add({});
  add({{0, 700}, {2, 2}});
  add({{2, 2}});
  add({{1, 17}, {3, 1}, {1, 61}});
  for (int i = 0; i < 4; ++i) add({{0, 699}, {3, 1}});
  return items;
}

TEST_P(ScoreBlocksContract, ItemsScoreAsEachAlone) {
  for (const int64_t dim : {40, 64, 7}) {
    const Problem base{
        .q_heads = 6, .kv_heads = 2, .head_dim = dim, .scale = 0.1f, .chunks = {700, 61, 2, 1}};
    for (const Problem& problem : AllOf(base)) {
      SCOPED_TRACE(::testing::PrintToString(problem));
      const std::vector<float> blocks = RandomBlocks(problem);
      const std::vector<Item> items = SharingItems(problem);
      const auto together = ScoreItems(*backend_, problem, blocks, items);
      for (size_t i = 0; i < items.size(); ++i) {
        EXPECT_EQ(ScoreItems(*backend_, problem, blocks, {items[i]})[0], together[i]) << i;
      }
      ThreadPool pool(1);
      ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Backend> backend, GetParam().make(pool));
      EXPECT_EQ(ScoreItems(*backend, problem, blocks, items), together);
    }
  }
}

TEST_P(ScoreBlocksContract, SharedChunksScoreAsSeparateCopies) {
  const Problem base{
      .q_heads = 4, .kv_heads = 2, .head_dim = 32, .scale = 0.1f, .chunks = {300, 40}};
  for (const Problem& problem : AllOf(base)) {
    SCOPED_TRACE(::testing::PrintToString(problem));
    const std::vector<float> blocks = RandomBlocks(problem);
    Problem copies = problem;
    std::vector<float> copied = blocks;
    std::vector<Item> shared, separate;
    for (uint32_t i = 0; i < 9; ++i) {
      shared.push_back({RandomQuery(problem, i), {{0, 300}, {1, 40 - i}}});
      separate.push_back({shared.back().query, {{2 * i, 300}, {2 * i + 1, 40 - i}}});
      if (i == 0) continue;
      copied.insert(copied.end(), blocks.begin(), blocks.end());
      copies.chunks.insert(copies.chunks.end(), {300, 40});
    }
    EXPECT_EQ(ScoreItems(*backend_, problem, blocks, shared),
              ScoreItems(*backend_, copies, copied, separate));
  }
}

TEST_P(ScoreBlocksContract, NoBlocksNoScores) {
  for (Problem problem : AllOf({.q_heads = 2, .kv_heads = 2, .head_dim = 1})) {
    EXPECT_THAT(ScoreItems(*backend_, problem, {}, {}).size(), 0);
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

TEST_P(ScoreBlocksContract, BoundsScoreNoLessThanTheBestKey) {
  INFLLM_NEEDS_OP("Representatives");
  const int64_t tokens = 13, dim = 24, blocks = 9;
  const std::vector<float> query = RandomNormal(dim, 6);
  std::vector<float> best, bounds;
  for (int64_t b = 0; b < blocks; ++b) {
    const std::vector<float> record =
        RandomNormal(2 * tokens * dim, static_cast<uint32_t>(7 + b));  // K, then V
    const DeviceElements page(*backend_, record, DType::kF32);
    const DeviceArray<float> out(*backend_, std::vector<float>(2 * dim));
    const SharedArray<RepresentativeItem> items(
        *backend_, {{reinterpret_cast<const std::byte*>(page.data()), nullptr, out.data()}});
    RepresentativesArgs args;
    args.items = items.data();
    args.count = 1;
    args.q_heads = 1;
    args.page = {.kv_heads = 1, .head_dim = dim, .page_tokens = tokens};
    ASSERT_OK(
        RunOp(*backend_, [&](Stream stream) { return backend_->Representatives(stream, args); }));
    const std::vector<float> got = out.Get();
    bounds.insert(bounds.end(), got.begin(), got.end());
    double largest = -std::numeric_limits<double>::infinity();
    for (int64_t t = 0; t < tokens; ++t) {
      const auto key = record.begin() + t * dim;
      largest = std::max(largest, std::inner_product(query.begin(), query.end(), key, 0.0));
    }
    best.push_back(static_cast<float>(largest));
  }
  const Problem problem{.kind = Kind::kBounds, .head_dim = dim, .chunks = {blocks}};
  const std::vector<float> bound = Score(*backend_, problem, query, bounds);
  for (size_t b = 0; b < best.size(); ++b) EXPECT_GE(bound[b], best[b]) << b;
}

// ---- Refusals ----

TEST_P(ScoreBlocksContract, Refuses) {
  const auto run = [&](auto change) {
    ScoreBlocksArgs args;
    args.q_heads = args.kv_heads = args.head_dim = 2;
    change(args);
    return RunOp(*backend_, [&](Stream stream) { return backend_->ScoreBlocks(stream, args); });
  };
  const char* op = "ScoreBlocks";
  EXPECT_OK(run([](auto&) {}));
  EXPECT_THAT(run([](auto& a) { a.kind = static_cast<Kind>(3); }), Refused(op, "kind is 3"));
  EXPECT_THAT(run([](auto& a) { a.scoring = static_cast<Scoring>(3); }),
              Refused(op, "scoring is 3"));
  EXPECT_THAT(run([](auto& a) { a.dtype = DType::kF16; }), Refused(op, "dtype is f16"));
  EXPECT_THAT(run([](auto& a) { a.q_heads = 0; }), Refused(op, "q_heads is 0"));
  EXPECT_THAT(run([](auto& a) { a.kv_heads = 0; }), Refused(op, "kv_heads is 0"));
  EXPECT_THAT(run([](auto& a) { a.head_dim = 0; }), Refused(op, "head_dim is 0"));
  EXPECT_THAT(run([](auto& a) { a.q_heads = 3; }),
              Refused(op, "q_heads is 3, must be a multiple of kv_heads = 2"));
  EXPECT_THAT(run([](auto& a) { a.count = -1; }), Refused(op, "count is -1"));
  EXPECT_THAT(run([](auto& a) { a.count = 1; }), Refused(op, "items is null"));
  if (!backend_->host_accessible()) return;
  float numbers[16] = {};
  const auto with = [&](auto change) {
    RepresentativeChunk chunk{numbers, 1};
    ScoreItem item{numbers, &chunk, 1, numbers};
    change(item, chunk);
    return run([&](auto& a) { a.items = &item, a.count = 1; });
  };
  EXPECT_THAT(with([](auto& i, auto&) { i.chunk_count = -1; }), Refused(op, "chunk_count is -1"));
  EXPECT_THAT(with([](auto& i, auto&) { i.chunks = nullptr; }), Refused(op, "chunks is null"));
  EXPECT_THAT(with([](auto& i, auto&) { i.query = nullptr; }), Refused(op, "query is null"));
  EXPECT_THAT(with([](auto& i, auto&) { i.out = nullptr; }), Refused(op, "out is null"));
  EXPECT_THAT(with([](auto&, auto& c) { c.blocks = -1; }), Refused(op, "chunk.blocks is -1"));
  EXPECT_THAT(with([](auto&, auto& c) { c.data = nullptr; }), Refused(op, "chunk.data is null"));
}

}  // namespace
}  // namespace infllm::kernels
