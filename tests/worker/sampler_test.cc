#include "worker/engine/sampler.h"

#include <cmath>
#include <limits>
#include <vector>

#include "tests/support/status_matchers.h"

namespace infllm::worker {
namespace {

using ::infllm::testing::StatusIs;
using ::testing::HasSubstr;

TEST(DrawsTest, TheSeedDecidesAndAllAreBelowOne) {
  Draws a(5), b(5), c(6);
  std::vector<double> from_a, from_b, from_c;
  for (int i = 0; i < 1000; ++i) {
    from_a.push_back(a.Next());
    from_b.push_back(b.Next());
    from_c.push_back(c.Next());
    ASSERT_GE(from_a.back(), 0);
    ASSERT_LT(from_a.back(), 1);
  }
  EXPECT_EQ(from_a, from_b);
  EXPECT_NE(from_a, from_c);
  // The same on every machine: mt19937_64 is specified to the bit.
  EXPECT_EQ(Draws(1).Next(), static_cast<double>(2469588189546311528u >> 11) * 0x1p-53);
}

TEST(SamplingOptionsTest, ErrorsNameParameterAndLimit) {
  EXPECT_OK(SamplingOptions{}.Validate());
  EXPECT_THAT((SamplingOptions{.temperature = -1}.Validate()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("temperature is -1")));
  EXPECT_THAT((SamplingOptions{.temperature = std::numeric_limits<double>::quiet_NaN()}.Validate()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("temperature")));
  EXPECT_THAT((SamplingOptions{.top_k = -2}.Validate()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("top-k-sampling is -2")));
  EXPECT_THAT((SamplingOptions{.top_p = 0}.Validate()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("top-p is 0")));
}

}  // namespace
}  // namespace infllm::worker
