#include "services/memstore/log.h"

#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "services/memstore/request_id.h"

namespace infllm::services {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;
using ::testing::SizeIs;

class LogTest : public ::testing::Test {
 protected:
  ~LogTest() override { std::fclose(file_); }

  std::vector<std::string> Lines() const {
    std::rewind(file_);
    std::string text;
    for (int c; (c = std::fgetc(file_)) != EOF;) text += static_cast<char>(c);
    return absl::StrSplit(text, '\n', absl::SkipEmpty());
  }

  std::FILE* const file_ = std::tmpfile();
};

// What a client might send to look like a line of the log, to move the terminal's cursor, to break
// a reader of JSON.
constexpr std::string_view kHostile =
    "a\"b\\c\n2026-01-31T12:00:00.000Z info "
    "commit\r\x1b[2J\x7f\xc2\x85\xff\xc0\x80\xed\xa0\x80\xe4";

TEST_F(LogTest, TextIsOneLineForEachEvent) {
  Log log(LogFormat::kText, LogLevel::kInfo, file_);
  log.Write(LogLevel::kInfo, "commit", {{"name", "dickens"}, {"tokens", int64_t{12}}});
  log.Write(LogLevel::kError, "odd", {{"seconds", 0.5}, {"message", kHostile}});
  const std::vector<std::string> lines = Lines();
  ASSERT_THAT(lines, SizeIs(2));
  EXPECT_THAT(lines[0], MatchesRegex("[0-9-]+T[0-9:.]+Z info commit name=\"dickens\" tokens=12"));
  EXPECT_THAT(lines[1], HasSubstr(" error odd seconds=0.5 message=\"a\\\"b\\\\c\\u000a2026"));
  for (const char c : lines[1]) EXPECT_TRUE(c >= 0x20 && c < 0x7f) << static_cast<int>(c);
}

TEST_F(LogTest, JsonParsesWhateverAValueHolds) {
  Log log(LogFormat::kJson, LogLevel::kInfo, file_);
  std::string all;
  for (int c = 0; c < 256; ++c) all += static_cast<char>(c);
  log.Write(LogLevel::kWarning, "call_failed",
            {{"hostile", kHostile}, {"all", all}, {"good", "Größe €"}, {"seconds", 1.0 / 0.0}});
  const std::vector<std::string> lines = Lines();
  ASSERT_THAT(lines, SizeIs(1));
  const auto json = nlohmann::json::parse(lines[0]);
  EXPECT_EQ(json["level"], "warning");
  EXPECT_EQ(json["event"], "call_failed");
  EXPECT_EQ(json["good"], "Größe €");
  EXPECT_THAT(json["hostile"].get<std::string>(), HasSubstr("a\"b\\c\n2026-01-31"));
}

TEST_F(LogTest, LongValuesAreCut) {
  Log log(LogFormat::kJson, LogLevel::kInfo, file_);
  log.Write(LogLevel::kInfo, "e", {{"v", std::string(1 << 20, 'x')}});
  ASSERT_THAT(Lines(), SizeIs(1));
  const std::string value = nlohmann::json::parse(Lines()[0])["v"];
  EXPECT_EQ(value, std::string(Log::kMaxValueBytes, 'x') + "...");
}

TEST_F(LogTest, LevelsBelowAreLeftOut) {
  Log log(LogFormat::kText, LogLevel::kWarning, file_);
  log.Write(LogLevel::kInfo, "no", {});
  log.WriteLimited(LogLevel::kInfo, "no", "kind", {}, absl::UnixEpoch());
  log.Write(LogLevel::kWarning, "yes", {});
  log.Write(LogLevel::kError, "yes", {});
  EXPECT_THAT(Lines(), SizeIs(2));
}

TEST_F(LogTest, ARepeatedEventIsLimitedAndWhatIsLeftOutIsCounted) {
  Log log(LogFormat::kText, LogLevel::kInfo, file_);
  absl::Time now = absl::UnixEpoch();
  for (int i = 0; i < 1000; ++i) {
    log.WriteLimited(LogLevel::kInfo, "call_failed", "Select", {}, now);
  }
  EXPECT_THAT(Lines(), SizeIs(5));
  log.WriteLimited(LogLevel::kInfo, "call_failed", "Fetch", {}, now);
  EXPECT_THAT(Lines(), SizeIs(6)) << "other kinds are still heard of";
  now += absl::Seconds(10);
  log.WriteLimited(LogLevel::kInfo, "call_failed", "Select", {}, now);
  ASSERT_THAT(Lines(), SizeIs(7));
  EXPECT_THAT(Lines().back(), EndsWith("suppressed=995"));
  now += absl::Hours(1);
  log.WriteLimited(LogLevel::kInfo, "call_failed", "Select", {}, now);
  EXPECT_THAT(Lines().back(), Not(HasSubstr("suppressed")));
}

TEST_F(LogTest, NoClientFillsADisk) {
  Log log(LogFormat::kText, LogLevel::kInfo, file_);
  absl::Time now = absl::UnixEpoch();
  constexpr int kSeconds = 1000;
  for (int i = 0; i < kSeconds * 300; ++i) {  // 300 kinds, once a second each
    log.WriteLimited(LogLevel::kInfo, "call_failed", absl::StrCat(i % 300), {}, now);
    now += absl::Milliseconds(1000) / 300;
  }
  EXPECT_THAT(Lines(), SizeIs(::testing::Le(50 + kSeconds)));
}

TEST(RequestId, IsMadeSafeAndBounded) {
  EXPECT_EQ(CleanRequestId("trace-7.a_b:c/d"), "trace-7.a_b:c/d");
  EXPECT_EQ(CleanRequestId("a b\n\"\x1b\xff="), "a_b_____");
  EXPECT_EQ(CleanRequestId(std::string(1000, 'x')), std::string(64, 'x'));
  EXPECT_EQ(CleanRequestId(""), "");
  EXPECT_THAT(NewRequestId(), MatchesRegex("[0-9a-f]+"));
  EXPECT_EQ(NewRequestId().size(), 16u);
  EXPECT_NE(NewRequestId(), NewRequestId());
}

}  // namespace
}  // namespace infllm::services
