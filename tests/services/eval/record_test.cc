#include "services/eval/report/record.h"

#include <cmath>
#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace infllm::services {
namespace {

using ::infllm::testing::StatusIs;
using ::testing::AllOf;
using ::testing::HasSubstr;

AnswerRecord AnyAnswer() {
  return {.config = "infllm/head-vote",
          .task = "passkey",
          .length = 1048576,
          .sample = "1048576-0.30-2",
          .question = 3,
          .label = "lazy \"fox\"",
          .depth = 0.1 + 0.2,  // a double that a short decimal would not give back
          .output = "line\nline\t| naïve \xF0\x9F\x98\x80 <b>",
          .answers = {"16613", ""},
          .score = 1.0 / 3,
          .text_tokens = 1048000,
          .seconds = 1e-9,
          .retrieval = Retrieval{.layers = {0, 7}, .best_rank = 2, .kept = 0.625},
          .cache_hits = 90,
          .cache_misses = 10,
          .miss_bytes = int64_t{1} << 53};
}

PerplexityRecord AnyPerplexity() {
  return {.config = "full",
          .text = "a book",
          .length = 4096,
          .begin = 0,
          .end = 1024,
          .mean_nll = std::nextafter(2.5, 3.0)};
}

Records ParseOk(const std::string& lines) {
  auto records = ParseRecords(lines);
  EXPECT_OK(records);
  return records.ok() ? *records : Records{};
}

void ExpectSame(const AnswerRecord& a, const AnswerRecord& b) {
  EXPECT_EQ(a.config, b.config);
  EXPECT_EQ(a.task, b.task);
  EXPECT_EQ(a.length, b.length);
  EXPECT_EQ(a.sample, b.sample);
  EXPECT_EQ(a.question, b.question);
  EXPECT_EQ(a.label, b.label);
  EXPECT_EQ(a.depth, b.depth);
  EXPECT_EQ(a.output, b.output);
  EXPECT_EQ(a.answers, b.answers);
  EXPECT_EQ(a.score, b.score);
  EXPECT_EQ(a.text_tokens, b.text_tokens);
  EXPECT_EQ(a.seconds, b.seconds);
  EXPECT_EQ(a.retrieval, b.retrieval);
  EXPECT_EQ(a.cache_hits, b.cache_hits);
  EXPECT_EQ(a.cache_misses, b.cache_misses);
  EXPECT_EQ(a.miss_bytes, b.miss_bytes);
}

TEST(RecordTest, AnswersReadBackExactly) {
  const AnswerRecord full = AnyAnswer();
  AnswerRecord in_window = full;
  in_window.retrieval = Retrieval{.in_window = true};
  const std::string lines =
      ToJsonLine(full) + "\n" + ToJsonLine(AnswerRecord{}) + "\n" + ToJsonLine(in_window) + "\n";
  const Records records = ParseOk(lines);
  ASSERT_EQ(records.answers.size(), 3u);
  ExpectSame(records.answers[0], full);
  ExpectSame(records.answers[1], AnswerRecord{});
  ExpectSame(records.answers[2], in_window);
}

TEST(RecordTest, OtherKindsReadBackExactly) {
  const IngestRecord ingest = {.config = "c",
                               .task = "t",
                               .length = 1,
                               .sample = "s",
                               .tokens_read = 2,
                               .seconds = 0.1,
                               .ram_bytes = 3,
                               .cold_bytes = 4,
                               .peak_rss_bytes = 5};
  const SkipRecord skip = {.config = "c", .task = "t", .length = 9, .reason = "needs 2 TiB"};
  const PerplexityRecord perplexity = AnyPerplexity();
  const Records records =
      ParseOk(ToJsonLine(ingest) + "\n" + ToJsonLine(skip) + "\n" + ToJsonLine(perplexity) + "\n");
  ASSERT_EQ(records.ingests.size(), 1u);
  EXPECT_EQ(ToJsonLine(records.ingests[0]), ToJsonLine(ingest));
  EXPECT_EQ(records.ingests[0].peak_rss_bytes, 5);
  ASSERT_EQ(records.skips.size(), 1u);
  EXPECT_EQ(ToJsonLine(records.skips[0]), ToJsonLine(skip));
  EXPECT_EQ(records.skips[0].reason, "needs 2 TiB");
  ASSERT_EQ(records.perplexities.size(), 1u);
  EXPECT_EQ(records.perplexities[0].mean_nll, perplexity.mean_nll);
  EXPECT_EQ(records.perplexities[0].text, "a book");
  EXPECT_EQ(records.perplexities[0].end, 1024);
}

TEST(RecordTest, ALineIsOneLine) {
  EXPECT_EQ(ToJsonLine(AnyAnswer()).find('\n'), std::string::npos);
  EXPECT_EQ(ToJsonLine(AnyAnswer()).substr(0, 17), R"({"kind":"answer",)");
}

TEST(RecordTest, OutputsThatAreNoUtf8AreMended) {
  AnswerRecord answer = AnyAnswer();
  answer.output = "a\xC3(\xFF";
  const Records records = ParseOk(ToJsonLine(answer));
  ASSERT_EQ(records.answers.size(), 1u);
  EXPECT_EQ(records.answers[0].output, "a\xEF\xBF\xBD(\xEF\xBF\xBD");
}

TEST(RecordTest, APerplexityThatIsNoNumberIsKept) {
  PerplexityRecord record = AnyPerplexity();
  for (const double nll : {std::numeric_limits<double>::infinity(), std::nan("")}) {
    record.mean_nll = nll;
    const Records records = ParseOk(ToJsonLine(record));
    ASSERT_EQ(records.perplexities.size(), 1u);
    EXPECT_TRUE(std::isnan(records.perplexities[0].mean_nll));
  }
}

TEST(RecordTest, ALastLineCutAnywhereIsDropped) {
  const std::string whole = ToJsonLine(AnyPerplexity()) + "\n";
  const std::string last = ToJsonLine(AnyAnswer());
  for (size_t size = 0; size < last.size(); ++size) {
    const auto records = ParseRecords(whole + last.substr(0, size));
    ASSERT_OK(records) << size;
    EXPECT_EQ(records->perplexities.size(), 1u);
    EXPECT_TRUE(records->answers.empty()) << size;
  }
  EXPECT_EQ(ParseOk(whole + last).answers.size(), 1u);
}

TEST(RecordTest, ACutLineBeforeOthersIsAnError) {
  const std::string line = ToJsonLine(AnyAnswer());
  EXPECT_THAT(ParseRecords(line + "\n" + line.substr(0, 50) + "\n" + line + "\n"),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("line 2 ")));
}

TEST(RecordTest, BlankLinesUnknownFieldsAndNoRecordsAreFine) {
  const Records records = ParseOk(
      "\n  \r\n"
      R"({"note":[{}],"kind":"skip","config":"c","task":"t","length":1,"reason":"r"})"
      "\r\n\n");
  EXPECT_EQ(records.skips.size(), 1u);
  EXPECT_TRUE(ParseOk("").answers.empty());
}

TEST(RecordTest, BadLinesSayWhatIsWrong) {
  struct Case {
    std::string line, error;
  };
  const std::string skip = R"({"kind":"skip","config":"c","task":"t","length":)";
  const std::string perplexity = R"({"kind":"perplexity","config":"c","text":"t","length":9,)";
  std::string bad_layer = ToJsonLine(AnyAnswer());
  bad_layer.replace(bad_layer.find("[0,7]"), 5, "[0,-7]");
  std::string bad_score = ToJsonLine(AnyAnswer());
  bad_score.replace(bad_score.find("\"score\":0.3"), 11, "\"score\":1.3");
  const Case cases[] = {
      {"hello", "not JSON from byte 1 on"},
      {"[1]", "not a JSON object"},
      {"{\"kind\":\"skip\",}", "not JSON from byte 16 on"},
      {"{}", "has no field \"kind\""},
      {R"({"kind":1})", "field \"kind\" is 1, and must be a string"},
      {R"({"kind":"guess"})", "must be answer, perplexity, ingest or skip"},
      {skip + "1}", "has no field \"reason\""},
      {skip + "-1,\"reason\":\"\"}", "field \"length\" is -1, and must be a whole number from 0"},
      {skip + "1.5,\"reason\":\"\"}", "field \"length\" is 1.5, and must be a whole number"},
      {skip + "9007199254740993,\"reason\":\"\"}", "to 9007199254740992"},
      {skip + "18446744073709551615,\"reason\":\"\"}", "to 9007199254740992"},
      {skip + "1e999,\"reason\":\"\"}", "a number is out of range"},
      {skip + "1,\"reason\":\"" + std::string(1, '\xFF') + "\"}", "not JSON from byte"},
      {perplexity + R"("begin":5,"end":5,"mean_nll":1})",
       "field \"end\" is 5, and must be a whole "
       "number from 6"},
      {perplexity + R"("begin":5,"end":6,"mean_nll":"x"})", "must be a number or null"},
      {bad_layer, "\"retrieval\": field \"layers\" is -7, and must be an array of layers"},
      {bad_score, "and must be a number from 0 to 1"},
  };
  for (const Case& c : cases) {
    EXPECT_THAT(ParseRecords("\n" + c.line + "\n"),
                StatusIs(absl::StatusCode::kDataLoss,
                         AllOf(HasSubstr("line 2 of the records: "), HasSubstr(c.error))))
        << c.line;
  }
  EXPECT_THAT(ParseRecords(std::string(1000000, '[')),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("64 levels")));
  EXPECT_THAT(ParseRecords("hello"), StatusIs(absl::StatusCode::kDataLoss))
      << "not the beginning of a record";
}

TEST(RecordTest, AMessageShowsOnlyTheStartOfAValue) {
  const auto records =
      ParseRecords(R"({"kind":"skip","config":[")" + std::string(100000, 'x') + "\"]}\n");
  ASSERT_FALSE(records.ok());
  EXPECT_LT(records.status().message().size(), 300u);
}

}  // namespace
}  // namespace infllm::services
