// The part of the contract about kinds of representatives, their dtype, and KV heads that select
// for themselves.
#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "memstore/limits.h"
#include "tests/memstore/memory_store_contract.h"
#include "tests/memstore/scoring_oracle.h"
#include "tests/support/status_matchers.h"

namespace infllm::memstore {
namespace {

using ::infllm::testing::IsOk;
using ::infllm::testing::StatusIs;
using kernels::DType;
using kernels::RepresentativeKind;
using kernels::Scoring;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint64_t kTogether = ~uint64_t{0};
constexpr RepresentativeKind kKinds[] = {RepresentativeKind::kMeanKey, RepresentativeKind::kKeys,
                                         RepresentativeKind::kBounds};

Geometry Shape(RepresentativeKind kind, DType dtype) {
  Geometry geometry = kGeometry;
  geometry.dtype = dtype;
  geometry.representative = kind;
  geometry.repr_top_k = 3;
  return geometry;
}

// `kv_heads` heads of one channel, and blocks of one token: representatives can be written by hand.
Geometry Narrow(int32_t kv_heads) {
  return {.layers = 1, .q_heads = kv_heads, .kv_heads = kv_heads, .head_dim = 1, .block_tokens = 1};
}

// ---- Create, Publish

TEST_P(MemoryStoreContract, CreateChecksTheRepresentative) {
  const auto refused = [&](auto change, std::string_view name) {
    ContextOptions options = Options();
    change(options.geometry);
    EXPECT_THAT(store_->Create(options),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(std::string(name))));
  };
  refused([](Geometry& g) { g.representative = static_cast<RepresentativeKind>(3); },
          "representative is 3");
  refused([](Geometry& g) { g.dtype = DType::kF16; }, "dtype");
  for (const int32_t bad :
       {0, -1, std::numeric_limits<int32_t>::min(), 33, std::numeric_limits<int32_t>::max()}) {
    refused(
        [&](Geometry& g) {
          g.representative = RepresentativeKind::kKeys;
          g.repr_top_k = bad;
        },
        absl::StrCat("repr_top_k is ", bad, ", must be in [1, 32]"));  // a block has 32 tokens
  }
  refused(
      [](Geometry& g) {
        g.representative = RepresentativeKind::kKeys;
        g.block_tokens = 128;
        g.repr_top_k = limits::kMaxReprTopK + 1;
      },
      "repr_top_k is 65, must be in [1, 64]");
  refused(
      [](Geometry& g) {
        g.representative = RepresentativeKind::kKeys;
        g.q_heads = limits::kMaxHeads;
        g.kv_heads = 1;
        g.head_dim = limits::kMaxHeadDim;
        g.repr_top_k = 32;
      },
      "bytes of a representative");
  EXPECT_EQ(Stats().contexts, 0);
  for (const RepresentativeKind kind :
       {RepresentativeKind::kMeanKey, RepresentativeKind::kBounds}) {
    Geometry unused = Shape(kind, DType::kF32);
    unused.repr_top_k = -1;
    NewContext(unused);
  }
  Geometry most = Shape(RepresentativeKind::kKeys, DType::kBF16);
  most.repr_top_k = most.block_tokens;
  NewContext(most);
  EXPECT_EQ(Stats().contexts, 3);
}

TEST_P(MemoryStoreContract, RepresentativesHaveTheShapeOfTheirKind) {
  for (const RepresentativeKind kind : kKinds) {
    const Geometry geometry = Shape(kind, DType::kF32);
    const ContextId id = NewContext(geometry);
    ASSERT_OK(store_->Append(id, 0, 0, Payloads(0, 0, 2, 0, geometry)));
    const std::vector<float> two = Representatives(0, 0, 2, 0, geometry);
    EXPECT_THAT(store_->Publish(id, 0, 0, std::span(two).first(two.size() / 2 + 1)),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         HasSubstr(absl::StrCat(geometry.representative_floats()))));
    EXPECT_OK(store_->Publish(id, 0, 0, two));
    EXPECT_OK(store_->Select(id, 0, {.query = Query(0), .k = 2})) << "a query has query heads";
  }
}

TEST_P(MemoryStoreContract, RepresentativesAreComparedAsTheyAreKept) {
  for (const RepresentativeKind kind : kKinds) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const Geometry geometry = Shape(kind, dtype);
      const std::vector<float> published(5 * geometry.representative_floats(), 1.00390625f);
      const ContextId id = Filled(geometry, published);
      EXPECT_OK(store_->Publish(id, 0, 0, published));
      const std::vector<float> rounded(published.size(), 1.0f);  // to nearest even
      if (dtype == DType::kBF16) {
        EXPECT_OK(store_->Publish(id, 0, 0, rounded));
      } else {
        EXPECT_THAT(store_->Publish(id, 0, 0, rounded), StatusIs(absl::StatusCode::kAlreadyExists));
      }
      std::vector<float> other = published;
      other.back() = 1.0078125f;
      EXPECT_THAT(store_->Publish(id, 0, 0, other),
                  StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("block 4")));
    }
  }
}

TEST_P(MemoryStoreContract, RepresentativesMustBeInTheRangeOfTheirDtype) {
  const float largest = std::numeric_limits<float>::max();  // rounds to an infinite bf16
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Geometry geometry = Shape(RepresentativeKind::kMeanKey, dtype);
    const ContextId id = NewContext(geometry);
    ASSERT_OK(store_->Append(id, 0, 0, Payloads(0, 0, 1, 0, geometry)));
    std::vector<float> representative = Representatives(0, 0, 1, 0, geometry);
    representative[9] = -largest;
    const absl::Status status = store_->Publish(id, 0, 0, representative);
    if (dtype == DType::kBF16) {
      EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument,
                                   AllOf(HasSubstr("float 9"), HasSubstr("as bf16"))));
    } else {
      EXPECT_OK(status);
    }
  }
}

TEST_P(MemoryStoreContract, BoundsMustBeInOrder) {
  const Geometry geometry = Shape(RepresentativeKind::kBounds, DType::kF32);
  const ContextId id = NewContext(geometry);
  ASSERT_OK(store_->Append(id, 0, 0, Payloads(0, 0, 2, 0, geometry)));
  std::vector<float> bounds(2 * geometry.representative_floats(), 1.0f);
  EXPECT_OK(store_->Publish(id, 0, 0, std::span(bounds).first(bounds.size() / 2)));
  bounds[geometry.representative_floats() + 3] = 2;
  EXPECT_THAT(store_->Publish(id, 0, 0, bounds),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("2 at float 35"), HasSubstr("1 at float 51"))));
}

TEST_P(MemoryStoreContract, RepresentativesTakeTheMemoryOfTheirKindAndDtype) {
  int64_t before = 0;
  for (const RepresentativeKind kind : kKinds) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const Geometry geometry = Shape(kind, dtype);
      Filled(geometry, Representatives(0, 0, 64, 0, geometry));
      const int64_t after = Stats().representative_bytes;
      EXPECT_EQ(after - before, static_cast<int64_t>(64 * geometry.representative_floats() *
                                                     kernels::SizeOf(dtype)));
      before = after;
    }
  }
}

// ---- Select

TEST_P(MemoryStoreContract, EveryKindSelectsAsTheBruteForce) {
  constexpr int64_t kBlocks = 40, kTop = 5;
  for (const RepresentativeKind kind : kKinds) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const Geometry geometry = Shape(kind, dtype);
      std::vector<float> representatives = Representatives(0, 0, kBlocks, 0, geometry);
      for (float& value : representatives) value *= 97;  // so that bf16 rounds some
      const ContextId id = Filled(geometry, representatives);
      for (int64_t seed = 0; seed < 4; ++seed) {
        const std::vector<float> query = Query(seed);
        for (const bool per_kv_head : {false, true}) {
          const auto scores =
              OracleScores(representatives, query, geometry, Scoring::kMean, per_kv_head);
          std::map<int64_t, std::pair<uint64_t, float>> expected;  // mask and best score
          for (size_t group = 0; group < scores.size(); ++group) {
            for (const int64_t block : OracleTopK(scores[group], kTop)) {
              const auto score = static_cast<float>(scores[group][block]);
              const uint64_t bit = per_kv_head ? uint64_t{1} << group : kTogether;
              auto [found, added] = expected.try_emplace(block, bit, score);
              found->second.first |= bit;
              found->second.second = std::max(found->second.second, score);
            }
          }
          ASSERT_OK_AND_ASSIGN(
              const Selection selection,
              store_->Select(id, 0, {.query = query, .k = kTop, .per_kv_head = per_kv_head}));
          ASSERT_EQ(selection.blocks.size(), expected.size());
          auto next = expected.begin();
          for (const SelectedBlock& block : selection.blocks) {
            EXPECT_EQ(block.index, next->first);
            EXPECT_EQ(block.kv_heads, next->second.first);
            EXPECT_EQ(block.score, next->second.second);
            EXPECT_EQ(Bytes(block.block), Payloads(0, block.index, 1, 0, geometry));
            ++next;
          }
        }
      }
    }
  }
}

TEST_P(MemoryStoreContract, AnnouncedQueriesSelectAsOthers) {
  for (const RepresentativeKind kind : kKinds) {
    const Geometry geometry = Shape(kind, DType::kBF16);
    const ContextId id = Filled(geometry, Representatives(0, 0, 40, 0, geometry));
    const std::vector<float> first = Query(0), second = Query(1);
    ASSERT_OK_AND_ASSIGN(const Selection expected,
                         store_->Select(id, 0, {.query = second, .k = 5}));
    ASSERT_OK(store_->Select(id, 0, {.query = first, .k = 5, .upcoming = second}));
    ASSERT_OK_AND_ASSIGN(const Selection selection,
                         store_->Select(id, 0, {.query = second, .k = 5}));
    ASSERT_EQ(Indices(selection), Indices(expected));
    for (size_t i = 0; i < selection.blocks.size(); ++i) {
      EXPECT_EQ(selection.blocks[i].score, expected.blocks[i].score);
    }
  }
}

TEST_P(MemoryStoreContract, EveryKvHeadVotesForItself) {
  for (const RepresentativeKind kind : kKinds) {
    const Geometry geometry = Shape(kind, DType::kBF16);
    const std::vector<float> representatives = Representatives(0, 0, 30, 0, geometry);
    const ContextId id = Filled(geometry, representatives);
    std::vector<float> query = Query(2);
    for (float& value : query) value /= 32;  // logits of a few units
    const auto scores = OracleScores(representatives, query, geometry, Scoring::kHeadVote, true);
    ASSERT_OK_AND_ASSIGN(
        const Selection all,
        store_->Select(
            id, 0, {.query = query, .k = 30, .per_kv_head = true, .scoring = Scoring::kHeadVote}));
    ASSERT_EQ(all.blocks.size(), 30u);
    for (const SelectedBlock& block : all.blocks) {
      EXPECT_EQ(block.kv_heads, 0b11u);
      EXPECT_NEAR(block.score, std::max(scores[0][block.index], scores[1][block.index]), 1e-5);
    }
  }
}

TEST_P(MemoryStoreContract, ABlockThatSeveralHeadsTakeComesOnce) {
  // [blocks][KV heads]
  const std::vector<float> representatives = {9, 0, 0,  //
                                              5, 8, 0,  //
                                              1, 1, 7,  //
                                              0, 2, 6};
  const ContextId id = Filled(Narrow(3), representatives);
  const std::vector<float> query = {1, 1, 1};
  const std::vector<int64_t> have = {0, 2};
  ASSERT_OK_AND_ASSIGN(
      const Selection one,
      store_->Select(id, 0, {.query = query, .k = 1, .per_kv_head = true, .have = have}));
  ASSERT_THAT(Indices(one), ElementsAre(0, 1, 2));
  EXPECT_EQ(one.blocks[0].kv_heads, 0b001u);
  EXPECT_EQ(one.blocks[1].kv_heads, 0b010u);
  EXPECT_EQ(one.blocks[2].kv_heads, 0b100u);
  EXPECT_FALSE(one.blocks[0].block);
  EXPECT_TRUE(one.blocks[1].block);
  EXPECT_FALSE(one.blocks[2].block);
  EXPECT_EQ(Stats().ram_hits, 1);

  ASSERT_OK_AND_ASSIGN(const Selection two,
                       store_->Select(id, 0, {.query = query, .k = 2, .per_kv_head = true}));
  ASSERT_THAT(Indices(two), ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(two.blocks[1].kv_heads, 0b011u);
  EXPECT_EQ(two.blocks[1].score, 8) << "the larger of 5 and 8";
  EXPECT_EQ(two.blocks[3].kv_heads, 0b110u);
  EXPECT_EQ(two.blocks[3].score, 6);
  EXPECT_EQ(Stats().ram_hits, 1 + 4) << "a payload that two heads take is one";
}

TEST_P(MemoryStoreContract, KvHeadsOfAllOrNothing) {
  const ContextId id = NewContext(kGeometry);
  const std::vector<float> query = Query(0);
  ASSERT_OK_AND_ASSIGN(const Selection none,
                       store_->Select(id, 0, {.query = query, .k = 5, .per_kv_head = true}));
  EXPECT_TRUE(none.blocks.empty());
  ASSERT_OK(Append(id, 0, 0, 3));
  ASSERT_OK(Publish(id, 0, 0, 3));
  ASSERT_OK_AND_ASSIGN(const Selection all,
                       store_->Select(id, 0, {.query = query, .k = 5, .per_kv_head = true}));
  EXPECT_THAT(Indices(all), ElementsAre(0, 1, 2));
  for (const SelectedBlock& block : all.blocks) EXPECT_EQ(block.kv_heads, 0b11u);
  ASSERT_OK_AND_ASSIGN(const Selection zero,
                       store_->Select(id, 0, {.query = query, .k = 0, .per_kv_head = true}));
  EXPECT_TRUE(zero.blocks.empty());
}

TEST_P(MemoryStoreContract, AsManyKvHeadsSelectAsAMaskHasBits) {
  for (const int32_t heads : {limits::kMaxSelectingKvHeads, limits::kMaxSelectingKvHeads + 1}) {
    std::vector<float> representatives(heads * heads, 0.0f);
    for (int32_t h = 0; h < heads; ++h) representatives[h * heads + h] = 1;  // block h is head h's
    const ContextId id = Filled(Narrow(heads), representatives);
    const std::vector<float> query(heads, 1.0f);
    const auto selection = store_->Select(id, 0, {.query = query, .k = 1, .per_kv_head = true});
    if (heads > limits::kMaxSelectingKvHeads) {
      EXPECT_THAT(selection, StatusIs(absl::StatusCode::kInvalidArgument,
                                      AllOf(HasSubstr("KV heads that select for themselves is 65"),
                                            HasSubstr("64"))));
      EXPECT_OK(store_->Select(id, 0, {.query = query, .k = 1})) << "together they may";
      continue;
    }
    ASSERT_OK(selection);
    ASSERT_EQ(selection->blocks.size(), 64u);
    for (int32_t h = 0; h < heads; ++h) EXPECT_EQ(selection->blocks[h].kv_heads, uint64_t{1} << h);
  }
}

TEST_P(MemoryStoreContract, ASelectionOfKvHeadsIsBounded) {
  const ContextId id = NewContext();
  const std::vector<float> query = Query(0);
  EXPECT_OK(store_->Select(id, 0, {.query = query, .k = limits::kMaxSelect}));
  EXPECT_OK(
      store_->Select(id, 0, {.query = query, .k = limits::kMaxSelect / 2, .per_kv_head = true}));
  EXPECT_THAT(
      store_->Select(id, 0, {.query = query, .k = limits::kMaxSelect / 2 + 1, .per_kv_head = true}),
      StatusIs(absl::StatusCode::kInvalidArgument,
               AllOf(HasSubstr("k * kv_heads is 65538"), HasSubstr("65536"))));
}

TEST_P(MemoryStoreContract, TheUnionMustFitInRam) {
  Remake(/*ram_blocks=*/4, NewFakeColdStore());
  const ContextId id = NewContext();
  ASSERT_OK(Append(id, 0, 0, 20));
  // Blocks 0 to 9 matter to KV head 0 alone, the others to KV head 1.
  std::vector<float> representatives(20 * kGeometry.representative_floats(), 0.0f);
  const size_t floats = kGeometry.representative_floats();
  for (size_t i = 0; i < representatives.size(); ++i) {
    representatives[i] = (i / floats < 10) == (i % floats < floats / 2) ? 1 : 0;
  }
  ASSERT_OK(store_->Publish(id, 0, 0, representatives));
  const std::vector<float> query(floats, 1.0f);
  ASSERT_OK_AND_ASSIGN(Selection pairs,
                       store_->Select(id, 0, {.query = query, .k = 2, .per_kv_head = true}));
  EXPECT_THAT(Indices(pairs), ElementsAre(0, 1, 10, 11));
  for (const SelectedBlock& block : pairs.blocks) {
    EXPECT_EQ(Bytes(block.block), Payloads(0, block.index));
  }
  pairs.blocks.clear();
  EXPECT_OK(store_->Select(id, 0, {.query = query, .k = 4})) << "together they take four";
  EXPECT_THAT(store_->Select(id, 0, {.query = query, .k = 4, .per_kv_head = true}),
              StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST_P(MemoryStoreContract, AForkHasTheGeometryOfItsParent) {
  const Geometry geometry = Shape(RepresentativeKind::kKeys, DType::kBF16);
  std::vector<float> representatives = Representatives(0, 0, 20, 0, geometry);
  const ContextId parent = Filled(geometry, representatives);
  ASSERT_OK_AND_ASSIGN(const ContextId fork, store_->Fork(parent));
  ASSERT_OK(store_->Drop(parent));
  const std::vector<float> more = Representatives(0, 20, 20, 1, geometry);
  ASSERT_OK(store_->Append(fork, 0, 20, Payloads(0, 20, 20, 1, geometry)));
  ASSERT_OK(store_->Publish(fork, 0, 20, more));
  representatives.insert(representatives.end(), more.begin(), more.end());
  const std::vector<float> query = Query(8);
  const auto scores = OracleScores(representatives, query, geometry, Scoring::kMean, true);
  std::set<int64_t> expected;
  for (const auto& group : scores) {
    for (const int64_t block : OracleTopK(group, 6)) expected.insert(block);
  }
  ASSERT_OK_AND_ASSIGN(const Selection selection,
                       store_->Select(fork, 0, {.query = query, .k = 6, .per_kv_head = true}));
  EXPECT_EQ(Indices(selection), std::vector<int64_t>(expected.begin(), expected.end()));
}

TEST_P(MemoryStoreContract, ScoresThatOverflowDoNoHarmInAnyKind) {
  for (const RepresentativeKind kind : kKinds) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const Geometry geometry = Shape(kind, dtype);
      const size_t floats = geometry.representative_floats();
      std::vector<float> huge(40 * floats);
      for (size_t i = 0; i < huge.size(); ++i) huge[i] = (i / 5) % 2 == 0 ? 3e38f : -3e38f;
      if (kind == RepresentativeKind::kBounds) {
        for (int64_t i = 0; i < 40; ++i) OrderBounds(std::span(huge).subspan(i * floats, floats));
      }
      const ContextId id = Filled(geometry, huge);
      const std::vector<float> query(huge.begin(), huge.begin() + geometry.query_floats());
      for (const Scoring scoring : {Scoring::kMean, Scoring::kHeadVote}) {
        ASSERT_OK_AND_ASSIGN(
            const Selection selection,
            store_->Select(id, 0,
                           {.query = query, .k = 10, .per_kv_head = true, .scoring = scoring}));
        uint64_t heads = 0;
        for (const SelectedBlock& block : selection.blocks) {
          EXPECT_TRUE(block.index >= 0 && block.index < 40) << block.index;
          heads |= block.kv_heads;
        }
        EXPECT_EQ(heads, 0b11u);
      }
    }
  }
}

}  // namespace
}  // namespace infllm::memstore
