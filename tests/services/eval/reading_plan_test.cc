#include "services/eval/run/reading_plan.h"

#include <algorithm>
#include <random>
#include <set>

#include "gmock/gmock.h"

namespace infllm::services {
namespace {

using Ids = std::vector<int32_t>;

// Follows the plan as a reader would: checks that each text is read from its first token to its
// last, and counts the states that exist at a time.
class Reader {
 public:
  Reader(const std::vector<Ids>& texts, int64_t alignment) : texts_(texts), alignment_(alignment) {}

  void Read(const ReadingNode& node, Ids read) {
    ASSERT_EQ(node.begin, static_cast<int64_t>(read.size()));
    ASSERT_LE(node.begin, node.end);
    const Ids& text = texts_[node.text];
    ASSERT_LE(node.end, static_cast<int64_t>(text.size()));
    read.insert(read.end(), text.begin() + node.begin, text.begin() + node.end);
    tokens_ += node.end - node.begin;
    if (node.children.empty()) {
      EXPECT_EQ(read, text);
      EXPECT_TRUE(seen_.insert(node.text).second);
      return;
    }
    EXPECT_EQ(node.end % alignment_, 0);
    EXPECT_GE(node.children.size(), 2u);
    for (size_t i = 0; i < node.children.size(); ++i) {
      const bool last = i + 1 == node.children.size();
      states_ += last ? 0 : 1;
      most_states_ = std::max(most_states_, states_);
      Read(node.children[i], read);
      states_ -= last ? 0 : 1;
    }
  }

  size_t seen() const { return seen_.size(); }
  int64_t tokens() const { return tokens_; }
  int most_states() const { return most_states_; }

 private:
  const std::vector<Ids>& texts_;
  const int64_t alignment_;
  std::set<size_t> seen_;
  int64_t tokens_ = 0;
  int states_ = 1, most_states_ = 1;
};

TEST(ReadingPlanTest, ReadsEachTextOnceInFewStates) {
  std::mt19937 random(7);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  for (int round = 0; round < 300; ++round) {
    std::vector<Ids> texts;
    const int count = 1 + below(20);
    for (int i = 0; i < count; ++i) {
      Ids text;
      if (i > 0) {  // begins as an earlier one
        const Ids& other = texts[static_cast<size_t>(below(i))];
        text.assign(other.begin(), other.begin() + below(static_cast<int>(other.size()) + 1));
      }
      for (int more = below(40); more > 0; --more) text.push_back(below(3));
      texts.push_back(std::move(text));
    }
    const int64_t alignment = 1 + below(9);
    const ReadingNode plan = PlanReading(texts, alignment);
    Reader reader(texts, alignment);
    reader.Read(plan, {});
    EXPECT_EQ(reader.seen(), texts.size());
    EXPECT_EQ(reader.tokens(), plan.TokensToRead());
    int most = 2;
    for (int n = count; n > 1; n /= 2) ++most;
    EXPECT_LE(reader.most_states(), most);
  }
}

TEST(ReadingPlanTest, SharesWholeChunksOnly) {
  const Ids a(100, 1);
  Ids b = a;
  b[70] = 2;
  Ids c = a;
  c[33] = 2;
  EXPECT_EQ(PlanReading(std::vector<Ids>{a, b, c}, 16).TokensToRead(), 100 + 36 + 68);
  EXPECT_EQ(PlanReading(std::vector<Ids>{a, b, c}, 128).TokensToRead(), 300);
  EXPECT_EQ(PlanReading(std::vector<Ids>{a, a}, 20).TokensToRead(), 100);
  EXPECT_EQ(PlanReading(std::vector<Ids>{{}, a}, 20).TokensToRead(), 100);
}

// A needle moved through a text: one state follows the text, another each of its branches.
TEST(ReadingPlanTest, ANeedleAtEveryDepthNeedsTwoStates) {
  std::vector<Ids> texts;
  for (size_t depth = 0; depth < 50; ++depth) {
    Ids text(500, 1);
    text[depth * 10] = 2;
    texts.push_back(std::move(text));
  }
  Reader reader(texts, 10);
  reader.Read(PlanReading(texts, 10), {});
  EXPECT_EQ(reader.most_states(), 2);
  int64_t tokens = 500;                                                     // one text whole
  for (int64_t depth = 0; depth < 49; ++depth) tokens += 500 - depth * 10;  // from its needle on
  EXPECT_EQ(reader.tokens(), tokens);
}

}  // namespace
}  // namespace infllm::services
