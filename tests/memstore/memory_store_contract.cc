#include "tests/memstore/memory_store_contract.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "memstore/limits.h"
#include "tests/support/status_matchers.h"

namespace infllm::memstore {

using ::infllm::testing::IsOk;
using ::infllm::testing::StatusIs;
using kernels::Scoring;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

ContextId MemoryStoreContract::NewContext(const Geometry& geometry) {
  ContextOptions options = Options();
  options.geometry = geometry;
  const ContextId id = NewContextId();
  EXPECT_OK(store_->Create(id, options));
  return id;
}

ContextId MemoryStoreContract::Forked(const ContextId& parent) {
  const ContextId child = NewContextId();
  EXPECT_OK(store_->Fork(parent, child));
  return child;
}

ContextId MemoryStoreContract::Filled(const Geometry& geometry,
                                      const std::vector<float>& representatives) {
  const ContextId id = NewContext(geometry);
  const auto blocks =
      static_cast<int64_t>(representatives.size() / geometry.representative_floats());
  EXPECT_OK(AppendAll(id, 0, 0, Payloads(0, 0, blocks, 0, geometry), geometry));
  EXPECT_OK(store_->Publish(id, 0, 0, representatives));
  return id;
}

absl::Status MemoryStoreContract::Append(ContextId id, int32_t layer, int64_t first, int64_t count,
                                         int64_t flavour) {
  return AppendAll(id, layer, first, Payloads(layer, first, count, flavour));
}

absl::Status MemoryStoreContract::AppendAll(ContextId id, int32_t layer, int64_t first,
                                            std::span<const std::byte> payloads,
                                            const Geometry& geometry) {
  return store_->Append(id, layer, first, Spans(payloads, geometry));
}

absl::Status MemoryStoreContract::Publish(ContextId id, int32_t layer, int64_t first, int64_t count,
                                          int64_t flavour) {
  return store_->Publish(id, layer, first, Representatives(layer, first, count, flavour));
}

absl::Status MemoryStoreContract::FetchAndCompare(ContextId id, int32_t layer,
                                                  const std::vector<int64_t>& blocks,
                                                  int64_t flavour) {
  INFLLM_ASSIGN_OR_RETURN(const auto handles, store_->Fetch(id, layer, blocks));
  if (handles.size() != blocks.size()) return absl::InternalError("another number of blocks");
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (Bytes(handles[i]) != Payloads(layer, blocks[i], 1, flavour)) {
      return absl::InternalError(absl::StrCat("other bytes for block ", blocks[i]));
    }
  }
  return absl::OkStatus();
}

StoreStats MemoryStoreContract::Stats() {
  const auto stats = store_->Stats();
  EXPECT_OK(stats);
  return stats.value_or(StoreStats{});
}

absl::StatusOr<std::vector<Selection>> MemoryStoreContract::SelectAll(
    int32_t layer, const std::vector<SelectQuery>& queries, Scoring scoring) {
  return store_->Select({.layer = layer, .scoring = scoring, .queries = queries});
}

absl::StatusOr<Selection> MemoryStoreContract::Select(int32_t layer, const SelectQuery& query,
                                                      Scoring scoring) {
  INFLLM_ASSIGN_OR_RETURN(std::vector<Selection> all, SelectAll(layer, {query}, scoring));
  if (all.size() != 1) return absl::InternalError("another number of selections");
  if (!all[0].status.ok()) {
    EXPECT_THAT(all[0].blocks, IsEmpty());
    return all[0].status;
  }
  return std::move(all[0]);
}

void ExpectEqual(const Selection& actual, const Selection& expected) {
  EXPECT_EQ(actual.status, expected.status);
  ASSERT_EQ(Indices(actual), Indices(expected));
  for (size_t i = 0; i < actual.blocks.size(); ++i) {
    const SelectedBlock& block = actual.blocks[i];
    EXPECT_EQ(std::memcmp(&block.score, &expected.blocks[i].score, sizeof(float)), 0)
        << block.score << " and " << expected.blocks[i].score << " of block " << block.index;
    EXPECT_EQ(Bytes(block.block), Bytes(expected.blocks[i].block));
  }
}

std::vector<int64_t> Indices(const Selection& selection) {
  std::vector<int64_t> indices;
  for (const SelectedBlock& block : selection.blocks) indices.push_back(block.index);
  return indices;
}

// The k best of blocks [0, count), ascending: the mean scoring of kernels/ops/select.h.
std::vector<int64_t> BruteForce(int64_t layer, int64_t count, const std::vector<float>& query,
                                int64_t k, int64_t flavour) {
  std::vector<double> scores;
  for (int64_t block = 0; block < count; ++block) {
    const std::vector<float> r = Representatives(layer, block, 1, flavour);
    scores.push_back(std::inner_product(r.begin(), r.end(), query.begin(), 0.0));
  }
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
  order.resize(std::min(k, count));
  std::sort(order.begin(), order.end());
  return order;
}

namespace {

// ---- Every method

TEST_P(MemoryStoreContract, AnUnknownContextIsNotFound) {
  const ContextId dropped = NewContext();
  ASSERT_OK(store_->Drop(dropped));
  for (const ContextId& id : {ContextId{}, ContextId{.lo = 12345}, dropped}) {
    const auto not_found = StatusIs(absl::StatusCode::kNotFound, HasSubstr("does not exist"));
    EXPECT_THAT(Append(id, 0, 0, 1), not_found);
    EXPECT_THAT(Publish(id, 0, 0, 1), not_found);
    EXPECT_THAT(Select(0, {.context = id, .query = Query(1), .k = 1}), not_found);
    EXPECT_THAT(store_->Fetch(id, 0, {}), not_found);
    EXPECT_THAT(store_->Describe(id), not_found);
    EXPECT_THAT(store_->Fork(id, NewContextId()), not_found);
    EXPECT_THAT(store_->Drop(id), not_found);
  }
}

TEST_P(MemoryStoreContract, ALayerThatIsNotThereIsOutOfRange) {
  const ContextId id = NewContext();
  for (const int32_t layer : {-1, kGeometry.layers, std::numeric_limits<int32_t>::max(),
                              std::numeric_limits<int32_t>::min()}) {
    const auto out_of_range = StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("layer"));
    EXPECT_THAT(AppendAll(id, layer, 0, Payloads(0, 0)), out_of_range);
    EXPECT_THAT(store_->Publish(id, layer, 0, Representatives(0, 0)), out_of_range);
    EXPECT_THAT(Select(layer, {.context = id, .query = Query(1), .k = 1}), out_of_range);
    EXPECT_THAT(store_->Fetch(id, layer, {}), out_of_range);
  }
}

// ---- Append, Fetch

TEST_P(MemoryStoreContract, FetchGivesBackTheBytesInTheOrderAsked) {
  const ContextId id = NewContext();
  ASSERT_OK(Append(id, 0, 0, 5));
  ASSERT_OK(Append(id, 0, 5, 1));
  ASSERT_OK(Append(id, 1, 0, 2));
  EXPECT_OK(FetchAndCompare(id, 0, {5, 0, 3, 3, 1, 2, 4, 5}));
  EXPECT_OK(FetchAndCompare(id, 1, {1, 0}));
  EXPECT_OK(FetchAndCompare(id, 1, {}));
}

TEST_P(MemoryStoreContract, AppendCopiesTheBytes) {
  const ContextId id = NewContext();
  std::vector<std::byte> payload = Payloads(0, 0);
  ASSERT_OK(AppendAll(id, 0, 0, payload));
  std::fill(payload.begin(), payload.end(), std::byte{0});
  EXPECT_OK(FetchAndCompare(id, 0, {0}));
}

TEST_P(MemoryStoreContract, AppendTakesPayloadsWhereTheyLie) {
  const ContextId id = NewContext();
  const std::vector<std::byte> zero = Payloads(0, 0), one = Payloads(0, 1), two = Payloads(0, 2);
  const std::vector<std::span<const std::byte>> payloads = {zero, one, two};
  ASSERT_OK(store_->Append(id, 0, 0, payloads));
  EXPECT_OK(FetchAndCompare(id, 0, {0, 1, 2}));
}

TEST_P(MemoryStoreContract, BlocksThatAreNotStoredAreOutOfRange) {
  const ContextId id = NewContext();
  ASSERT_OK(Append(id, 0, 0, 3));
  for (const int64_t block : {int64_t{-1}, int64_t{3}, std::numeric_limits<int64_t>::max(),
                              std::numeric_limits<int64_t>::min()}) {
    EXPECT_THAT(store_->Fetch(id, 0, std::vector<int64_t>{0, block}),
                StatusIs(absl::StatusCode::kOutOfRange, HasSubstr(absl::StrCat(block))));
  }
}

TEST_P(MemoryStoreContract, AppendMustNotLeaveAGap) {
  const ContextId id = NewContext();
  EXPECT_THAT(Append(id, 0, 1, 1),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("gap")));
  ASSERT_OK(Append(id, 0, 0, 2));
  EXPECT_THAT(Append(id, 0, 3, 1),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("next block is 2")));
  EXPECT_THAT(Append(id, 1, 2, 1), StatusIs(absl::StatusCode::kFailedPrecondition))
      << "layers grow on their own";
  EXPECT_THAT(AppendAll(id, 0, -1, Payloads(0, 0)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("-1")));
}

TEST_P(MemoryStoreContract, AppendTakesWholePayloadsOnly) {
  const ContextId id = NewContext();
  std::vector<std::byte> payloads = Payloads(0, 0, 2);
  payloads.pop_back();
  EXPECT_THAT(AppendAll(id, 0, 0, payloads),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("payload 1 has 4095"), HasSubstr("4096"))));
  EXPECT_OK(store_->Append(id, 0, 0, {})) << "none is a whole number";
  EXPECT_EQ(Stats().blocks, 0);
}

TEST_P(MemoryStoreContract, AppendingAgainIsFineWithTheSameBytesOnly) {
  const ContextId id = NewContext();
  ASSERT_OK(Append(id, 0, 0, 4));
  EXPECT_OK(Append(id, 0, 0, 4));
  EXPECT_OK(Append(id, 0, 2, 4)) << "two again, two new";
  std::vector<std::byte> other = Payloads(0, 1);
  other.back() ^= std::byte{1};
  EXPECT_THAT(AppendAll(id, 0, 1, other),
              StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("block 1")));
  EXPECT_OK(FetchAndCompare(id, 0, {0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(Stats().blocks, 6);
}

// ---- Publish, Select

TEST_P(MemoryStoreContract, SelectFindsTheBestOfThePublishedBlocks) {
  const ContextId id = NewContext();
  ASSERT_OK(Append(id, 0, 0, 60));
  ASSERT_OK(Publish(id, 0, 0, 30));
  ASSERT_OK(Publish(id, 0, 30, 20));
  for (int64_t seed = 0; seed < 10; ++seed) {
    const std::vector<float> query = Query(seed);
    ASSERT_OK_AND_ASSIGN(const Selection selection,
                         Select(0, {.context = id, .query = query, .k = 7}));
    EXPECT_EQ(Indices(selection), BruteForce(0, 50, query, 7));
    for (const SelectedBlock& block : selection.blocks) {
      const std::vector<float> r = Representatives(0, block.index);
      EXPECT_EQ(block.score, std::inner_product(r.begin(), r.end(), query.begin(), 0.0f));
      EXPECT_EQ(Bytes(block.block), Payloads(0, block.index));
    }
  }
  EXPECT_EQ(Stats().selects, 10);
}

TEST_P(MemoryStoreContract, SelectScoresByHeadVoteToo) {
  const ContextId id = NewContext();
  ASSERT_OK(Append(id, 0, 0, 3));
  // Head 0 has one strong block; the sum over heads is won by another.
  std::vector<float> representatives(3 * 32, 0.0f);
  representatives[1 * 32] = 9;                                        // block 1, head 0
  for (int h = 1; h < 4; ++h) representatives[0 * 32 + h * 8] = 3.5;  // block 0, heads 1 to 3
  representatives[2 * 32 + 8] = 8;                                    // block 2, head 1
  ASSERT_OK(store_->Publish(id, 0, 0, representatives));
  std::vector<float> query(32, 0.0f);
  for (int h = 0; h < 4; ++h) query[h * 8] = 4;
  ASSERT_OK_AND_ASSIGN(const Selection mean, Select(0, {.context = id, .query = query, .k = 1}));
  EXPECT_THAT(Indices(mean), ElementsAre(0));
  ASSERT_OK_AND_ASSIGN(const Selection votes,
                       Select(0, {.context = id, .query = query, .k = 3}, Scoring::kHeadVote));
  ASSERT_EQ(votes.blocks.size(), 3u);
  float sum = 0;
  for (const SelectedBlock& block : votes.blocks) sum += block.score;
  EXPECT_NEAR(sum, 4, 1e-5) << "every head has one vote";
  EXPECT_GT(votes.blocks[0].score, votes.blocks[1].score);
}

TEST_P(MemoryStoreContract, SelectReturnsNoPayloadThatTheCallerHas) {
  const ContextId id = NewContext();
  ASSERT_OK(Append(id, 1, 0, 20));
  ASSERT_OK(Publish(id, 1, 0, 20));
  const std::vector<float> query = Query(4);
  const std::vector<int64_t> best = BruteForce(1, 20, query, 6);
  const std::vector<int64_t> have = {-5, best[0], best[2], best[5], 19, 1000};
  ASSERT_OK_AND_ASSIGN(const Selection selection,
                       Select(1, {.context = id, .query = query, .k = 6, .have = have}));
  ASSERT_EQ(Indices(selection), best);
  for (const SelectedBlock& block : selection.blocks) {
    const bool had = std::find(have.begin(), have.end(), block.index) != have.end();
    EXPECT_EQ(static_cast<bool>(block.block), !had) << block.index;
    if (!had) {
      EXPECT_EQ(Bytes(block.block), Payloads(1, block.index));
    }
  }
}

TEST_P(MemoryStoreContract, SelectOfAllOrNothing) {
  const ContextId id = NewContext();
  ASSERT_OK_AND_ASSIGN(const Selection none, Select(0, {.context = id, .query = Query(0), .k = 5}));
  EXPECT_THAT(none.blocks, IsEmpty());
  ASSERT_OK(Append(id, 0, 0, 3));
  ASSERT_OK(Publish(id, 0, 0, 3));
  ASSERT_OK_AND_ASSIGN(const Selection all, Select(0, {.context = id, .query = Query(0), .k = 5}));
  EXPECT_THAT(Indices(all), ElementsAre(0, 1, 2));
  ASSERT_OK_AND_ASSIGN(const Selection zero, Select(0, {.context = id, .query = Query(0), .k = 0}));
  EXPECT_THAT(zero.blocks, IsEmpty());
}

TEST_P(MemoryStoreContract, SelectRefusesBadQueries) {
  const ContextId id = NewContext();
  ASSERT_OK(Append(id, 0, 0, 3));
  ASSERT_OK(Publish(id, 0, 0, 3));
  const std::vector<float> query = Query(0);
  const auto refused = [&](SelectQuery bad, std::string_view text) {
    bad.context = id;
    EXPECT_THAT(Select(0, bad),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(std::string(text))));
  };
  refused({.query = std::span(query).first(31), .k = 1}, "31");
  refused({.query = {}, .k = 1}, "query");
  refused({.query = query, .k = -1}, "k is -1");
  refused({.query = query, .k = limits::kMaxSelect + 1}, "k is");
  const std::vector<int64_t> unsorted = {2, 1};
  refused({.query = query, .k = 1, .have = unsorted}, "ascending");
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    std::vector<float> broken = query;
    broken[17] = bad;
    refused({.query = broken, .k = 1}, "17");
  }
}

TEST_P(MemoryStoreContract, ScoresThatOverflowDoNoHarm) {
  const ContextId id = NewContext();
  ASSERT_OK(Append(id, 0, 0, 40));
  std::vector<float> huge(40 * 32);
  for (size_t i = 0; i < huge.size(); ++i) huge[i] = (i / 5) % 2 == 0 ? 3e38f : -3e38f;
  ASSERT_OK(store_->Publish(id, 0, 0, huge));
  for (const Scoring scoring : {Scoring::kMean, Scoring::kHeadVote}) {
    ASSERT_OK_AND_ASSIGN(
        const Selection selection,
        Select(0, {.context = id, .query = std::span(huge).first(32), .k = 10}, scoring));
    std::vector<int64_t> indices = Indices(selection);
    EXPECT_EQ(std::set<int64_t>(indices.begin(), indices.end()).size(), 10u);
    for (int64_t index : indices) EXPECT_TRUE(index >= 0 && index < 40) << index;
  }
}

TEST_P(MemoryStoreContract, OnlyStoredBlocksCanBePublished) {
  const ContextId id = NewContext();
  EXPECT_THAT(Publish(id, 0, 0, 1),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("payload")));
  ASSERT_OK(Append(id, 0, 0, 4));
  EXPECT_THAT(Publish(id, 0, 0, 5), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(Publish(id, 0, 1, 1),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("gap")));
  EXPECT_THAT(store_->Publish(id, 0, std::numeric_limits<int64_t>::max(), Representatives(0, 0)),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(store_->Publish(id, 0, -1, Representatives(0, 0)),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_OK(Publish(id, 0, 0, 4));
}

TEST_P(MemoryStoreContract, PublishTakesWholeFiniteRepresentativesOnly) {
  const ContextId id = NewContext();
  ASSERT_OK(Append(id, 0, 0, 2));
  std::vector<float> representatives = Representatives(0, 0, 2);
  EXPECT_THAT(store_->Publish(id, 0, 0, std::span(representatives).first(33)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("33")));
  representatives[40] = std::nanf("");
  EXPECT_THAT(store_->Publish(id, 0, 0, representatives),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("40")));
  EXPECT_OK(store_->Publish(id, 0, 0, {}));
  ASSERT_OK_AND_ASSIGN(const Selection none, Select(0, {.context = id, .query = Query(0), .k = 5}));
  EXPECT_THAT(none.blocks, IsEmpty());
}

TEST_P(MemoryStoreContract, PublishingAgainIsFineWithTheSameRepresentativesOnly) {
  const ContextId id = NewContext();
  ASSERT_OK(Append(id, 0, 0, 6));
  ASSERT_OK(Publish(id, 0, 0, 3));
  EXPECT_OK(Publish(id, 0, 0, 3));
  EXPECT_OK(Publish(id, 0, 2, 3));
  EXPECT_THAT(Publish(id, 0, 1, 5, /*flavour=*/1),
              StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("block 1")));
  ASSERT_OK_AND_ASSIGN(const Selection all, Select(0, {.context = id, .query = Query(0), .k = 9}));
  EXPECT_THAT(Indices(all), ElementsAre(0, 1, 2, 3, 4));
}

}  // namespace
}  // namespace infllm::memstore
