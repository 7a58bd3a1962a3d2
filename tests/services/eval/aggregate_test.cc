#include "services/eval/report/aggregate.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace infllm::services {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::Eq;
using ::testing::IsEmpty;
using ::testing::Optional;

// The only answer of a sample with the given number.
AnswerRecord Answer(const std::string& config, int64_t length, int sample, double score) {
  return {.config = config,
          .task = "passkey",
          .length = length,
          .sample = std::to_string(sample),
          .score = score,
          .seconds = 2};
}

// Values computed with statsmodels 0.15.0: proportion_confint(x, n, method="wilson").
TEST(WilsonIntervalTest, IsAsComputedElsewhere) {
  struct Case {
    double mean;
    int64_t n;
    double low, high;
  };
  const Case cases[] = {
      {50.0 / 50.0, 50, 0.9286524008666412, 1.0},
      {0.0 / 7.0, 7, 2.7755575615628914e-17, 0.3543304350666875},
      {45.0 / 50.0, 50, 0.7863976856252034, 0.9565242350681095},
      {1.0 / 1.0, 1, 0.2065493143772374, 1.0},
      {123.0 / 590.0, 590, 0.17763431769722193, 0.24308649104666846},
      {2.0 / 8.0, 8, 0.071479212752109, 0.5907245696898311},
  };
  for (const Case& c : cases) {
    const Interval interval = WilsonInterval(c.mean, c.n);
    EXPECT_THAT(interval.low, DoubleNear(c.low, 1e-12)) << c.mean << " of " << c.n;
    EXPECT_THAT(interval.high, DoubleNear(c.high, 1e-12)) << c.mean << " of " << c.n;
  }
}

TEST(SummarizeTest, NothingGivesNothing) {
  const Summary summary = Summarize({});
  EXPECT_THAT(summary.configs, IsEmpty());
  EXPECT_THAT(summary.tasks, IsEmpty());
  EXPECT_THAT(summary.perplexities, IsEmpty());
}

TEST(SummarizeTest, MeansAreByConfigurationAndLength) {
  Records records;
  records.answers = {Answer("b", 2048, 0, 1), Answer("b", 2048, 1, 0.25), Answer("b", 1024, 0, 1),
                     Answer("a", 1024, 0, 0)};
  const Summary summary = Summarize(records);
  EXPECT_THAT(summary.configs, ElementsAre("b", "a"));
  ASSERT_EQ(summary.tasks.size(), 1u);
  const TaskSummary& task = summary.tasks[0];
  EXPECT_EQ(task.name, "passkey");
  EXPECT_THAT(task.configs, ElementsAre("b", "a"));
  EXPECT_THAT(task.lengths, ElementsAre(1024, 2048));
  EXPECT_THAT(task.depths, IsEmpty());
  EXPECT_EQ(task.cells[0][0].all.score.mean(), 1);
  EXPECT_EQ(task.cells[0][1].all.score.n, 2);
  EXPECT_EQ(task.cells[0][1].all.score.mean(), 0.625);
  EXPECT_THAT(task.cells[0][1].answer_seconds(), Optional(2.0));
  EXPECT_EQ(task.cells[1][0].all.score.mean(), 0);
  EXPECT_EQ(task.cells[1][1].all.score.n, 0);
  EXPECT_EQ(task.cells[0][0].all.recall.n, 0) << "retrieval is not known";
  EXPECT_EQ(task.wrong, 2);
}

TEST(SummarizeTest, ARecordMadeAgainReplacesTheFirst) {
  Records records;
  records.answers = {Answer("a", 1024, 0, 0), Answer("a", 1024, 1, 0), Answer("a", 1024, 0, 1)};
  IngestRecord ingest = {.config = "a", .task = "passkey", .length = 1024, .sample = "0"};
  ingest.tokens_read = 10;
  ingest.seconds = 1;
  records.ingests = {ingest, ingest};
  records.perplexities = {{.config = "a", .text = "t", .length = 9, .end = 9, .mean_nll = 1},
                          {.config = "a", .text = "t", .length = 9, .end = 9, .mean_nll = 2}};
  const Summary summary = Summarize(records);
  const Cell& cell = summary.tasks[0].cells[0][0];
  EXPECT_EQ(cell.all.score.n, 2);
  EXPECT_EQ(cell.all.score.mean(), 0.5);
  EXPECT_EQ(cell.texts, 1);
  EXPECT_EQ(cell.tokens_read, 10);
  ASSERT_EQ(summary.perplexities[0].curves.at(0).size(), 1u);
  EXPECT_EQ(summary.perplexities[0].curves.at(0).at({0, 9}), 2);
}

TEST(SummarizeTest, RetrievalIsOfTheAnswersThatTellIt) {
  Records records;
  records.answers.assign(5, Answer("a", 1024, 0, 1));
  for (int i = 0; i < 5; ++i) records.answers[i].question = i;
  records.answers[0].retrieval = Retrieval{.in_window = true, .kept = 1};
  records.answers[1].retrieval = Retrieval{.layers = {1, 2, 5}, .best_rank = 4, .kept = 0.75};
  records.answers[2].retrieval = Retrieval{.layers = {3}, .best_rank = 1, .kept = 0.25};
  records.answers[3].retrieval = Retrieval{};  // left the window and was not found
  const Summary summary = Summarize(records);
  const Cell& cell = summary.tasks[0].cells[0][0];
  EXPECT_EQ(cell.all.recall.n, 4);
  EXPECT_EQ(cell.all.recall.mean(), 0.75);
  EXPECT_EQ(cell.all.kept.n, 4);
  EXPECT_EQ(cell.all.kept.mean(), 0.5);
  EXPECT_THAT(cell.mean_layers(), Optional(DoubleNear(4.0 / 3, 1e-15)));
  EXPECT_THAT(cell.median_rank(), Optional(2.5));
}

TEST(SummarizeTest, ReadingIsSummedAndMemoryIsTheMost) {
  Records records;
  const IngestRecord ingest = {.config = "a",
                               .task = "passkey",
                               .length = 1024,
                               .sample = "0",
                               .tokens_read = 1000,
                               .seconds = 2,
                               .ram_bytes = 7,
                               .cold_bytes = 100,
                               .peak_rss_bytes = 50};
  IngestRecord shared = ingest;
  shared.sample = "1";
  shared.tokens_read = 200;
  shared.seconds = 1;
  shared.ram_bytes = 9;
  shared.cold_bytes = 90;
  records.ingests = {ingest, shared};
  records.answers = {Answer("a", 1024, 0, 1), Answer("a", 1024, 1, 1)};
  for (AnswerRecord& answer : records.answers) {
    answer.cache_hits = 30;
    answer.cache_misses = 10;
    answer.miss_bytes = 4096;
  }
  const Summary summary = Summarize(records);
  const Cell& cell = summary.tasks[0].cells[0][0];
  EXPECT_EQ(cell.texts, 2);
  EXPECT_THAT(cell.read_tokens_per_second(), Optional(400.0));
  EXPECT_EQ(cell.ram_bytes, 9);
  EXPECT_EQ(cell.cold_bytes, 100);
  EXPECT_EQ(cell.peak_rss_bytes, 50);
  EXPECT_THAT(cell.cache_hit_share(), Optional(0.75));
  EXPECT_EQ(cell.miss_bytes, 8192);
}

TEST(SummarizeTest, RatesWithoutAMeasureAreAbsent) {
  Records records;
  records.ingests = {{.config = "a", .task = "t", .length = 1, .sample = "0", .tokens_read = 5}};
  const Summary summary = Summarize(records);
  const Cell& cell = summary.tasks[0].cells[0][0];
  EXPECT_THAT(cell.read_tokens_per_second(), Eq(std::nullopt)) << "no time passed";
  EXPECT_THAT(cell.cache_hit_share(), Eq(std::nullopt));
  EXPECT_THAT(cell.mean_layers(), Eq(std::nullopt));
  EXPECT_THAT(cell.median_rank(), Eq(std::nullopt));
}

TEST(SummarizeTest, DepthsOfAGridAreItsRows) {
  Records records;
  for (const int64_t length : {1024, 2048}) {
    for (const double depth : {0.0, 1.0 / 40, 1.0}) {
      records.answers.push_back(Answer("a", length, static_cast<int>(records.answers.size()), 1));
      records.answers.back().depth = depth;
    }
  }
  records.answers.push_back(Answer("a", 1024, 100, 0));  // has no depth: in no row
  const Summary summary = Summarize(records);
  const TaskSummary& task = summary.tasks[0];
  EXPECT_THAT(task.depths, ElementsAre(0, 0.025, 1));
  EXPECT_EQ(task.cells[0][0].all.score.n, 4);
  for (size_t row = 0; row < 3; ++row) {
    EXPECT_EQ(task.cells[0][0].by_depth[row].score.n, 1);
    EXPECT_EQ(task.cells[0][0].by_depth[row].score.mean(), 1);
  }
}

TEST(SummarizeTest, ScatteredDepthsAreRoundedToTenths) {
  Records records;
  records.answers = {Answer("a", 1024, 0, 1), Answer("a", 1024, 1, 0), Answer("a", 2048, 2, 1)};
  records.answers[0].depth = 0.26;
  records.answers[1].depth = 0.34;
  records.answers[2].depth = 0.97;
  records.answers[2].retrieval = Retrieval{.layers = {0}, .best_rank = 1};
  const Summary summary = Summarize(records);
  const TaskSummary& task = summary.tasks[0];
  EXPECT_THAT(task.depths, ElementsAre(0.3, 1));
  EXPECT_EQ(task.cells[0][0].by_depth[0].score.n, 2);
  EXPECT_EQ(task.cells[0][0].by_depth[0].score.mean(), 0.5);
  EXPECT_EQ(task.cells[0][0].by_depth[1].score.n, 0);
  EXPECT_EQ(task.cells[0][1].by_depth[1].recall.mean(), 1);
}

TEST(SummarizeTest, ManyDepthsAreRoundedToTenths) {
  Records records;
  for (int i = 0; i <= 40; ++i) {
    records.answers.push_back(Answer("a", 1024, i, 1));
    records.answers.back().depth = i / 40.0;
  }
  const Summary summary = Summarize(records);
  EXPECT_EQ(summary.tasks[0].depths.size(), 11u);
  int64_t n = 0;
  for (const AnswerShares& row : summary.tasks[0].cells[0][0].by_depth) n += row.score.n;
  EXPECT_EQ(n, 41);
}

TEST(SummarizeTest, EffectiveLengthIsTheLastThatPasses) {
  Records records;
  const auto add = [&](const std::string& config, int64_t length, int right) {
    for (int i = 0; i < 1000; ++i) {
      records.answers.push_back(Answer(config, length, i, i < right ? 1 : 0));
    }
  };
  add("a", 1024, 1000);
  add("a", 2048, 856);  // just enough
  add("a", 4096, 855);
  add("b", 1024, 855);
  add("c", 4096, 900);
  const Summary summary = Summarize(records);
  EXPECT_THAT(summary.tasks[0].effective_lengths, ElementsAre(2048, 0, 4096));
}

TEST(SummarizeTest, OneLengthHasNoEffectiveLength) {
  Records records;
  records.answers = {Answer("a", 1024, 0, 1)};
  EXPECT_THAT(Summarize(records).tasks[0].effective_lengths, IsEmpty());
}

TEST(SummarizeTest, ASkipCountsUntilTheCellIsRun) {
  Records records;
  records.skips = {{"full", "passkey", 4096, "old"},
                   {"full", "passkey", 4096, "needs 2 TiB"},
                   {"a", "passkey", 1024, "out of date"},
                   {"full", "passkey", 8192, ""}};
  records.answers = {Answer("a", 1024, 0, 1)};
  const Summary summary = Summarize(records);
  const TaskSummary& task = summary.tasks[0];
  EXPECT_THAT(task.configs, ElementsAre("a", "full"));
  EXPECT_THAT(task.lengths, ElementsAre(1024, 4096, 8192));
  EXPECT_EQ(task.cells[0][0].skip_reason, "");
  EXPECT_EQ(task.cells[1][0].skip_reason, "") << "neither run nor skipped";
  EXPECT_EQ(task.cells[1][1].skip_reason, "needs 2 TiB");
  EXPECT_EQ(task.cells[1][2].skip_reason, "no reason given");
}

TEST(SummarizeTest, EachConfigurationShowsItsWorstAnswers) {
  Records records;
  for (int i = 0; i < 100; ++i) records.answers.push_back(Answer("broken", 1024, i, 0));
  records.answers[99].score = 0.5;
  records.answers.push_back(Answer("good", 1024, 0, 1));
  records.answers.push_back(Answer("good", 1024, 1, 0.75));
  records.answers.push_back(Answer("good", 1024, 2, 0.25));
  const Summary summary = Summarize(records);
  const TaskSummary& task = summary.tasks[0];
  EXPECT_EQ(task.wrong, 102);
  ASSERT_EQ(task.worst.size(), 20u);
  for (int i = 0; i < 18; ++i) EXPECT_EQ(task.worst[i], &records.answers[i]);
  EXPECT_EQ(task.worst[18], &records.answers[102]);
  EXPECT_EQ(task.worst[19], &records.answers[101]);
}

TEST(SummarizeTest, CurvesAreByTextAndLengthInOrderOfPosition) {
  Records records;
  const auto add = [&](const std::string& config, int64_t length, int64_t begin) {
    records.perplexities.push_back(
        {.config = config, .text = "book", .length = length, .begin = begin, .end = begin + 10});
  };
  add("b", 100, 10);
  add("a", 100, 0);
  add("b", 100, 0);
  add("a", 200, 0);
  records.skips = {{"full", std::string(kPerplexityTask), 100, "slow"}, {"a", "z", 1, "r"}};
  const Summary summary = Summarize(records);
  ASSERT_EQ(summary.perplexities.size(), 2u);
  const PerplexitySummary& first = summary.perplexities[0];
  EXPECT_EQ(first.length, 100);
  ASSERT_EQ(first.curves.size(), 2u);
  EXPECT_EQ(summary.configs[first.curves.begin()->first], "b");
  EXPECT_TRUE(first.curves.at(0).contains({0, 10}));
  EXPECT_TRUE(first.curves.at(0).contains({10, 20}));
  ASSERT_EQ(summary.tasks.size(), 1u);
  EXPECT_EQ(summary.tasks[0].name, "z");
  ASSERT_TRUE(summary.perplexity_runs.has_value());
  EXPECT_EQ(summary.perplexity_runs->cells[0][0].skip_reason, "slow");
}

}  // namespace
}  // namespace infllm::services
