#include "services/eval/run/token_ranges.h"

#include <string>

#include "services/eval/run/evidence.h"
#include "tests/services/eval/small_model.h"
#include "tests/support/status_matchers.h"

namespace infllm::services {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using Ids = std::vector<int32_t>;

const worker::Tokenizer& SmallTokenizer() { return *SmallModel().model->tokenizer; }

std::unique_ptr<worker::Tokenizer> TestTokenizer(const std::string& name) {
  auto tokenizer =
      worker::LoadSentencePiece(INFLLM_TEST_DATA "/tokenizers/models/" + name + ".model");
  EXPECT_OK(tokenizer);
  return *std::move(tokenizer);
}

// A text with `passages` spread over it, and where they are.
struct Spread {
  std::string text;
  std::vector<TextRange> ranges;
};
Spread SpreadOut(const std::vector<std::string>& passages, const std::string& between) {
  Spread spread;
  for (const std::string& passage : passages) {
    for (int i = 0; i < 7; ++i) spread.text += between;
    const auto begin = static_cast<int64_t>(spread.text.size());
    spread.text += passage;
    spread.ranges.push_back({begin, static_cast<int64_t>(spread.text.size())});
    spread.text += ". ";
  }
  return spread;
}

// Each range's tokens hold the passage, and hardly more than it.
void ExpectFound(const worker::Tokenizer& tokenizer, const Ids& ids, const Spread& spread,
                 const std::vector<std::string>& passages) {
  const std::vector<TokenRange> found = LocateTokens(tokenizer, ids, spread.text, spread.ranges);
  ASSERT_THAT(found, SizeIs(passages.size()));
  for (size_t i = 0; i < found.size(); ++i) {
    ASSERT_LT(found[i].begin, found[i].end);
    const std::string text = tokenizer.Decode(std::span(ids).subspan(
        static_cast<size_t>(found[i].begin), static_cast<size_t>(found[i].end - found[i].begin)));
    EXPECT_THAT(text, HasSubstr(passages[i]));
    EXPECT_LE(text.size(), passages[i].size() + 12);
  }
}

TEST(LocateTokensTest, FindsPassagesWhereverTheyAre) {
  const std::vector<std::string> passages = {"The pass key is 48213", "Zoë paid 3 € to Tim",
                                             "日本語 here", "x", "the end"};
  const Spread spread = SpreadOut(passages, "Once upon a time there was a dog.\n\n");
  Ids ids = SmallTokenizer().Encode(spread.text);
  ExpectFound(SmallTokenizer(), ids, spread, passages);
  ids.insert(ids.begin(), SmallTokenizer().bos_id());
  ExpectFound(SmallTokenizer(), ids, spread, passages);
}

TEST(LocateTokensTest, ANormaliserThatChangesTheNumberOfCharactersIsFollowed) {
  const auto tokenizer = TestTokenizer("unigram-nfkc");
  const std::vector<std::string> passages = {"The key is 123", "the key is 456"};
  // Each ellipsis becomes three dots, each ligature three letters; runs of spaces collapse.
  const Spread spread = SpreadOut(passages, "So\u2026 o\uFB03ce    and\u2026\n");
  const Ids ids = tokenizer->Encode(spread.text);
  ASSERT_THAT(tokenizer->Decode(ids), HasSubstr("So... office and"));
  ExpectFound(*tokenizer, ids, spread, passages);
}

TEST(LocateTokensTest, TakesWholeTextsEmptyOnesAndNone) {
  const std::string text = "Once upon a time";
  const Ids ids = SmallTokenizer().Encode(text);
  const auto size = static_cast<int64_t>(text.size());
  const auto tokens = static_cast<int64_t>(ids.size());
  EXPECT_THAT(LocateTokens(SmallTokenizer(), ids, text, std::vector<TextRange>{{0, size}}),
              ElementsAre(TokenRange{0, tokens}));
  EXPECT_THAT(LocateTokens(SmallTokenizer(), ids, text, {}), SizeIs(0));
  EXPECT_THAT(LocateTokens(SmallTokenizer(), {}, "", std::vector<TextRange>{{0, 0}}),
              ElementsAre(TokenRange{0, 0}));
}

TEST(EncodeContinuationTest, IsWhatFollowsInTheWholeText) {
  for (const auto& [before, text] : std::vector<std::pair<std::string, std::string>>{
           {"Once upon a time.\n", "What is the key?"},
           {"Once upon a time.", "\n\nWhat is the key?"},
           {"Once upon a time.", " What is the key?"},
           {"There was a dog. 日本", "\nQ"},
           {"", "What"}}) {
    Ids joined = SmallTokenizer().Encode(before);
    const Ids more = EncodeContinuation(SmallTokenizer(), before, text);
    joined.insert(joined.end(), more.begin(), more.end());
    EXPECT_EQ(joined, SmallTokenizer().Encode(before + text)) << before << "|" << text;
  }
}

TEST(EncodeContinuationTest, ATokenOverTheSeamIsSplit) {
  // " little" is one token; the continuation cannot be the rest of it.
  const Ids ids = EncodeContinuation(SmallTokenizer(), "a litt", "le dog");
  EXPECT_EQ(ids, SmallTokenizer().Encode("le dog"));
}

TEST(EvidenceWatchTest, AHitNeedsEveryPassageThatHasLeftTheWindow) {
  const worker::AttentionOptions options = SmallFlags().attention;
  const std::vector<TokenRange> passages = {{10, 20}, {200, 210}, {900, 910}};
  EvidenceWatch watch(passages, options, 5);
  // Blocks are of 16 tokens after 8 sinks; the last passage is in the window of token 950.
  const auto observe = watch.observer();
  const auto select = [&](int64_t layer, std::vector<std::pair<int64_t, float>> blocks) {
    std::vector<memstore::SelectedBlock> selected;
    for (const auto& [index, score] : blocks) selected.push_back({.index = index, .score = score});
    observe(layer, 940, selected);
  };
  select(1, {{0, 0.5f}, {3, 0.9f}, {7, 0.7f}});
  EXPECT_FALSE(watch.Result(950, 1).hit());
  EXPECT_EQ(watch.Result(950, 1).best_rank, 3);
  select(4, {{12, 2.0f}, {13, 1.0f}});
  EXPECT_EQ(watch.Result(950, 1),
            (Retrieval{.in_window = false, .layers = {1, 4}, .best_rank = 1, .kept = 1}));
  EXPECT_THAT(watch.Describe(950), HasSubstr("retrieved in 2 of 5 layers, best rank 1"));
  // Further on the third is a block, too, that nobody selected.
  EXPECT_FALSE(watch.Result(2000, 1).hit());
  EXPECT_THAT(watch.Describe(2000), HasSubstr("block 0, block 12, blocks 55-56, was not"));
}

TEST(EvidenceWatchTest, KeptCountsTheTokensOfTheAnswer) {
  const TokenRange passage = {200, 210};  // block 12
  EvidenceWatch watch({&passage, 1}, SmallFlags().attention, 5);
  const auto observe = watch.observer();
  const auto select = [&](int64_t layer, int64_t first_position, int64_t block) {
    const memstore::SelectedBlock selected = {.index = block, .score = 1};
    observe(layer, first_position, {&selected, 1});
  };
  EXPECT_EQ(watch.Result(950, 4).kept, 0) << "nothing was retrieved yet";
  select(0, 900, 12);  // an exec block before the one of the question's last token
  select(0, 940, 3);
  select(1, 940, 12);  // one layer is enough
  select(0, 951, 12);
  select(1, 951, 3);
  select(0, 952, 3);
  select(0, 953, 3);
  select(0, 954, 12);  // after the answer
  EXPECT_EQ(watch.Result(950, 1).kept, 1);
  EXPECT_EQ(watch.Result(950, 4).kept, 0.5);
  EXPECT_EQ(watch.Result(950, 100).kept, 0.6) << "the answer ended early";
  EXPECT_EQ(watch.Result(250, 4).kept, 1) << "in the window";
}

TEST(EvidenceWatchTest, WhatIsInReachNeedsNoRetrieval) {
  const auto in_window = [](const std::string& policy, TokenRange passage, int64_t position) {
    return EvidenceWatch({&passage, 1}, SmallFlags(policy).attention, 5)
        .Result(position, 1)
        .in_window;
  };
  for (const char* policy : {"full", "lm-infinite", "streaming-llm", "infllm"}) {
    EXPECT_TRUE(in_window(policy, {2, 8}, 5000)) << policy;             // sinks
    EXPECT_TRUE(in_window(policy, {5000 - 63, 4960}, 5000)) << policy;  // the window's first
    EXPECT_EQ(in_window(policy, {100, 110}, 5000), std::string(policy) == "full");
  }
  EXPECT_FALSE(in_window("lm-infinite", {5000 - 64, 4960}, 5000));
  // The remainder: block 308 is 8 + 308 * 16 = 4936 up to 4952, and the window begins at 4937.
  EXPECT_TRUE(in_window("infllm", {4936, 4937}, 5000));
  EXPECT_FALSE(in_window("infllm", {4935, 4936}, 5000));
}

}  // namespace
}  // namespace infllm::services
