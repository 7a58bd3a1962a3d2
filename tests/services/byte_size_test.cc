#include "services/common/byte_size.h"

#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace infllm::services {
namespace {

using ::infllm::testing::StatusIs;
using ::testing::HasSubstr;

TEST(ParseByteSizeTest, ReadsNumbersWithAndWithoutUnit) {
  const std::pair<const char*, int64_t> cases[] = {
      {"0", 0},
      {"1048576", 1048576},
      {"17B", 17},
      {"1KiB", 1024},
      {"512MiB", int64_t{512} << 20},
      {"4GiB", int64_t{4} << 30},
      {"2TiB", int64_t{2} << 40},
      {"4 GiB", int64_t{4} << 30},
      {"4gib", int64_t{4} << 30},
      {"3kB", 3000},
      {"5MB", 5'000'000},
      {"6GB", 6'000'000'000},
      {"7TB", 7'000'000'000'000},
      {"9223372036854775807", std::numeric_limits<int64_t>::max()},
  };
  for (const auto& [text, bytes] : cases) {
    SCOPED_TRACE(text);
    ASSERT_OK_AND_ASSIGN(const int64_t parsed, ParseByteSize(text));
    EXPECT_EQ(parsed, bytes);
  }
}

TEST(ParseByteSizeTest, RefusesEverythingElseAndShowsIt) {
  for (const char* text : {"", " ", "GiB", "-1", "-4GiB", "+4", "4 ", "4  GiB", "1.5GiB", "4GiBs",
                           "4Gi", "4G", "0x10", "1e9", "4GiB ", "four"}) {
    SCOPED_TRACE(text);
    EXPECT_THAT(ParseByteSize(text),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("e.g. 512MiB")));
  }
}

TEST(ParseByteSizeTest, RefusesWhatInt64DoesNotHold) {
  for (const char* text : {"9223372036854775808", "99999999999999999999999GiB", "8388608TiB"}) {
    SCOPED_TRACE(text);
    EXPECT_THAT(ParseByteSize(text), StatusIs(absl::StatusCode::kOutOfRange, HasSubstr(text)));
  }
}

TEST(FormatByteSizeTest, PicksTheUnitAndAtMostOneDecimal) {
  EXPECT_EQ(FormatByteSize(0), "0 B");
  EXPECT_EQ(FormatByteSize(1023), "1023 B");
  EXPECT_EQ(FormatByteSize(1024), "1 KiB");
  EXPECT_EQ(FormatByteSize(1536), "1.5 KiB");
  EXPECT_EQ(FormatByteSize((1 << 20) - 1), "1 MiB");
  EXPECT_EQ(FormatByteSize(int64_t{4} << 30), "4 GiB");
  EXPECT_EQ(FormatByteSize(int64_t{5000} << 40), "5000 TiB");
}

}  // namespace
}  // namespace infllm::services
