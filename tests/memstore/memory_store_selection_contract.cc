// The part of the contract about kinds of representatives, their dtype, and many queries at once.
#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "memstore/limits.h"
#include "tests/memstore/memory_store_contract.h"
#include "tests/memstore/scoring_oracle.h"
#include "tests/memstore/scripted_cold_store.h"
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
using ::testing::IsEmpty;

constexpr RepresentativeKind kKinds[] = {RepresentativeKind::kMeanKey, RepresentativeKind::kBounds};

Geometry Shape(RepresentativeKind kind, DType dtype) {
  Geometry geometry = kGeometry;
  geometry.dtype = dtype;
  geometry.representative = kind;
  return geometry;
}

// ---- Create, Publish

TEST_P(MemoryStoreContract, CreateChecksTheRepresentative) {
  const auto refused = [&](auto change, std::string_view name) {
    ContextOptions options = Options();
    change(options.geometry);
    EXPECT_THAT(store_->Create(NewContextId(), options),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(std::string(name))));
  };
  refused([](Geometry& g) { g.representative = static_cast<RepresentativeKind>(2); },
          "representative is 2");
  refused([](Geometry& g) { g.dtype = DType::kF16; }, "dtype");
  EXPECT_EQ(Stats().contexts, 0);
}

TEST_P(MemoryStoreContract, RepresentativesHaveTheShapeOfTheirKind) {
  for (const RepresentativeKind kind : kKinds) {
    const Geometry geometry = Shape(kind, DType::kF32);
    const ContextId id = NewContext(geometry);
    ASSERT_OK(AppendAll(id, 0, 0, Payloads(0, 0, 2, 0, geometry), geometry));
    const std::vector<float> two = Representatives(0, 0, 2, 0, geometry);
    EXPECT_THAT(store_->Publish(id, 0, 0, std::span(two).first(two.size() / 2 + 1)),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         HasSubstr(absl::StrCat(geometry.representative_floats()))));
    EXPECT_OK(store_->Publish(id, 0, 0, two));
    EXPECT_OK(Select(0, {.context = id, .query = Query(0), .k = 2})) << "a query has query heads";
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
    ASSERT_OK(AppendAll(id, 0, 0, Payloads(0, 0, 1, 0, geometry), geometry));
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
  ASSERT_OK(AppendAll(id, 0, 0, Payloads(0, 0, 2, 0, geometry), geometry));
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
        const auto scores = OracleScores(representatives, query, geometry, Scoring::kMean);
        ASSERT_OK_AND_ASSIGN(const Selection selection,
                             Select(0, {.context = id, .query = query, .k = kTop}));
        ASSERT_EQ(Indices(selection), OracleTopK(scores, kTop));
        for (const SelectedBlock& block : selection.blocks) {
          EXPECT_EQ(block.score, static_cast<float>(scores[block.index]));
          EXPECT_EQ(Bytes(block.block), Payloads(0, block.index, 1, 0, geometry));
        }
      }
    }
  }
}

TEST_P(MemoryStoreContract, EveryKindSelectsByHeadVote) {
  for (const RepresentativeKind kind : kKinds) {
    const Geometry geometry = Shape(kind, DType::kBF16);
    const std::vector<float> representatives = Representatives(0, 0, 30, 0, geometry);
    const ContextId id = Filled(geometry, representatives);
    std::vector<float> query = Query(2);
    for (float& value : query) value /= 32;  // logits of a few units
    const auto scores = OracleScores(representatives, query, geometry, Scoring::kHeadVote);
    ASSERT_OK_AND_ASSIGN(const Selection all,
                         Select(0, {.context = id, .query = query, .k = 30}, Scoring::kHeadVote));
    ASSERT_EQ(all.blocks.size(), 30u);
    for (const SelectedBlock& block : all.blocks) {
      EXPECT_NEAR(block.score, scores[block.index], 1e-5);
    }
  }
}

TEST_P(MemoryStoreContract, BlocksFromEndBlockOnTakeNoPart) {
  const ContextId id = NewContext();
  ASSERT_OK(Append(id, 0, 0, 60));
  ASSERT_OK(Publish(id, 0, 0, 50));
  const std::vector<float> query = Query(3);
  for (const int64_t end : {1, 7, 8, 9, 31, 49, 50, 51, 1000}) {
    ASSERT_OK_AND_ASSIGN(const Selection selection,
                         Select(0, {.context = id, .query = query, .k = 6, .end_block = end}));
    EXPECT_EQ(Indices(selection), BruteForce(0, std::min<int64_t>(end, 50), query, 6)) << end;
  }
  for (const int64_t end : {int64_t{0}, int64_t{-3}, std::numeric_limits<int64_t>::min()}) {
    ASSERT_OK_AND_ASSIGN(const Selection none,
                         Select(0, {.context = id, .query = query, .k = 6, .end_block = end}));
    EXPECT_THAT(none.blocks, IsEmpty());
  }
  // A head's vote is divided among the blocks that take part.
  ASSERT_OK_AND_ASSIGN(
      const Selection votes,
      Select(0, {.context = id, .query = query, .k = 20, .end_block = 20}, Scoring::kHeadVote));
  float sum = 0;
  for (const SelectedBlock& block : votes.blocks) sum += block.score;
  EXPECT_NEAR(sum, kGeometry.q_heads, 1e-4);
}

// ---- Many queries

TEST_P(MemoryStoreContract, QueriesTogetherSelectAsOneByOne) {
  // Of several shapes; forks that share blocks; one that has none.
  std::vector<ContextId> contexts = {NewContext()};
  for (const RepresentativeKind kind : kKinds) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const Geometry geometry = Shape(kind, dtype);
      std::vector<float> representatives = Representatives(0, 0, 90, 0, geometry);
      for (float& value : representatives) value /= 7;  // so that the order of sums matters
      contexts.push_back(Filled(geometry, representatives));
      for (int64_t fork = 1; fork <= 2; ++fork) {
        contexts.push_back(Forked(contexts[contexts.size() - static_cast<size_t>(fork)]));
        const ContextId& id = contexts.back();
        const int64_t more = 11 * fork;
        ASSERT_OK(AppendAll(id, 0, 90, Payloads(0, 90, more, fork, geometry), geometry));
        ASSERT_OK(store_->Publish(id, 0, 90, Representatives(0, 90, more, fork, geometry)));
      }
    }
  }
  std::vector<std::vector<float>> vectors;
  for (int64_t seed = 0; seed < 50; ++seed) {
    vectors.push_back(Query(seed));
    for (float& value : vectors.back()) value /= 13;
  }
  const std::vector<int64_t> have = {1, 5, 17, 40, 41, 77, 91};
  std::vector<SelectQuery> queries;
  for (size_t i = 0; i < vectors.size(); ++i) {
    queries.push_back({.context = contexts[i * 5 % contexts.size()],
                       .query = vectors[i],
                       .k = static_cast<int32_t>(i % 9),
                       .end_block = i % 4 == 3 ? static_cast<int64_t>(3 * i) : 1000,
                       .have = i % 3 == 0 ? have : std::span<const int64_t>()});
  }
  for (const Scoring scoring : {Scoring::kMean, Scoring::kHeadVote}) {
    ASSERT_OK_AND_ASSIGN(const auto together, SelectAll(0, queries, scoring));
    ASSERT_EQ(together.size(), queries.size());
    for (size_t i = 0; i < queries.size(); ++i) {
      SCOPED_TRACE(i);
      ASSERT_OK_AND_ASSIGN(const Selection alone, Select(0, queries[i], scoring));
      ASSERT_OK(together[i].status);
      ExpectEqual(together[i], alone);
    }
  }
}

TEST_P(MemoryStoreContract, AQueryThatFailsHarmsNoOther) {
  const auto script = std::make_shared<ColdScript>();
  Remake(/*ram_blocks=*/12, ColdScript::Open(script));
  const ContextId cold = NewContext(), warm = NewContext();
  ASSERT_OK(Append(cold, 1, 0, 40));
  ASSERT_OK(Publish(cold, 1, 0, 40));
  ASSERT_OK(Append(warm, 1, 0, 6));
  ASSERT_OK(Publish(warm, 1, 0, 6));
  ContextOptions options = Options();
  options.geometry.layers = 1;
  const ContextId flat = NewContextId();
  ASSERT_OK(store_->Create(flat, options));
  script->FlipReadByte(2000);

  const std::vector<float> query = Query(1), of_cold = Representatives(1, 3);
  std::vector<float> broken = query;
  broken[5] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<int64_t> unsorted = {2, 1};
  const SelectQuery good = {.context = warm, .query = query, .k = 2};
  ASSERT_OK_AND_ASSIGN(const Selection expected, Select(1, good));
  const std::vector<SelectQuery> queries = {
      good,
      {.context = NewContextId(), .query = query, .k = 2},
      {.context = flat, .query = query, .k = 2},
      {.context = warm, .query = broken, .k = 2},
      {.context = warm, .query = query, .k = -2},
      good,
      {.context = warm, .query = std::span(query).first(3), .k = 2},
      {.context = warm, .query = query, .k = 2, .have = unsorted},
      {.context = cold, .query = of_cold, .k = 1},
      {.context = cold, .query = query, .k = 40, .end_block = 40},
      good,
  };
  ASSERT_OK_AND_ASSIGN(const auto selections, SelectAll(1, queries));
  ASSERT_EQ(selections.size(), queries.size());
  const absl::StatusCode codes[] = {
      absl::StatusCode::kOk,
      absl::StatusCode::kNotFound,
      absl::StatusCode::kOutOfRange,
      absl::StatusCode::kInvalidArgument,
      absl::StatusCode::kInvalidArgument,
      absl::StatusCode::kOk,
      absl::StatusCode::kInvalidArgument,
      absl::StatusCode::kInvalidArgument,
      absl::StatusCode::kDataLoss,
      absl::StatusCode::kResourceExhausted,  // or damaged, whatever is met first
      absl::StatusCode::kOk,
  };
  for (size_t i = 0; i < queries.size(); ++i) {
    SCOPED_TRACE(i);
    if (i == 9) {
      EXPECT_FALSE(selections[i].status.ok());
    } else {
      EXPECT_EQ(selections[i].status.code(), codes[i]) << selections[i].status;
    }
    if (codes[i] == absl::StatusCode::kOk) {
      ExpectEqual(selections[i], expected);
    } else {
      EXPECT_THAT(selections[i].blocks, IsEmpty());
    }
  }
}

TEST_P(MemoryStoreContract, PayloadsThatDoNotFitInRamFailTheirQueryOnly) {
  Remake(/*ram_blocks=*/4, NewFakeColdStore());
  const ContextId id = NewContext();
  ASSERT_OK(Append(id, 0, 0, 20));
  ASSERT_OK(Publish(id, 0, 0, 20));
  const std::vector<float> query = Query(0);
  ASSERT_OK_AND_ASSIGN(const auto selections,
                       SelectAll(0, {{.context = id, .query = query, .k = 2},
                                     {.context = id, .query = query, .k = 5},
                                     {.context = id, .query = query, .k = 4}}));
  ASSERT_OK(selections[0].status);
  EXPECT_EQ(Indices(selections[0]), BruteForce(0, 20, query, 2));
  EXPECT_THAT(selections[1].status,
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("--ram-bytes")));
  ASSERT_OK(selections[2].status) << "two of them are pinned already";
  for (const SelectedBlock& block : selections[2].blocks) {
    EXPECT_EQ(Bytes(block.block), Payloads(0, block.index));
  }
}

TEST_P(MemoryStoreContract, ARequestIsBounded) {
  const ContextId id = NewContext();
  const std::vector<float> query = Query(0);
  std::vector<SelectQuery> queries(limits::kMaxQueries,
                                   {.context = id, .query = query, .k = limits::kMaxSelect});
  ASSERT_OK_AND_ASSIGN(const auto selections, SelectAll(0, queries));
  EXPECT_EQ(selections.size(), queries.size());
  queries.push_back(queries.front());
  EXPECT_THAT(SelectAll(0, queries),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("number of queries is 4097"), HasSubstr("4096"))));
  ASSERT_OK_AND_ASSIGN(const auto none, SelectAll(0, {}));
  EXPECT_THAT(none, IsEmpty());
  EXPECT_THAT(SelectAll(0, {{.context = id, .query = query, .k = 1}}, static_cast<Scoring>(9)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("scoring")));

  const Geometry tiny = {.layers = 1,
                         .q_heads = 1,
                         .kv_heads = 1,
                         .head_dim = 1,
                         .block_tokens = 1,
                         .representative = RepresentativeKind::kMeanKey};
  const std::vector<float> one = {1};
  const ContextId many = Filled(tiny, Representatives(0, 0, 300, 0, tiny));
  const std::vector<SelectQuery> greedy(limits::kMaxQueries,
                                        {.context = many, .query = one, .k = 300});
  EXPECT_THAT(SelectAll(0, greedy),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("all queries select is 1228800"), HasSubstr("1048576"))));
}

TEST_P(MemoryStoreContract, AForkHasTheGeometryOfItsParent) {
  const Geometry geometry = Shape(RepresentativeKind::kBounds, DType::kBF16);
  std::vector<float> representatives = Representatives(0, 0, 20, 0, geometry);
  const ContextId parent = Filled(geometry, representatives);
  const ContextId fork = Forked(parent);
  ASSERT_OK(store_->Drop(parent));
  const std::vector<float> more = Representatives(0, 20, 20, 1, geometry);
  ASSERT_OK(AppendAll(fork, 0, 20, Payloads(0, 20, 20, 1, geometry), geometry));
  ASSERT_OK(store_->Publish(fork, 0, 20, more));
  representatives.insert(representatives.end(), more.begin(), more.end());
  const std::vector<float> query = Query(8);
  ASSERT_OK_AND_ASSIGN(const Selection selection,
                       Select(0, {.context = fork, .query = query, .k = 6}));
  EXPECT_EQ(Indices(selection),
            OracleTopK(OracleScores(representatives, query, geometry, Scoring::kMean), 6));
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
        ASSERT_OK_AND_ASSIGN(const Selection selection,
                             Select(0, {.context = id, .query = query, .k = 10}, scoring));
        EXPECT_EQ(selection.blocks.size(), 10u);
        for (const SelectedBlock& block : selection.blocks) {
          EXPECT_TRUE(block.index >= 0 && block.index < 40) << block.index;
        }
      }
    }
  }
}

}  // namespace
}  // namespace infllm::memstore
