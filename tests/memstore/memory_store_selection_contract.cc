// The part of the contract about kinds of representatives and their dtype.
#include <algorithm>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
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
using ::testing::HasSubstr;

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
    EXPECT_THAT(store_->Create(options),
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
        const std::vector<double> scores =
            OracleScores(representatives, query, geometry, Scoring::kMean);
        std::vector<int64_t> expected = OracleTopK(scores, kTop);
        std::sort(expected.begin(), expected.end());
        ASSERT_OK_AND_ASSIGN(const Selection selection,
                             store_->Select(id, 0, {.query = query, .k = kTop}));
        ASSERT_EQ(Indices(selection), expected);
        for (const SelectedBlock& block : selection.blocks) {
          EXPECT_EQ(block.score, static_cast<float>(scores[block.index]));
          EXPECT_EQ(Bytes(block.block), Payloads(0, block.index, 1, 0, geometry));
        }
      }
    }
  }
}

TEST_P(MemoryStoreContract, AllHeadsVote) {
  for (const RepresentativeKind kind : kKinds) {
    const Geometry geometry = Shape(kind, DType::kBF16);
    const std::vector<float> representatives = Representatives(0, 0, 30, 0, geometry);
    const ContextId id = Filled(geometry, representatives);
    std::vector<float> query = Query(2);
    for (float& value : query) value /= 32;  // logits of a few units
    const std::vector<double> scores =
        OracleScores(representatives, query, geometry, Scoring::kHeadVote);
    ASSERT_OK_AND_ASSIGN(
        const Selection all,
        store_->Select(id, 0, {.query = query, .k = 30, .scoring = Scoring::kHeadVote}));
    ASSERT_EQ(all.blocks.size(), 30u);
    for (const SelectedBlock& block : all.blocks) {
      EXPECT_NEAR(block.score, scores[block.index], 1e-5);
    }
  }
}

TEST_P(MemoryStoreContract, AForkHasTheGeometryOfItsParent) {
  const Geometry geometry = Shape(RepresentativeKind::kBounds, DType::kBF16);
  std::vector<float> representatives = Representatives(0, 0, 20, 0, geometry);
  const ContextId parent = Filled(geometry, representatives);
  ASSERT_OK_AND_ASSIGN(const ContextId fork, store_->Fork(parent));
  ASSERT_OK(store_->Drop(parent));
  const std::vector<float> more = Representatives(0, 20, 20, 1, geometry);
  ASSERT_OK(store_->Append(fork, 0, 20, Payloads(0, 20, 20, 1, geometry)));
  ASSERT_OK(store_->Publish(fork, 0, 20, more));
  representatives.insert(representatives.end(), more.begin(), more.end());
  const std::vector<float> query = Query(8);
  std::vector<int64_t> expected =
      OracleTopK(OracleScores(representatives, query, geometry, Scoring::kMean), 6);
  std::sort(expected.begin(), expected.end());
  ASSERT_OK_AND_ASSIGN(const Selection selection,
                       store_->Select(fork, 0, {.query = query, .k = 6}));
  EXPECT_EQ(Indices(selection), expected);
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
                             store_->Select(id, 0, {.query = query, .k = 10, .scoring = scoring}));
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
