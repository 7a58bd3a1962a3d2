#include "services/eval/report/report.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"

namespace infllm::services {
namespace {

using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

std::string ReadData(const std::string& name) {
  std::ifstream file(std::string(INFLLM_TEST_DATA) + "/eval/" + name, std::ios::binary);
  EXPECT_TRUE(file.is_open()) << name;
  return {std::istreambuf_iterator<char>(file), {}};
}

Records ReadRecords() {
  auto records = ParseRecords(ReadData("records.jsonl"));
  EXPECT_OK(records);
  return records.ok() ? *records : Records{};
}

// What keeps `document` from being well-formed XML, or nothing. Knows as much of XML as a report
// uses: no comments, no CDATA, no processing instructions.
std::string XmlError(std::string document) {
  static const std::regex kTag(
      R"(<(/?)([A-Za-z][A-Za-z0-9]*)((?:\s+[A-Za-z:-]+="[^"<]*")*)\s*(/?)>)");
  static const std::regex kEntity(R"(&(amp|lt|gt|quot|#39);)");
  const std::string doctype = "<!DOCTYPE html>\n";
  if (!document.starts_with(doctype)) return "no doctype";
  document.erase(0, doctype.size());
  std::vector<std::string> open;
  size_t roots = 0;
  const auto text_error = [&](const std::string& text) -> std::string {
    if (text.find('<') != std::string::npos) return "stray < in " + text;
    const std::string rest = std::regex_replace(text, kEntity, "");
    if (rest.find('&') != std::string::npos) return "stray & in " + text;
    for (const char c : rest) {
      if (static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t')
        return "control character";
    }
    if (open.empty() && rest.find_first_not_of(" \n") != std::string::npos) {
      return "text outside of the root: " + text;
    }
    return "";
  };
  size_t at = 0;
  while (at < document.size()) {
    const size_t less = std::min(document.find('<', at), document.size());
    if (std::string error = text_error(document.substr(at, less - at)); !error.empty())
      return error;
    if (less == document.size()) break;
    const size_t greater = document.find('>', less);
    if (greater == std::string::npos) return "a tag without end";
    const std::string tag = document.substr(less, greater - less + 1);
    std::smatch match;
    if (!std::regex_match(tag, match, kTag)) return "not a tag: " + tag;
    if (std::string error = text_error(match[3]); !error.empty() && !open.empty()) return error;
    if (match[1].length() > 0) {
      if (open.empty() || open.back() != match[2]) return tag + " closes nothing";
      open.pop_back();
    } else if (match[4].length() == 0) {
      if (open.empty() && ++roots > 1) return "two roots";
      open.push_back(match[2]);
    }
    at = greater + 1;
  }
  return open.empty() ? "" : "not closed: " + open.back();
}

// Of every kind and every rare case, all its text hostile.
Records HostileRecords() {
  const std::string evil =
      "</td></title><script>alert('x')</script>\" onload=\"x\" | `a` ](x) \xFF\x01 & \n\r";
  Records records;
  AnswerRecord answer = {.config = evil,
                         .task = evil,
                         .length = 1024,
                         .sample = evil,
                         .label = evil,
                         .depth = 0.5,
                         .output = evil,
                         .answers = {evil, evil},
                         .retrieval = Retrieval{}};
  records.answers.push_back(answer);
  answer.task = "no depth" + evil;
  answer.depth = -1;
  records.answers.push_back(answer);
  records.skips = {{evil, evil, 2048, evil}, {evil, std::string(kPerplexityTask), 1, evil}};
  records.ingests = {{.config = evil, .task = evil, .length = 1024, .sample = evil}};
  records.perplexities = {
      {.config = evil, .text = evil, .length = 4, .begin = 0, .end = 1, .mean_nll = 1e308}};
  return records;
}

TEST(XmlErrorTest, FindsErrors) {
  const std::string start = "<!DOCTYPE html>\n";
  EXPECT_EQ(XmlError(start + "<a x=\"1\"><b/>&lt;</a>\n"), "");
  for (const char* bad : {"<a>", "</a>", "<a></b>", "<a>&</a>", "<a x=1></a>", "<a/>x", "<a><</a>",
                          "<a></a><a></a>", "<a x=\"<\"></a>", "<a x=\"1\"y=\"2\"></a>"}) {
    EXPECT_NE(XmlError(start + bad), "") << bad;
  }
}

TEST(MarkdownReportTest, IsAsTheGolden) {
  EXPECT_EQ(MarkdownReport(ReadRecords(), "Evaluation of a small model"), ReadData("report.md"));
}

TEST(HtmlReportTest, IsWellFormedAndSelfContained) {
  const std::string html = HtmlReport(ReadRecords(), "Evaluation");
  EXPECT_EQ(XmlError(html), "");
  // Nothing to load, nothing to run: the only address names a schema.
  EXPECT_THAT(html, Not(AnyOf(HasSubstr("<script"), HasSubstr("<img"), HasSubstr("<link"),
                              HasSubstr(" src="), HasSubstr("@import"), HasSubstr("javascript:"))));
  EXPECT_THAT(std::regex_replace(html, std::regex("http://www.w3.org/1999/xhtml"), ""),
              Not(HasSubstr("//")));
  EXPECT_THAT(html, HasSubstr("color-scheme: light dark"));
}

TEST(HtmlReportTest, ShowsEveryPart) {
  const std::string html = HtmlReport(ReadRecords(), "Evaluation");
  for (const char* part : {
           "title=\"infllm, 4K, depth 50%: 50.0%, n=2, 95% interval 9.5–90.5%\">50</td>",
           "class=\"skipped\" title=\"streaming-llm, 4K, depth 0%: not run: no time left\"",
           "<h3>Evidence found by length (across) and depth</h3>",
           "<h3>Score by length (across) and configuration</h3>",
           "<summary>Wrong answers: 2 of 2</summary>",
           "class=\"name\">infllm</text>",
           "perplexity by position",
           "found in 2 layers, best rank 3",
       }) {
    EXPECT_THAT(html, HasSubstr(part));
  }
}

TEST(HtmlReportTest, ForeignTextStaysText) {
  const std::string html = HtmlReport(HostileRecords(), "<script>1</script>");
  EXPECT_EQ(XmlError(html), "");
  EXPECT_THAT(html, Not(HasSubstr("<script")));
  EXPECT_THAT(html, HasSubstr("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot; onload"));
}

TEST(MarkdownReportTest, ForeignTextStaysInItsCell) {
  const std::string text = MarkdownReport(HostileRecords(), "a\n# b");
  EXPECT_THAT(text, Not(HasSubstr("<script")));
  EXPECT_THAT(text, HasSubstr("# a \\# b\n"));
  // Rows of one table have as many separators as its head.
  std::istringstream lines(text);
  std::string line;
  size_t columns = 0;
  while (std::getline(lines, line)) {
    if (!line.starts_with("|")) {
      columns = 0;
      continue;
    }
    size_t separators = 0;
    for (size_t i = 0; i < line.size(); ++i) {
      if (line[i] == '\\') {
        ++i;
      } else if (line[i] == '|') {
        ++separators;
      }
    }
    if (columns == 0) columns = separators;
    EXPECT_EQ(separators, columns) << line;
  }
}

TEST(ReportTest, NoRecordsAreSaidSo) {
  EXPECT_EQ(MarkdownReport({}, "Nothing"), "# Nothing\n\nNo records.\n");
  const std::string html = HtmlReport({}, "Nothing");
  EXPECT_EQ(XmlError(html), "");
  EXPECT_THAT(html, HasSubstr("No records."));
  const auto json = nlohmann::json::parse(JsonReport({}, "Nothing"));
  EXPECT_TRUE(json["tasks"].empty());
  EXPECT_TRUE(json["perplexities"].empty());
}

TEST(ReportTest, OnlySkipsAreReported) {
  Records records;
  records.skips = {{"full", "passkey", 1024, "out of memory"},
                   {"full", "passkey", 2048, "out of memory"},
                   {"full", std::string(kPerplexityTask), 2048, "too slow"}};
  const std::string text = MarkdownReport(records, "Skips");
  EXPECT_THAT(text, HasSubstr("| full | - <sup>1</sup> | - <sup>1</sup> | - |"));
  EXPECT_THAT(text, HasSubstr("<sup>1</sup> out of memory\n"));
  EXPECT_THAT(text, HasSubstr("| full | 2K | too slow |"));
  EXPECT_EQ(XmlError(HtmlReport(records, "Skips")), "");
}

TEST(ReportTest, NothingIsNotANumber) {
  Records records = HostileRecords();
  const double infinity = std::numeric_limits<double>::infinity();
  for (const double nll :
       {0.0, -1e-9, infinity, -infinity, 800.0, std::numeric_limits<double>::quiet_NaN()}) {
    records.perplexities.push_back(records.perplexities[0]);
    records.perplexities.back().text = "plain";
    records.perplexities.back().begin = static_cast<int64_t>(records.perplexities.size());
    records.perplexities.back().end = records.perplexities.back().begin + 1;
    records.perplexities.back().mean_nll = nll;
  }
  records.perplexities.push_back(records.perplexities.back());
  records.perplexities.back().text = "no number at all";
  const std::regex not_a_number(R"([\s"(>,]-?(nan|inf)[\s"),.<])");
  for (const std::string& report :
       {MarkdownReport(records, "x"), HtmlReport(records, "x"), JsonReport(records, "x")}) {
    std::smatch match;
    EXPECT_FALSE(std::regex_search(report, match, not_a_number)) << match.str();
  }
  EXPECT_EQ(XmlError(HtmlReport(records, "x")), "");
}

TEST(JsonReportTest, HasTheAggregatesByName) {
  const auto json = nlohmann::json::parse(JsonReport(ReadRecords(), "Evaluation"));
  EXPECT_EQ(json["title"], "Evaluation");
  EXPECT_THAT(json["configs"], ElementsAre("infllm", "streaming-llm", "full"));
  const auto& task = json["tasks"][0];
  EXPECT_EQ(task["task"], "passkey");
  EXPECT_EQ(task["effective_lengths"][0]["config"], "infllm");
  EXPECT_EQ(task["effective_lengths"][0]["length"], 1024);
  EXPECT_EQ(task["effective_lengths"][1]["length"], nullptr);
  const auto& cell = task["cells"][1];
  EXPECT_EQ(cell["config"], "infllm");
  EXPECT_EQ(cell["length"], 4096);
  EXPECT_EQ(cell["skipped"], nullptr);
  EXPECT_EQ(cell["score"]["n"], 4);
  EXPECT_EQ(cell["score"]["mean"], 0.75);
  EXPECT_EQ(cell["recall"]["mean"], 1);
  EXPECT_EQ(cell["depths"][1]["depth"], 0.5);
  EXPECT_EQ(cell["depths"][1]["score"]["mean"], 0.5);
  EXPECT_EQ(cell["reading"]["tokens_per_second"], 5030 / 2.25);
  EXPECT_EQ(cell["cache_hit_share"], 0.9);
  const auto& skipped = task["cells"][5];
  EXPECT_EQ(skipped["config"], "full");
  EXPECT_EQ(skipped["skipped"], "needs 2 TiB of memory, 64 GiB are free");
  EXPECT_EQ(skipped["score"], nullptr);
  const auto& point = json["perplexities"][0]["curves"][0]["points"][1];
  EXPECT_EQ(point["begin"], 1024);
  EXPECT_EQ(point["mean_nll"], 2.5);
  EXPECT_NEAR(point["perplexity"].get<double>(), 12.182493960703473, 1e-12);
}

}  // namespace
}  // namespace infllm::services
