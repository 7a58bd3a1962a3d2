#include "services/eval/tasks/fit.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "tests/support/status_matchers.h"

namespace infllm::services {
namespace {

using ::infllm::testing::StatusIs;
using ::testing::AllOf;
using ::testing::HasSubstr;

// A token a byte: a sample of `text` bytes, a prompt of 10, and 5 to answer.
Sample Bytes(int64_t text) {
  Sample sample{.text = std::string(static_cast<size_t>(text), 'x'), .max_new_tokens = 5};
  sample.questions = {{.prompt = "short"}, {.prompt = "tenletters"}};
  return sample;
}

TaskRequest Request(int64_t length) {
  TaskRequest request{.length = length};
  request.count_tokens = [](std::string_view text) { return static_cast<int64_t>(text.size()); };
  return request;
}

constexpr SizeRange kSizes{.smallest = 0, .largest = 1 << 30, .step = 100};

TEST(FitSamplesTest, CountsTextLongestPromptAndAnswer) {
  EXPECT_EQ(TotalTokens(Request(0), Bytes(100)), 115);
  ASSERT_OK_AND_ASSIGN(const auto samples,
                       FitSamples(Request(5000), "a task", 3, kSizes,
                                  [](int64_t, int64_t size) { return Bytes(size); }));
  ASSERT_EQ(samples.size(), 3u);
  for (const Sample& sample : samples) {
    EXPECT_LE(sample.text.size(), 5000u - 15);
    EXPECT_GE(sample.text.size(), 5000u - 15 - 8);
  }
}

TEST(FitSamplesTest, DensityMayChangeAlongTheText) {
  // The second half of each text has three times the tokens of the first.
  TaskRequest request = Request(1000000);
  request.count_tokens = [](std::string_view text) {
    const auto bytes = static_cast<int64_t>(text.size());
    return bytes < 500000 ? bytes : 500000 + 3 * (bytes - 500000);
  };
  int builds = 0;
  ASSERT_OK_AND_ASSIGN(const auto samples,
                       FitSamples(request, "a task", 1, kSizes, [&](int64_t, int64_t size) {
                         ++builds;
                         return Bytes(size);
                       }));
  EXPECT_NEAR(static_cast<double>(TotalTokens(request, samples[0])), 1000000, 1000);
  EXPECT_LE(builds, 10);
}

TEST(FitSamplesTest, CoarseStepsComeAsCloseAsAStep) {
  ASSERT_OK_AND_ASSIGN(const auto samples,
                       FitSamples(Request(10000), "a task", 1, kSizes,
                                  [](int64_t, int64_t size) { return Bytes(size / 700 * 700); }));
  EXPECT_EQ(samples[0].text.size(), 14u * 700);
}

TEST(FitSamplesTest, AllTakeTheSizeThatFitsTheLongest) {
  ASSERT_OK_AND_ASSIGN(const auto samples,
                       FitSamples(Request(5000), "a task", 4, kSizes, [](int64_t i, int64_t size) {
                         return Bytes(size + (i == 2 ? 300 : 0));
                       }));
  ASSERT_EQ(samples.size(), 4u);
  EXPECT_EQ(samples[0].text.size() + 300, samples[2].text.size());
  EXPECT_LE(samples[2].text.size(), 5000u - 15);
  EXPECT_GE(samples[2].text.size(), 5000u - 15 - 40);
}

TEST(FitSamplesTest, TheLargestSizeIsALimit) {
  SizeRange sizes = kSizes;
  sizes.largest = 1234;
  ASSERT_OK_AND_ASSIGN(const auto samples,
                       FitSamples(Request(5000), "a task", 1, sizes,
                                  [](int64_t, int64_t size) { return Bytes(size); }));
  EXPECT_EQ(samples[0].text.size(), 1234u);
}

TEST(FitSamplesTest, SaysWhatTheSmallestTakes) {
  const auto fixed = [](int64_t i, int64_t size) { return Bytes(size + (i == 0 ? 50 : 100)); };
  EXPECT_THAT(
      FitSamples(Request(64), "a task", 1, kSizes, fixed),
      StatusIs(absl::StatusCode::kInvalidArgument,
               AllOf(HasSubstr("length 64 is too short for a task"), HasSubstr("take 65 tokens"))));
  // Only the second is too long.
  EXPECT_THAT(FitSamples(Request(80), "a task", 2, kSizes, fixed),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("take 115 tokens")));
}

}  // namespace
}  // namespace infllm::services
