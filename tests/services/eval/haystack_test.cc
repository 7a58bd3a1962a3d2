#include "services/eval/tasks/haystack.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"

namespace infllm::services {
namespace {

Haystack Running(std::string text) {
  return Haystack::Of(std::make_shared<const std::string>(std::move(text)));
}

std::string Hidden(const Haystack& haystack, int64_t bytes, double depth,
                   const std::string& before = "") {
  return haystack.Hide(before, haystack.Take(bytes), std::vector<Statement>{{"NEEDLE.", depth}})
      .text;
}

TEST(HaystackTest, NoiseIsWholeLines) {
  const Haystack noise = Haystack::Noise();
  EXPECT_EQ(noise.Take(89), "");
  EXPECT_EQ(noise.Take(90), kNoiseLine);
  const std::string three =
      std::string(kNoiseLine) + "\n" + std::string(kNoiseLine) + "\n" + std::string(kNoiseLine);
  EXPECT_EQ(noise.Take(3 * 90 + 60), three);
}

TEST(HaystackTest, BlankTextIsNoise) {
  EXPECT_EQ(Running(" \n\t ").Take(1000), Haystack::Noise().Take(1000));
  EXPECT_EQ(Haystack::Of(nullptr).Take(1000), Haystack::Noise().Take(1000));
}

TEST(HaystackTest, RunningTextIsRepeatedAndCutAtSentences) {
  const Haystack haystack = Running("  One two. Three four?\n");
  EXPECT_EQ(haystack.Take(8), "");
  EXPECT_EQ(haystack.Take(12), "One two.");
  EXPECT_EQ(haystack.Take(24), "One two. Three four?");
  EXPECT_EQ(haystack.Take(50), "One two. Three four?\n\nOne two. Three four?");
}

TEST(HaystackTest, EveryHaystackBeginsAlike) {
  const Haystack haystack = Running("A first one. And a second! \"A third?\" (A fourth.) Yes.");
  std::string last;
  for (int64_t bytes = 0; bytes < 300; ++bytes) {
    const std::string taken = haystack.Take(bytes);
    EXPECT_LE(taken.size(), static_cast<size_t>(bytes));
    EXPECT_THAT(taken, ::testing::StartsWith(last));
    last = taken;
  }
}

TEST(HaystackTest, NeedlesGoBetweenSentences) {
  const Haystack haystack =
      Running("He said: \"No.\" Mr and Mrs X\nwent on. \n\nA title\n\nThen came 3.14 of them! So.");
  EXPECT_EQ(Hidden(haystack, 73, 0), "NEEDLE. " + haystack.Take(73));
  EXPECT_EQ(
      Hidden(haystack, 73, 0.15),
      "He said: \"No.\" NEEDLE. Mr and Mrs X\nwent on. \n\nA title\n\nThen came 3.14 of them!");
  EXPECT_EQ(
      Hidden(haystack, 73, 0.5),
      "He said: \"No.\" Mr and Mrs X\nwent on. \n\nNEEDLE. A title\n\nThen came 3.14 of them!");
  EXPECT_EQ(
      Hidden(haystack, 73, 0.75),
      "He said: \"No.\" Mr and Mrs X\nwent on. \n\nA title\n\nNEEDLE. Then came 3.14 of them!");
  EXPECT_EQ(Hidden(haystack, 73, 1), haystack.Take(73) + " NEEDLE.");
}

TEST(HaystackTest, NeedlesGoBetweenLinesOfNoise) {
  const Haystack noise = Haystack::Noise();
  const std::string line(kNoiseLine);
  EXPECT_EQ(Hidden(noise, 300, 0), "NEEDLE.\n" + line + "\n" + line + "\n" + line);
  EXPECT_EQ(Hidden(noise, 300, 0.4), line + "\nNEEDLE.\n" + line + "\n" + line);
  EXPECT_EQ(Hidden(noise, 300, 1), line + "\n" + line + "\n" + line + "\nNEEDLE.");
}

TEST(HaystackTest, TextWithoutSentencesIsCutBetweenWordsAndCharacters) {
  std::string words;
  while (words.size() < 20000) words += "word ";
  EXPECT_EQ(Running(words).Take(10002), words.substr(0, 9999));
  std::string wide;
  while (wide.size() < 20000) wide += "\u4E2D";
  EXPECT_EQ(Running(wide).Take(10000).size(), 9999u);
  const std::string hidden = Hidden(Running(wide), 9999, 0.5);
  EXPECT_EQ(hidden.find(" NEEDLE. "), 4998u);
}

TEST(HaystackTest, WideSentencesNeedNoSpace) {
  const Haystack haystack = Running("\u4E00\u4E8C\u3002\u4E09\u56DB\u3002\u4E94\uFF1F\u516D");
  EXPECT_EQ(Hidden(haystack, 26, 0.4), "\u4E00\u4E8C\u3002 NEEDLE. \u4E09\u56DB\u3002\u4E94\uFF1F");
}

TEST(HaystackTest, StatementsOfOnePlaceStayInOrderAndAreFound) {
  const Haystack haystack = Running("One two. Three four. Five six. Seven eight.");
  const std::vector<Statement> statements = {
      {"C.", 1}, {"A.", 0.6}, {"B.", 0.6}, {"D.", 1}, {"Z.", 0}};
  const HiddenText hidden = haystack.Hide("Before:\n", haystack.Take(42), statements);
  EXPECT_EQ(hidden.text, "Before:\nZ. One two. Three four. A. B. Five six. C. D.");
  for (size_t i = 0; i < statements.size(); ++i) {
    const TextRange place = hidden.places[i];
    EXPECT_EQ(hidden.text.substr(place.begin, place.end - place.begin), statements[i].text);
  }
}

TEST(HaystackTest, StatementsStandAloneWithoutAHaystack) {
  const HiddenText hidden =
      Haystack::Noise().Hide("Before:\n", "", std::vector<Statement>{{"A.", 0.3}, {"B.", 1}});
  EXPECT_EQ(hidden.text, "Before:\nA.\nB.");
}

}  // namespace
}  // namespace infllm::services
