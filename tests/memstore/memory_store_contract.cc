#include "tests/memstore/memory_store_contract.h"

#include <algorithm>
#include <cmath>
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
  const auto id = store_->Create(options);
  EXPECT_OK(id);
  return id.value_or(ContextId{});
}

ContextId MemoryStoreContract::Filled(const Geometry& geometry,
                                      const std::vector<float>& representatives) {
  const ContextId id = NewContext(geometry);
  const auto blocks =
      static_cast<int64_t>(representatives.size() / geometry.representative_floats());
  EXPECT_OK(store_->Append(id, 0, 0, Payloads(0, 0, blocks, 0, geometry)));
  EXPECT_OK(store_->Publish(id, 0, 0, representatives));
  return id;
}

absl::Status MemoryStoreContract::Append(ContextId id, int32_t layer, int64_t first, int64_t count,
                                         int64_t flavour) {
  return store_->Append(id, layer, first, Payloads(layer, first, count, flavour));
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

std::vector<int64_t> Indices(const Selection& selection) {
  std::vector<int64_t> indices;
  for (const SelectedBlock& block : selection.blocks) indices.push_back(block.index);
  return indices;
}

// The k best of blocks [0, count), ascending: the mean scoring of kernels/backend.h.
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

// ---- Create

TEST_P(MemoryStoreContract, ContextIdsAreDistinct) {
  std::set<ContextId> ids;
  for (int i = 0; i < 20; ++i) ids.insert(NewContext());
  EXPECT_EQ(ids.size(), 20u);
  EXPECT_FALSE(ids.contains(ContextId{0}));
}

TEST_P(MemoryStoreContract, CreateNamesTheFieldThatIsWrong) {
  const auto refused = [&](auto change, std::string_view name) {
    ContextOptions options = Options();
    change(options);
    EXPECT_THAT(store_->Create(options),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(std::string(name))));
  };
  refused([](auto& o) { o.tenant = std::string(limits::kMaxTenantBytes + 1, 'x'); }, "tenant");
  for (const int32_t bad : {0, -1, std::numeric_limits<int32_t>::min(), 1 << 20}) {
    refused([&](auto& o) { o.geometry.layers = bad; }, "layers");
    refused([&](auto& o) { o.geometry.q_heads = bad; }, "q_heads");
    refused([&](auto& o) { o.geometry.kv_heads = bad; }, "kv_heads");
    refused([&](auto& o) { o.geometry.head_dim = bad; }, "head_dim");
    refused([&](auto& o) { o.geometry.block_tokens = bad; }, "block_tokens");
  }
  refused([](auto& o) { o.geometry.kv_heads = 3; }, "multiple of kv_heads");
  refused(
      [](auto& o) {
        o.geometry.q_heads = o.geometry.kv_heads = limits::kMaxHeads;
        o.geometry.head_dim = limits::kMaxHeadDim;
        o.geometry.block_tokens = limits::kMaxBlockTokens;
      },
      "bytes of a block");
  refused([](auto& o) { o.geometry.dtype = static_cast<kernels::DType>(7); }, "dtype");
  EXPECT_EQ(Stats().contexts, 0);
}

TEST_P(MemoryStoreContract, TheLongestTenantIsTaken) {
  ContextOptions options = Options();
  options.tenant = std::string(limits::kMaxTenantBytes, '\xff');
  EXPECT_OK(store_->Create(options));
}

TEST_P(MemoryStoreContract, ABlockLargerThanRamIsRefusedAtOnce) {
  Remake(/*ram_blocks=*/1, nullptr);
  EXPECT_OK(store_->Create(Options()));
  ContextOptions options = Options();
  options.geometry.block_tokens *= 2;
  EXPECT_THAT(store_->Create(options),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("--ram-bytes")));
}

// ---- Every method

TEST_P(MemoryStoreContract, AnUnknownContextIsNotFound) {
  const ContextId dropped = NewContext();
  ASSERT_OK(store_->Drop(dropped));
  for (const ContextId id : {ContextId{0}, ContextId{12345}, dropped}) {
    const auto not_found = StatusIs(absl::StatusCode::kNotFound, HasSubstr("does not exist"));
    EXPECT_THAT(Append(id, 0, 0, 1), not_found);
    EXPECT_THAT(Publish(id, 0, 0, 1), not_found);
    EXPECT_THAT(store_->Select(id, 0, {.query = Query(1), .k = 1}), not_found);
    EXPECT_THAT(store_->Fetch(id, 0, {}), not_found);
    EXPECT_THAT(store_->Seal(id), not_found);
    EXPECT_THAT(store_->Fork(id), not_found);
    EXPECT_THAT(store_->Drop(id), not_found);
  }
}

TEST_P(MemoryStoreContract, ALayerThatIsNotThereIsOutOfRange) {
  const ContextId id = NewContext();
  for (const int32_t layer : {-1, kGeometry.layers, std::numeric_limits<int32_t>::max(),
                              std::numeric_limits<int32_t>::min()}) {
    const auto out_of_range = StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("layer"));
    EXPECT_THAT(store_->Append(id, layer, 0, Payloads(0, 0)), out_of_range);
    EXPECT_THAT(store_->Publish(id, layer, 0, Representatives(0, 0)), out_of_range);
    EXPECT_THAT(store_->Select(id, layer, {.query = Query(1), .k = 1}), out_of_range);
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
  ASSERT_OK(store_->Append(id, 0, 0, payload));
  std::fill(payload.begin(), payload.end(), std::byte{0});
  EXPECT_OK(FetchAndCompare(id, 0, {0}));
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
  EXPECT_THAT(store_->Append(id, 0, -1, Payloads(0, 0)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("-1")));
}

TEST_P(MemoryStoreContract, AppendTakesWholePayloadsOnly) {
  const ContextId id = NewContext();
  std::vector<std::byte> payloads = Payloads(0, 0, 2);
  payloads.pop_back();
  EXPECT_THAT(
      store_->Append(id, 0, 0, payloads),
      StatusIs(absl::StatusCode::kInvalidArgument, AllOf(HasSubstr("8191"), HasSubstr("4096"))));
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
  EXPECT_THAT(store_->Append(id, 0, 1, other),
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
                         store_->Select(id, 0, {.query = query, .k = 7}));
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
  ASSERT_OK_AND_ASSIGN(const Selection mean, store_->Select(id, 0, {.query = query, .k = 1}));
  EXPECT_THAT(Indices(mean), ElementsAre(0));
  ASSERT_OK_AND_ASSIGN(
      const Selection votes,
      store_->Select(id, 0, {.query = query, .k = 3, .scoring = Scoring::kHeadVote}));
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
                       store_->Select(id, 1, {.query = query, .k = 6, .have = have}));
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
  ASSERT_OK_AND_ASSIGN(const Selection none, store_->Select(id, 0, {.query = Query(0), .k = 5}));
  EXPECT_THAT(none.blocks, IsEmpty());
  ASSERT_OK(Append(id, 0, 0, 3));
  ASSERT_OK(Publish(id, 0, 0, 3));
  ASSERT_OK_AND_ASSIGN(const Selection all, store_->Select(id, 0, {.query = Query(0), .k = 5}));
  EXPECT_THAT(Indices(all), ElementsAre(0, 1, 2));
  ASSERT_OK_AND_ASSIGN(const Selection zero, store_->Select(id, 0, {.query = Query(0), .k = 0}));
  EXPECT_THAT(zero.blocks, IsEmpty());
}

TEST_P(MemoryStoreContract, SelectRefusesBadRequests) {
  const ContextId id = NewContext();
  ASSERT_OK(Append(id, 0, 0, 3));
  ASSERT_OK(Publish(id, 0, 0, 3));
  const std::vector<float> query = Query(0);
  const auto refused = [&](const SelectRequest& request, std::string_view text) {
    EXPECT_THAT(store_->Select(id, 0, request),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(std::string(text))));
  };
  refused({.query = std::span(query).first(31), .k = 1}, "31");
  refused({.query = {}, .k = 1}, "query");
  refused({.query = query, .k = -1}, "k is -1");
  refused({.query = query, .k = limits::kMaxSelect + 1}, "k is");
  refused({.query = query, .k = 1, .scoring = static_cast<Scoring>(9)}, "scoring");
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
        store_->Select(id, 0, {.query = std::span(huge).first(32), .k = 10, .scoring = scoring}));
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
  ASSERT_OK_AND_ASSIGN(const Selection none, store_->Select(id, 0, {.query = Query(0), .k = 5}));
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
  ASSERT_OK_AND_ASSIGN(const Selection all, store_->Select(id, 0, {.query = Query(0), .k = 9}));
  EXPECT_THAT(Indices(all), ElementsAre(0, 1, 2, 3, 4));
}

// ---- Seal, Fork, Drop

TEST_P(MemoryStoreContract, ASealedContextIsReadOnly) {
  const ContextId id = NewContext();
  ASSERT_OK(Append(id, 0, 0, 3));
  ASSERT_OK(Publish(id, 0, 0, 2));
  ASSERT_OK(store_->Seal(id));
  EXPECT_OK(store_->Seal(id));
  const auto sealed = StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("sealed"));
  EXPECT_THAT(Append(id, 0, 3, 1), sealed);
  EXPECT_THAT(Publish(id, 0, 2, 1), sealed);
  EXPECT_OK(FetchAndCompare(id, 0, {0, 1, 2}));
  ASSERT_OK_AND_ASSIGN(const Selection all, store_->Select(id, 0, {.query = Query(0), .k = 9}));
  EXPECT_THAT(Indices(all), ElementsAre(0, 1));
  ASSERT_OK_AND_ASSIGN(const ContextId fork, store_->Fork(id));
  EXPECT_OK(Append(fork, 0, 3, 1));
  EXPECT_OK(Publish(fork, 0, 2, 2));
}

TEST_P(MemoryStoreContract, AForkSharesThePastAndGrowsApart) {
  const ContextId parent = NewContext();
  ASSERT_OK(Append(parent, 0, 0, 300));
  ASSERT_OK(Publish(parent, 0, 0, 290));
  ASSERT_OK_AND_ASSIGN(const ContextId child, store_->Fork(parent));
  EXPECT_NE(parent, child);
  EXPECT_EQ(Stats().blocks, 300);
  ASSERT_OK(Append(parent, 0, 300, 10, /*flavour=*/1));
  ASSERT_OK(Append(child, 0, 300, 10, /*flavour=*/2));
  // Blocks stored but not published when the fork was made get representatives on either side.
  ASSERT_OK(Publish(parent, 0, 290, 10, /*flavour=*/1));
  ASSERT_OK(Publish(child, 0, 290, 10, /*flavour=*/2));
  EXPECT_EQ(Stats().blocks, 320);
  EXPECT_EQ(Stats().contexts, 2);

  for (const auto& [id, flavour] : {std::pair{parent, 1}, std::pair{child, 2}}) {
    EXPECT_OK(FetchAndCompare(id, 0, {0, 255, 256, 299}));
    EXPECT_OK(FetchAndCompare(id, 0, {300, 309}, flavour));
    std::vector<float> of_last = Representatives(0, 295, 1, flavour);
    ASSERT_OK_AND_ASSIGN(const Selection best, store_->Select(id, 0, {.query = of_last, .k = 1}));
    EXPECT_EQ(best.blocks[0].score,
              std::inner_product(of_last.begin(), of_last.end(), of_last.begin(), 0.0f));
  }
  EXPECT_THAT(Append(child, 0, 300, 1, /*flavour=*/1), StatusIs(absl::StatusCode::kAlreadyExists));
}

TEST_P(MemoryStoreContract, WhatForksShareGoesWithTheLastOfThem) {
  const ContextId parent = NewContext();
  ASSERT_OK(Append(parent, 0, 0, 10));
  ASSERT_OK_AND_ASSIGN(const ContextId child, store_->Fork(parent));
  ASSERT_OK_AND_ASSIGN(const ContextId grandchild, store_->Fork(child));
  ASSERT_OK(Append(child, 0, 10, 5, 1));
  ASSERT_OK(store_->Drop(parent));
  EXPECT_OK(FetchAndCompare(child, 0, {0, 9}));
  EXPECT_EQ(Stats().blocks, 15);
  ASSERT_OK(store_->Drop(child));
  EXPECT_OK(FetchAndCompare(grandchild, 0, {0, 9}));
  EXPECT_EQ(Stats().blocks, 10);
  ASSERT_OK(store_->Drop(grandchild));
  const StoreStats stats = Stats();
  EXPECT_EQ(stats.blocks, 0);
  EXPECT_EQ(stats.blocks_ram, 0);
  EXPECT_EQ(stats.ram_bytes, 0);
  EXPECT_EQ(stats.contexts, 0);
  EXPECT_EQ(stats.representative_bytes, 0);
}

TEST_P(MemoryStoreContract, AHandleOutlivesItsContext) {
  const ContextId id = NewContext();
  ASSERT_OK(Append(id, 0, 0, 2));
  ASSERT_OK_AND_ASSIGN(const auto handles, store_->Fetch(id, 0, std::vector<int64_t>{1}));
  const BlockHandle copy = handles[0];
  ASSERT_OK(store_->Drop(id));
  const ContextId other = NewContext();
  ASSERT_OK(Append(other, 0, 0, 50, /*flavour=*/3));
  EXPECT_EQ(Bytes(copy), Payloads(0, 1));
}

TEST_P(MemoryStoreContract, AHandleOutlivesTheStore) {
  const ContextId id = NewContext();
  ASSERT_OK(Append(id, 0, 0, 1));
  ASSERT_OK_AND_ASSIGN(const auto handles, store_->Fetch(id, 0, std::vector<int64_t>{0}));
  store_.reset();
  EXPECT_EQ(Bytes(handles[0]), Payloads(0, 0));
}

}  // namespace
}  // namespace infllm::memstore
