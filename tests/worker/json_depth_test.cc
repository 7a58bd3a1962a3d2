#include "worker/model/json_depth.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace infllm::worker {
namespace {

using infllm::testing::StatusIs;
using ::testing::HasSubstr;

std::string Nested(int depth) { return std::string(depth, '[') + std::string(depth, ']'); }

TEST(JsonDepthTest, TheLimitIsTheDeepestThatPasses) {
  EXPECT_OK(CheckJsonDepth(Nested(kMaxJsonDepth)));
  EXPECT_THAT(CheckJsonDepth(Nested(kMaxJsonDepth + 1)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("64 levels at byte 64")));
}

TEST(JsonDepthTest, WhatIsClosedDoesNotCount) {
  std::string list = "[";
  for (int i = 0; i < 1000; ++i) list += R"({"a": [1]},)";
  EXPECT_OK(CheckJsonDepth(list));
}

TEST(JsonDepthTest, BracketsInStringsDoNotCount) {
  EXPECT_OK(CheckJsonDepth(R"({"\"[": ")" + std::string(1000, '{') + R"(\\", "b": 1})"));
  EXPECT_THAT(CheckJsonDepth(R"(["\\")" + Nested(kMaxJsonDepth)),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(JsonDepthTest, TextThatIsNoJsonIsLeftToTheParser) {
  for (const char* text : {"", "\"", "\"\\", "]]]]", "{[}", "nonsense"}) {
    EXPECT_OK(CheckJsonDepth(text)) << text;
  }
}

}  // namespace
}  // namespace infllm::worker
