#include "services/eval/report/text.h"

#include <cmath>
#include <string>

#include "gtest/gtest.h"

namespace infllm::services {
namespace {

TEST(ReportTextTest, LengthsAreShortWhereThatIsExact) {
  EXPECT_EQ(FormatLength(0), "0");
  EXPECT_EQ(FormatLength(1000), "1,000");
  EXPECT_EQ(FormatLength(1024), "1K");
  EXPECT_EQ(FormatLength(1025), "1,025");
  EXPECT_EQ(FormatLength(131072), "128K");
  EXPECT_EQ(FormatLength(128000), "128,000") << "and not 125K";
  EXPECT_EQ(FormatLength(1048576), "1M");
  EXPECT_EQ(FormatLength(1048576 + 524288), "1536K");
  EXPECT_EQ(FormatLength(10000000), "10,000,000");
}

TEST(ReportTextTest, NumbersAreGrouped) {
  EXPECT_EQ(FormatNumber(0), "0");
  EXPECT_EQ(FormatNumber(0.25), "0.25");
  EXPECT_EQ(FormatNumber(3.14159), "3.14");
  EXPECT_EQ(FormatNumber(999.4), "999");
  EXPECT_EQ(FormatNumber(999.6), "1,000");
  EXPECT_EQ(FormatNumber(1234567), "1,234,567");
  EXPECT_EQ(FormatNumber(-1234), "-1,234");
  EXPECT_EQ(FormatNumber(1e300), "1e+300");
}

TEST(ReportTextTest, PercentAndPerplexity) {
  EXPECT_EQ(FormatPercent(1), "100");
  EXPECT_EQ(FormatPercent(0), "0.0");
  EXPECT_EQ(FormatPercent(0.9996), "100");
  EXPECT_EQ(FormatPercent(0.9994), "99.9");
  EXPECT_EQ(FormatPerplexity(0), "1.00");
  EXPECT_EQ(FormatPerplexity(std::log(12.345)), "12.35");
  EXPECT_EQ(FormatPerplexity(std::log(54321)), "54,321");
  EXPECT_EQ(FormatPerplexity(1e300), "> 1e9");
  EXPECT_EQ(FormatPerplexity(std::nan("")), "not a number");
}

TEST(ReportTextTest, ShortenCountsCharacters) {
  EXPECT_EQ(Shorten("", 3), "");
  EXPECT_EQ(Shorten("äöü", 3), "äöü");
  EXPECT_EQ(Shorten("äöüß", 3), "äö…");
  EXPECT_EQ(Shorten("\xFF\xFE", 3), "\uFFFD\uFFFD");
}

TEST(ReportTextTest, XmlTextHasNoMarkupAndNoForbiddenCharacters) {
  EXPECT_EQ(EscapeXml("<a href=\"x\">&'"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;");
  EXPECT_EQ(EscapeXml("a\tb\r\nc\rd\n"), "a\tb\nc\nd\n");
  EXPECT_EQ(EscapeXml(std::string_view("\0\x1B\x7F", 3)), "\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(EscapeXml("\xC2\x85\xEF\xBF\xBF"), "\uFFFD\uFFFD") << "U+0085 and U+FFFF";
  EXPECT_EQ(EscapeXml("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD") << "a surrogate";
  EXPECT_EQ(EscapeXml("naïve 😀"), "naïve 😀");
}

TEST(ReportTextTest, MarkdownTextHasNoMarkup) {
  EXPECT_EQ(EscapeMarkdown("a|b\nc"), "a\\|b c");
  EXPECT_EQ(EscapeMarkdown("<b> & `x` *y* [z](u) $m$ \\"),
            "&lt;b&gt; &amp; \\`x\\` \\*y\\* \\[z\\](u) \\$m\\$ \\\\");
  EXPECT_EQ(EscapeMarkdown("niah_single_1 _x_"), "niah_single_1 \\_x\\_");
}

}  // namespace
}  // namespace infllm::services
