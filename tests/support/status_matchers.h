// gmock matchers for absl::Status and StatusOr, which this Abseil does not ship.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"

namespace infllm::testing {

inline const absl::Status& GetStatus(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& GetStatus(const absl::StatusOr<T>& status_or) {
  return status_or.status();
}

MATCHER(IsOk, "is OK") {
  *result_listener << GetStatus(arg).ToString();
  return GetStatus(arg).ok();
}

// StatusIs(code, matcher of the message as std::string)
MATCHER_P2(StatusIs, code, message_matcher, "has the status code and a matching message") {
  const absl::Status& status = GetStatus(arg);
  *result_listener << status.ToString();
  return status.code() == code &&
         ::testing::ExplainMatchResult(::testing::Matcher<std::string>(message_matcher),
                                       std::string(status.message()), result_listener);
}
inline auto StatusIs(absl::StatusCode code) { return StatusIs(code, ::testing::_); }

#define ASSERT_OK(expr) ASSERT_THAT((expr), ::infllm::testing::IsOk())
#define EXPECT_OK(expr) EXPECT_THAT((expr), ::infllm::testing::IsOk())

#define INFLLM_TEST_CONCAT_INNER(a, b) a##b
#define INFLLM_TEST_CONCAT(a, b) INFLLM_TEST_CONCAT_INNER(a, b)
// ASSERT_OK_AND_ASSIGN(auto x, F());
#define ASSERT_OK_AND_ASSIGN(lhs, expr) \
  ASSERT_OK_AND_ASSIGN_IMPL(INFLLM_TEST_CONCAT(statusor_, __LINE__), lhs, expr)
#define ASSERT_OK_AND_ASSIGN_IMPL(statusor, lhs, expr) \
  auto statusor = (expr);                              \
  ASSERT_OK(statusor);                                 \
  lhs = std::move(statusor).value()

}  // namespace infllm::testing
