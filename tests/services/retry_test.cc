#include "services/memstore/retry.h"

#include <algorithm>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/fake_retry_clock.h"
#include "tests/support/status_matchers.h"

namespace infllm::services {
namespace {

using ::infllm::testing::FakeRetryClock;
using ::infllm::testing::StatusIs;
using ::testing::IsEmpty;

// Made again until the end of patience; the waits in between.
std::vector<absl::Duration> WaitsUntilGivenUp(const absl::Status& error,
                                              const RetryOptions& options) {
  FakeRetryClock clock;
  Retrier retrier(options, clock);
  EXPECT_EQ(retrier.Run([&] { return error; }), error);
  return clock.waits();
}

absl::Duration Sum(const std::vector<absl::Duration>& waits) {
  absl::Duration sum;
  for (const absl::Duration wait : waits) sum += wait;
  return sum;
}

TEST(RetryTest, WaitsDoubleUpToTheLongestAndAreCutAtRandom) {
  const RetryOptions options = {.unavailable_patience = absl::Seconds(10),
                                .first_wait = absl::Milliseconds(20),
                                .longest_wait = absl::Seconds(1),
                                .seed = 7};
  const auto waits = WaitsUntilGivenUp(absl::UnavailableError("x"), options);
  ASSERT_GT(waits.size(), 10u);
  for (size_t i = 0; i + 1 < waits.size(); ++i) {
    const absl::Duration whole =
        std::min(absl::Seconds(1), absl::Milliseconds(20) * static_cast<double>(1 << i));
    EXPECT_LE(waits[i], whole) << i;
    EXPECT_GE(waits[i], whole / 2) << i;
  }
  EXPECT_EQ(Sum(waits), options.unavailable_patience) << "the last wait ends with patience";
  EXPECT_EQ(WaitsUntilGivenUp(absl::UnavailableError("x"), options), waits);
  RetryOptions other = options;
  other.seed = 8;
  EXPECT_NE(WaitsUntilGivenUp(absl::UnavailableError("x"), other), waits);
}

TEST(RetryTest, PatienceDependsOnTheReason) {
  const RetryOptions options;
  EXPECT_EQ(Sum(WaitsUntilGivenUp(absl::UnavailableError("x"), options)), absl::Seconds(10));
  EXPECT_EQ(Sum(WaitsUntilGivenUp(absl::ResourceExhaustedError("x"), options)), absl::Seconds(3));
  EXPECT_EQ(Sum(WaitsUntilGivenUp(absl::AbortedError("x"), options)), absl::Seconds(3));
  for (const absl::Status& error :
       {absl::NotFoundError("x"), absl::DataLossError("x"), absl::InternalError("x"),
        absl::InvalidArgumentError("x"), absl::CancelledError("x"), absl::OkStatus()}) {
    EXPECT_THAT(WaitsUntilGivenUp(error, options), IsEmpty()) << error;
  }
}

TEST(RetryTest, CountsRetriesByReason) {
  FakeRetryClock clock;
  Retrier retrier({}, clock);
  const absl::Status attempts[] = {absl::UnavailableError("a"), absl::AbortedError("b"),
                                   absl::ResourceExhaustedError("c"), absl::UnavailableError("d"),
                                   absl::NotFoundError("e")};
  size_t next = 0;
  EXPECT_THAT(retrier.Run([&] { return attempts[next++]; }), StatusIs(absl::StatusCode::kNotFound));
  const RetryCounts counts = retrier.counts();
  EXPECT_EQ(counts.retries, 4);
  EXPECT_EQ(counts.unavailable, 2);
  EXPECT_EQ(counts.exhausted, 1);
  EXPECT_EQ(counts.damaged, 1);
}

TEST(RetryTest, AWaitThatIsCutShortEndsTheCall) {
  FakeRetryClock clock;
  clock.CutShort(2);
  Retrier retrier({}, clock);
  int attempts = 0;
  EXPECT_THAT(retrier.Run([&] {
    ++attempts;
    return absl::UnavailableError("x");
  }),
              StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(attempts, 2);
}

}  // namespace
}  // namespace infllm::services
