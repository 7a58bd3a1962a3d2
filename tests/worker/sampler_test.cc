#include "worker/engine/sampler.h"

#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "tests/support/status_matchers.h"

namespace infllm::worker {
namespace {

using ::infllm::testing::StatusIs;
using ::testing::HasSubstr;

const std::vector<float> kLogits = {1.0f, 3.0f, 2.0f, 3.0f};

std::map<int32_t, double> Frequencies(const SamplingOptions& options, int draws = 20000) {
  Sampler sampler(options);
  std::map<int32_t, double> share;
  for (int i = 0; i < draws; ++i) share[sampler.Sample(kLogits)] += 1.0 / draws;
  return share;
}

TEST(NegativeLogLikelihoodTest, ATokenOutsideTheVocabularyIsImpossible) {
  double sum = 0;
  for (const float logit : kLogits) sum += std::exp(double{logit});
  EXPECT_NEAR(NegativeLogLikelihood(kLogits, 3), std::log(sum) - 3, 1e-12);
  for (const int32_t token : {-1, 4, 900000000}) {
    EXPECT_EQ(NegativeLogLikelihood(kLogits, token), std::numeric_limits<double>::infinity());
  }
}

TEST(SamplerTest, GreedyTakesTheFirstOfTheLikeliest) {
  Sampler sampler(SamplingOptions{});
  EXPECT_EQ(sampler.Sample(kLogits), 1);
}

TEST(SamplerTest, FollowsTheSoftmaxAtATemperature) {
  const auto share = Frequencies({.temperature = 2});
  double sum = 0;
  for (const float logit : kLogits) sum += std::exp(logit / 2);
  for (int32_t token = 0; token < 4; ++token) {
    EXPECT_NEAR(share.at(token), std::exp(kLogits[size_t(token)] / 2) / sum, 0.015) << token;
  }
}

TEST(SamplerTest, TopKKeepsTheLikeliest) {
  const auto share = Frequencies({.temperature = 5, .top_k = 3});
  EXPECT_EQ(share.count(0), 0u);
  EXPECT_EQ(share.size(), 3u);
}

TEST(SamplerTest, TopPKeepsTheFewestThatReachIt) {
  // At temperature 1 tokens 1 and 3 have 0.40 each, token 2 has 0.15.
  EXPECT_EQ(Frequencies({.temperature = 1, .top_p = 0.35}).size(), 1u);
  EXPECT_EQ(Frequencies({.temperature = 1, .top_p = 0.7}).size(), 2u);
  EXPECT_EQ(Frequencies({.temperature = 1, .top_p = 0.9}).size(), 3u);
}

TEST(SamplerTest, TheSeedDecides) {
  Sampler a({.temperature = 3, .seed = 5}), b({.temperature = 3, .seed = 5}),
      c({.temperature = 3, .seed = 6});
  std::vector<int32_t> from_a, from_b, from_c;
  for (int i = 0; i < 50; ++i) {
    from_a.push_back(a.Sample(kLogits));
    from_b.push_back(b.Sample(kLogits));
    from_c.push_back(c.Sample(kLogits));
  }
  EXPECT_EQ(from_a, from_b);
  EXPECT_NE(from_a, from_c);
}

TEST(SamplerTest, BadOptionsAreNamed) {
  EXPECT_THAT(SamplingOptions{.temperature = -1}.Validate(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("temperature is -1")));
  EXPECT_THAT(SamplingOptions{.temperature = NAN}.Validate(),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(SamplingOptions{.top_k = -2}.Validate(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("top-k-sampling is -2")));
  EXPECT_THAT(SamplingOptions{.top_p = 0}.Validate(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("top-p is 0")));
}

TEST(LikelihoodTest, IsTheLogSoftmaxEvenForHugeLogits) {
  EXPECT_NEAR(NegativeLogLikelihood(std::vector<float>{0, 0}, 1), std::log(2.0), 1e-12);
  EXPECT_NEAR(NegativeLogLikelihood(std::vector<float>{1e30f, 1e30f}, 0), std::log(2.0), 1e-12);
}

}  // namespace
}  // namespace infllm::worker
