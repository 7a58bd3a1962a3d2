#include "services/eval/run/outcome.h"

#include "tests/support/status_matchers.h"

namespace infllm::services {
namespace {

using ::infllm::testing::StatusIs;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr Floors kFloors = {.score = 0.9, .recall = 0.5};

// Ten planned answers, all of them there and right, with their evidence found.
CellOutcome Cell(const std::string& config) {
  return {.config = config,
          .task = "passkey",
          .length = 4096,
          .planned = 10,
          .answered = 10,
          .score = 10,
          .retrievals = 10,
          .hits = 10};
}

void ExpectFailure(const CellOutcome& cell, const Floors& floors, const std::string& text) {
  EXPECT_THAT(CheckOutcome({.records = {}, .cells = {Cell("infllm/mean"), cell}}, floors),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr(text)));
}

TEST(OutcomeTest, WhatIsCompleteAndGoodEnoughHolds) {
  EXPECT_OK(CheckOutcome({.records = {}, .cells = {Cell("infllm/mean")}}, kFloors));
  CellOutcome just = Cell("infllm/mean");
  just.score = 9;
  just.hits = 5;
  EXPECT_OK(CheckOutcome({.records = {}, .cells = {just}}, kFloors));
}

TEST(OutcomeTest, AFloorNeedsEveryPlannedAnswer) {
  CellOutcome cell = Cell("infllm/mean");
  cell.length = 65536;
  // Those that are there are right.
  cell.answered = cell.retrievals = cell.hits = 9;
  cell.score = 9;
  ExpectFailure(cell, kFloors,
                "infllm/mean passkey 64K: 9 of 10 planned answers are there: no reason is known");
  cell.answered = cell.retrievals = cell.hits = 0;
  cell.score = 0;
  cell.skip_reason = "too long to read";
  ExpectFailure(cell, kFloors,
                "infllm/mean passkey 64K: 0 of 10 planned answers are there: too long to read");
  ExpectFailure(cell, {.score = 0.1}, "too long to read");
  ExpectFailure(cell, {.recall = 0.1}, "too long to read");
  EXPECT_OK(CheckOutcome({.records = {}, .cells = {cell}}, {}));
  cell.config = "full";
  EXPECT_OK(CheckOutcome({.records = {}, .cells = {Cell("infllm/mean"), cell}}, kFloors));
}

TEST(OutcomeTest, AnErrorFailsWithoutFloorsToo) {
  CellOutcome cell = Cell("full");
  cell.answered = 3;
  cell.error = absl::ResourceExhaustedError("sample 7: the disk is full");
  for (const Floors& floors : {Floors{}, kFloors}) {
    ExpectFailure(cell, floors,
                  "full passkey 4K: 3 of 10 planned answers are there: sample 7: the disk is full");
  }
}

TEST(OutcomeTest, FloorsAreOfTheMeanOverAConfiguration) {
  CellOutcome low = Cell("infllm/mean");
  low.score = 7.9;
  ExpectFailure(low, kFloors,
                "infllm/mean has a score of 89.5% over 20 answers, required are 90.0%");
  low.score = 8;
  EXPECT_OK(CheckOutcome({.records = {}, .cells = {Cell("infllm/mean"), low}}, kFloors));
  low.config = "infllm/head-vote";
  low.hits = 4;
  EXPECT_THAT(CheckOutcome({.records = {}, .cells = {Cell("infllm/mean"), low}}, kFloors),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr("infllm/head-vote has a score of 80.0% over 10"),
                             HasSubstr("; infllm/head-vote has a recall of 40.0% over 10"),
                             Not(HasSubstr("infllm/mean")))));
}

TEST(OutcomeTest, ARecallThatNobodyKnowsMissesItsFloor) {
  CellOutcome cell = Cell("endpoint");
  cell.retrievals = cell.hits = 0;
  ExpectFailure(cell, kFloors, "endpoint has a recall of nothing over 0 answers");
}

}  // namespace
}  // namespace infllm::services
