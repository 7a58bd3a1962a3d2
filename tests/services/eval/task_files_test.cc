#include "services/eval/tasks/task_files.h"

#include <fstream>
#include <iterator>
#include <string>

#include "gmock/gmock.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::services {
namespace {

using ::infllm::testing::StatusIs;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Data(const std::string& name) { return INFLLM_TEST_DATA "/eval/" + name; }

std::string ReadRaw(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(ReadTaskFileTest, ReadsGzipAndPlainFilesAlike) {
  const testing::TempDir dir;
  ASSERT_OK_AND_ASSIGN(const std::string unpacked, ReadTaskFile(Data("kv-retrieval-3.jsonl.gz")));
  EXPECT_THAT(unpacked, ::testing::StartsWith("{\"ordered_kv_records\": [["));
  ASSERT_OK_AND_ASSIGN(const std::string read, ReadTaskFile(dir.Write("plain", unpacked)));
  EXPECT_EQ(read, unpacked);
}

TEST(ReadTaskFileTest, NamesAFileThatIsNotThere) {
  EXPECT_THAT(ReadTaskFile("/no/such/file"),
              StatusIs(absl::StatusCode::kNotFound,
                       AllOf(HasSubstr("/no/such/file"), HasSubstr("No such file"))));
}

TEST(ReadTaskFileTest, RefusesDamagedGzip) {
  const testing::TempDir dir;
  const std::string whole = ReadRaw(Data("kv-retrieval-3.jsonl.gz"));
  EXPECT_THAT(ReadTaskFile(dir.Write("cut.gz", whole.substr(0, whole.size() / 2))),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("cut.gz")));
  std::string flipped = whole;
  flipped[whole.size() / 2] = static_cast<char>(~flipped[whole.size() / 2]);
  EXPECT_THAT(ReadTaskFile(dir.Write("flipped.gz", flipped)),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("flipped.gz")));
  EXPECT_THAT(ReadTaskFile(dir.path()), StatusIs(absl::StatusCode::kDataLoss));
}

TEST(ParseLongChatLinesTest, ReadsThePublishedFile) {
  ASSERT_OK_AND_ASSIGN(const std::string text, ReadTaskFile(Data("longchat-3.jsonl.gz")));
  ASSERT_OK_AND_ASSIGN(const auto records, ParseLongChatLines(text));
  ASSERT_EQ(records.size(), 3u);
  EXPECT_THAT(records[0].before, ::testing::EndsWith("Now the record start:\n\n"));
  EXPECT_EQ(records[0].lines.size(), 200u);
  EXPECT_EQ(records[0].asked, 7u);
  EXPECT_EQ(records[0].name, "torpid-kid");
  EXPECT_EQ(records[0].answer, "2416");
  EXPECT_EQ(records[0].lines[7], "line torpid-kid: REGISTER_CONTENT is <2416>");
}

TEST(ParseLongChatLinesTest, AcceptsNumberedLines) {
  ASSERT_OK_AND_ASSIGN(
      const auto records,
      ParseLongChatLines(R"({"random_idx": [2, 1], "expected_number": 5, "prompt": )"
                         R"("Now the record start:\n\nline 1: REGISTER_CONTENT is <4>\n)"
                         R"(line 2: REGISTER_CONTENT is <5>\n\nNow the record is over."})"));
  EXPECT_EQ(records[0].asked, 1u);
  EXPECT_EQ(records[0].name, "2");
}

TEST(ParseLongChatLinesTest, NamesTheBadLineAndWhy) {
  const auto expect = [](const std::string& text, const std::string& why) {
    EXPECT_THAT(ParseLongChatLines(text), StatusIs(absl::StatusCode::kDataLoss, HasSubstr(why)));
  };
  const std::string start = "{\"random_idx\": [\"a\", 0], \"expected_number\": 5, \"prompt\": ";
  expect("", "holds no record");
  expect("\n\nnonsense", "line 3: is not a JSON object");
  expect("{}", "line 1: has no string \"prompt\"");
  expect(start + "\"hello\"}", "has no record between");
  expect(start + "\"Now the record start:\\n\\nline b: <5>\\nNow the record is over.\"}",
         "the record has no \"line a:\"");
  expect(start + "\"Now the record start:\\n\\nline a: <6>\\nNow the record is over.\"}",
         "does not say 5");
  expect("{\"random_idx\": [\"a\"], \"expected_number\": -5, \"prompt\": \"\"}",
         "has no number \"expected_number\"");
  expect("{\"random_idx\": [], \"expected_number\": 5, \"prompt\": \"\"}", "\"random_idx\"");
}

TEST(ParseKeyValueRecordsTest, ReadsThePublishedFile) {
  ASSERT_OK_AND_ASSIGN(const std::string text, ReadTaskFile(Data("kv-retrieval-3.jsonl.gz")));
  ASSERT_OK_AND_ASSIGN(const auto records, ParseKeyValueRecords(text));
  ASSERT_EQ(records.size(), 3u);
  EXPECT_EQ(records[0].pairs.size(), 75u);
  EXPECT_EQ(records[0].pairs[records[0].asked].first, "2a8d601d-1d69-4e64-9f90-8ad825a74195");
  EXPECT_EQ(records[0].pairs[records[0].asked].second, "bb3ba2a5-7de8-434b-a86e-a88bb9fa7289");
}

TEST(ParseKeyValueRecordsTest, NamesTheBadLineAndWhy) {
  const auto expect = [](const std::string& text, const std::string& why) {
    EXPECT_THAT(ParseKeyValueRecords(text), StatusIs(absl::StatusCode::kDataLoss, HasSubstr(why)));
  };
  const std::string start = R"({"key": "a", "value": "b", "ordered_kv_records": )";
  expect("[]", "line 1: is not a JSON object");
  expect(start + "[]}", "at least 2 pairs");
  expect(start + R"([["a", "b"], ["c"]]})", "[1] is not a pair of strings");
  expect(start + R"([["a", "b"], ["c", 5]]})", "[1] is not a pair of strings");
  expect(start + R"([["a", "x"], ["c", "d"]]})", "are none of");
}

TEST(ParseBabiTest, QuestionsCarryTheFactsBeforeThem) {
  ASSERT_OK_AND_ASSIGN(const std::string text, ReadTaskFile(Data("babi-qa1.txt")));
  ASSERT_OK_AND_ASSIGN(const auto questions, ParseBabi(text));
  ASSERT_EQ(questions.size(), 15u);
  EXPECT_EQ(questions[1].question, "Where is Mary?");
  EXPECT_EQ(questions[1].answer, "bathroom");
  EXPECT_THAT(questions[1].facts,
              ElementsAre("John travelled to the hallway.", "Mary journeyed to the bathroom.",
                          "Daniel went back to the bathroom.", "John moved to the bedroom."));
  EXPECT_THAT(questions[1].supporting, ElementsAre(1));
  EXPECT_EQ(questions[5].facts.front(), "Sandra travelled to the kitchen.");  // the next story
}

TEST(ParseBabiTest, ReadsEveryKindOfQuestion) {
  for (const char* const name : {"babi-qa3.txt", "babi-qa5.txt"}) {
    ASSERT_OK_AND_ASSIGN(const std::string text, ReadTaskFile(Data(name)));
    ASSERT_OK_AND_ASSIGN(const auto questions, ParseBabi(text));
    for (const BabiQuestion& question : questions) {
      EXPECT_FALSE(question.supporting.empty()) << name << ": " << question.question;
    }
  }
}

TEST(ParseBabiTest, NamesTheBadLineAndWhy) {
  const auto expect = [](const std::string& text, const std::string& why) {
    EXPECT_THAT(ParseBabi(text), StatusIs(absl::StatusCode::kDataLoss, HasSubstr(why)));
  };
  expect("", "holds no question");
  expect("1 A.\n2 B.\n", "holds no question");
  expect("John went.\n", "line 1: does not begin with a number");
  expect("1 A.\n3 B.\n", "line 2: is numbered 3 and follows 1");
  expect("2 A.\n", "line 1: is numbered 2 and follows 0");
  expect("1 A.\n2 Who?\t\t1\n", "line 2: the question has no answer");
  expect("1 A.\n2 Who?\tme\t2\n", "rests on \"2\"");
  expect("1 A.\n2 Who?\tme\t1 x\n", "rests on \"x\"");
  expect("1 Who?\tme\n", "no fact precedes");
  expect("1 A.\n99999999999999999999 B.\n", "line 2: does not begin");
}

}  // namespace
}  // namespace infllm::services
