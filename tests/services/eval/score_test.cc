// Predictions and what the published scorers make of them.
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "services/eval/tasks/sample.h"

namespace infllm::services {
namespace {

struct Case {
  std::string output;
  std::vector<std::string> answers;
  double score;
};

void ExpectScores(Metric metric, const std::vector<Case>& cases) {
  for (const Case& c : cases) {
    EXPECT_DOUBLE_EQ(Score(metric, c.output, c.answers), c.score)
        << "output <" << c.output << "> answers " << ::testing::PrintToString(c.answers);
  }
}

TEST(ScoreTest, FirstDigitsAreComparedAsAString) {
  ExpectScores(Metric::kFirstDigits, {
                                         {" 71432. Remember it.", {"71432"}, 1},
                                         {"71432", {"71432"}, 1},
                                         {"The pass key is 71432.", {"71432"}, 1},
                                         {"The 1st key is 71432", {"71432"}, 0},
                                         {"71432 or 12345", {"71432"}, 1},
                                         {"12345 or 71432", {"71432"}, 0},
                                         {"714321", {"71432"}, 0},
                                         {"7143", {"71432"}, 0},
                                         {"7 1432", {"71432"}, 0},
                                         {"-71432", {"71432"}, 1},
                                         {"07432", {"07432"}, 1},
                                         {"7432", {"07432"}, 0},
                                         {"71432.0", {"71432"}, 1},
                                         {"", {"71432"}, 0},
                                         {"none", {"71432"}, 0},
                                         {"\uFF17\uFF11 71432", {"71432"}, 1},  // full width
                                     });
}

TEST(ScoreTest, FirstIntegerIsComparedAsANumberWithoutItsSign) {
  ExpectScores(Metric::kFirstInteger, {
                                          {" 97", {"97"}, 1},
                                          {"The largest is 97, then 96", {"97"}, 1},
                                          {"96, 97", {"97"}, 0},
                                          {"097", {"97"}, 1},
                                          {"0", {"0"}, 1},
                                          {"000", {"0"}, 1},
                                          {"-5", {"5"}, 1},
                                          {"97.5", {"97"}, 0},
                                          {"97.", {"97"}, 1},
                                          {"97.x", {"97"}, 1},
                                          {"<2416>", {"2416"}, 1},
                                          {"1,000", {"1000"}, 0},
                                          {"", {"97"}, 0},
                                          {"ninety-seven", {"97"}, 0},
                                      });
}

TEST(ScoreTest, WordMatchReplacesPunctuationAndSplitsAtUnicodeSpace) {
  const std::string uuid = "703a7ce5-f17f-4e6d-b895-5836ba5ec71c";
  ExpectScores(Metric::kWordMatch, {
                                       {" \"" + uuid + "\"", {uuid}, 1},
                                       {"{'value':" + uuid + "}\n", {uuid}, 1},
                                       {"It is " + uuid + ".", {uuid}, 1},
                                       {uuid, {uuid}, 1},
                                       {"(" + uuid + ")", {uuid}, 0},  // parentheses stay
                                       {uuid + ";", {uuid}, 0},
                                       {"x" + uuid, {uuid}, 0},
                                       {uuid.substr(0, 35), {uuid}, 0},
                                       {"703A7CE5-F17F-4E6D-B895-5836BA5EC71C", {uuid}, 0},
                                       {"value\u00A0" + uuid + "\u3000end", {uuid}, 1},
                                       {"value\u200B" + uuid, {uuid}, 0},  // no white space
                                       {"", {uuid}, 0},
                                       {"one two", {""}, 0},
                                   });
}

TEST(ScoreTest, AllSubstringsGivesTheShareThatIsMet) {
  ExpectScores(Metric::kAllSubstrings,
               {
                   {" 1234567, 7654321 and 1111111", {"1234567", "7654321", "1111111"}, 1},
                   {" 1234567, 7654321", {"1234567", "7654321", "1111111", "2222222"}, 0.5},
                   {"11234567", {"1234567"}, 1},
                   {"VAR abcde", {"ABCDE"}, 1},
                   {"1,234,567", {"1234567"}, 0},
                   {"", {"1234567"}, 0},
                   {"1", {}, 0},
               });
}

TEST(ScoreTest, AnySubstringAsksForOne) {
  ExpectScores(Metric::kAnySubstring, {
                                          {"It was PARIS, in France", {"paris", "lutetia"}, 1},
                                          {"Comparison", {"paris"}, 1},
                                          {"London", {"paris", "lutetia"}, 0},
                                          {"", {"paris"}, 0},
                                      });
}

TEST(ScoreTest, FirstSentenceIgnoresWhatFollows) {
  ExpectScores(Metric::kFirstSentence,
               {
                   {" Hallway.", {"hallway"}, 1},
                   {"The most recent location is hallway", {"hallway"}, 1},
                   {"John is in the office. Or the hallway.", {"hallway"}, 0},
                   {"office <context> hallway", {"hallway"}, 0},
                   {"office<example>hallway", {"hallway"}, 0},
                   {"fred\nQuestion: hallway", {"Fred"}, 1},
                   {"", {"hallway"}, 0},
               });
}

}  // namespace
}  // namespace infllm::services
