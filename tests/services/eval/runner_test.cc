#include "services/eval/run/runner.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include "kernels/core/status_macros.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::services {
namespace {

using ::infllm::testing::StatusIs;
using ::infllm::testing::TempDir;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// Two samples of three questions; the answers are "0", "1" and "2".
class CountingTask final : public Task {
 public:
  std::string_view name() const override { return "counting"; }
  std::string_view summary() const override { return "for tests"; }
  absl::StatusOr<std::vector<Sample>> Make(const TaskRequest& request) const override {
    if (request.length < 10) return absl::InvalidArgumentError("length is too small");
    std::vector<Sample> samples;
    for (const char* id : {"a", "b"}) {
      Sample sample{.id = id, .text = std::string(size_t(request.length), 'x')};
      for (int q = 0; q < 3; ++q) {
        sample.questions.push_back({.prompt = std::to_string(q),
                                    .answers = {std::to_string(q)},
                                    .depth = 0.5 * q,
                                    .label = "l" + std::to_string(q)});
      }
      samples.push_back(std::move(sample));
    }
    return samples;
  }
};

// What all puppets of a test share.
struct Script {
  std::vector<std::string> asked;  // "config length sample prompt"
  int64_t opened = 0;
  int64_t cancel_after = -1;            // answers, over all
  absl::Status ask = absl::OkStatus();  // given after the first answer of a cell
  absl::Status sample_a;                // told after the first answer to sample a, if not OK
  absl::Status open;                    // by configuration "one"
  std::optional<std::string> cannot_read;
};

// Echoes the prompt.
class Puppet final : public Subject {
 public:
  Puppet(Script& script, std::string name, int64_t length)
      : script_(script), name_(std::move(name)), length_(length) {}
  int64_t CountTokens(std::string_view text) const override {
    return static_cast<int64_t>(text.size());
  }
  std::optional<std::string> CannotRead(int64_t) const override { return script_.cannot_read; }

  absl::Status Ask(std::span<const Sample> samples, const SubjectEvents& events,
                   const std::atomic<bool>*) override {
    for (size_t i = 0; i < samples.size(); ++i) {
      EXPECT_OK(events.on_read(i, {.tokens_read = 5, .seconds = 1}));
      for (size_t q = 0; q < samples[i].questions.size(); ++q) {
        if (script_.cancel_after == static_cast<int64_t>(script_.asked.size())) {
          return absl::CancelledError("interrupted");
        }
        const std::string& prompt = samples[i].questions[q].prompt;
        script_.asked.push_back(name_ + " " + std::to_string(length_) + " " + samples[i].id + " " +
                                prompt);
        INFLLM_RETURN_IF_ERROR(events.on_answer(
            i, q,
            {.output = prompt,
             .text_tokens = length_,
             .retrieval =
                 Retrieval{.in_window = false, .layers = {1}, .best_rank = 2, .kept = 0.75},
             .cache_misses = 4}));
        INFLLM_RETURN_IF_ERROR(script_.ask);
        if (samples[i].id == "a" && !script_.sample_a.ok()) {
          events.on_error(i, script_.sample_a);
          break;
        }
      }
    }
    return absl::OkStatus();
  }

  // The likelihood of a token is its position.
  absl::StatusOr<Reading> Perplexity(std::string_view, int64_t most_tokens,
                                     const std::function<void(int64_t, double)>& visit,
                                     const std::function<void(int64_t, int64_t)>&,
                                     const std::atomic<bool>*) override {
    script_.asked.push_back(name_ + " perplexity " + std::to_string(most_tokens));
    INFLLM_RETURN_IF_ERROR(script_.ask);
    for (int64_t i = 1; i < most_tokens; ++i) visit(i, static_cast<double>(i));
    return Reading{.tokens_read = most_tokens, .seconds = 1, .ram_bytes = 7};
  }

 private:
  Script& script_;
  const std::string name_;
  const int64_t length_;
};

class RunnerTest : public ::testing::Test {
 protected:
  EvalPlan Plan(std::vector<std::string> configurations = {"one", "two"}) {
    EvalPlan plan;
    plan.directory = dir_.file("out");
    plan.title = "a title";
    plan.settings = {{"seed", "1"}};
    for (const std::string& name : configurations) {
      plan.configurations.push_back(
          {.name = name,
           .settings = {{"top-k", "4"}},
           .open = [this, name](int64_t length) -> absl::StatusOr<std::unique_ptr<Subject>> {
             ++script_.opened;
             if (name == "one") INFLLM_RETURN_IF_ERROR(script_.open);
             return std::make_unique<Puppet>(script_, name, length);
           }});
    }
    plan.tasks = {&task_};
    plan.lengths = {100};
    plan.request.count_tokens = [](std::string_view text) {
      return static_cast<int64_t>(text.size());
    };
    return plan;
  }
  static absl::StatusOr<Records> RecordsOf(const EvalPlan& plan,
                                           const std::atomic<bool>* cancel = nullptr) {
    INFLLM_ASSIGN_OR_RETURN(EvalOutcome outcome, RunEval(plan, cancel));
    return std::move(outcome.records);
  }
  std::string Read(const std::string& name) {
    std::ifstream file(dir_.file("out/" + name), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  std::string path(const std::string& name) { return dir_.file("out/" + name); }

  const CountingTask task_;
  TempDir dir_;
  Script script_;
};

TEST_F(RunnerTest, RecordsEveryAnswerAndReports) {
  ASSERT_OK_AND_ASSIGN(const Records records, RecordsOf(Plan()));
  ASSERT_THAT(records.answers, SizeIs(12));
  const AnswerRecord& last = records.answers.back();
  EXPECT_EQ(last.config, "two");
  EXPECT_EQ(last.task, "counting");
  EXPECT_EQ(last.length, 100);
  EXPECT_EQ(last.sample, "b");
  EXPECT_EQ(last.question, 2);
  EXPECT_EQ(last.label, "l2");
  EXPECT_EQ(last.depth, 1);
  EXPECT_EQ(last.output, "2");
  EXPECT_THAT(last.answers, ElementsAre("2"));
  EXPECT_EQ(last.score, 1);
  EXPECT_EQ(last.text_tokens, 100);
  ASSERT_TRUE(last.retrieval.has_value());
  EXPECT_EQ(last.retrieval->best_rank, 2);
  EXPECT_EQ(last.retrieval->kept, 0.75);
  EXPECT_EQ(last.cache_misses, 4);
  EXPECT_THAT(records.ingests, SizeIs(4));
  EXPECT_GT(records.ingests[0].peak_rss_bytes, 0);
  ASSERT_OK_AND_ASSIGN(const Records written, ParseRecords(Read("records.jsonl")));
  EXPECT_THAT(written.answers, SizeIs(12));
  for (const char* report : {"report.md", "report.html", "results.json"}) {
    EXPECT_THAT(Read(report), HasSubstr("counting")) << report;
  }
}

TEST_F(RunnerTest, GoesOnWhereACutRunStopped) {
  ASSERT_OK_AND_ASSIGN(const Records whole, RecordsOf(Plan()));
  std::filesystem::remove_all(dir_.file("out"));
  // Cut before every single answer in turn.
  for (int64_t cut = 0; cut < 12; ++cut) {
    script_ = {.cancel_after = cut};
    EXPECT_THAT(RunEval(Plan(), nullptr),
                StatusIs(absl::StatusCode::kCancelled,
                         AllOf(HasSubstr(std::to_string(cut) + " answers are kept"),
                               HasSubstr(dir_.file("out")))));
    EXPECT_THAT(Read("report.md"), HasSubstr("a title"));
    script_.cancel_after = -1;
    ASSERT_OK_AND_ASSIGN(const Records resumed, RecordsOf(Plan()));
    EXPECT_THAT(script_.asked, SizeIs(12));
    EXPECT_EQ(std::set<std::string>(script_.asked.begin(), script_.asked.end()).size(), 12u);
    ASSERT_THAT(resumed.answers, SizeIs(12));
    for (size_t i = 0; i < 12; ++i) {
      EXPECT_EQ(ToJsonLine(resumed.answers[i]), ToJsonLine(whole.answers[i]));
    }
    EXPECT_THAT(resumed.ingests, SizeIs(4));
    std::filesystem::remove_all(dir_.file("out"));
  }
}

TEST_F(RunnerTest, WhatIsDoneIsNotEvenOpened) {
  ASSERT_OK(RunEval(Plan(), nullptr));
  script_ = {};
  ASSERT_OK_AND_ASSIGN(const Records records, RecordsOf(Plan()));
  EXPECT_EQ(script_.opened, 0);
  EXPECT_THAT(records.answers, SizeIs(12));
}

TEST_F(RunnerTest, ALineThatWasCutShortIsAskedAgain) {
  ASSERT_OK(RunEval(Plan({"one"}), nullptr));
  std::filesystem::resize_file(path("records.jsonl"), Read("records.jsonl").size() - 5);
  script_ = {};
  ASSERT_OK_AND_ASSIGN(const Records records, RecordsOf(Plan({"one"})));
  EXPECT_THAT(script_.asked, ElementsAre("one 100 b 2"));
  EXPECT_THAT(records.answers, SizeIs(6));
  ASSERT_OK_AND_ASSIGN(const Records written, ParseRecords(Read("records.jsonl")));
  EXPECT_THAT(written.answers, SizeIs(6));
}

TEST_F(RunnerTest, LengthsAndConfigurationsMayBeAdded) {
  ASSERT_OK(RunEval(Plan({"one"}), nullptr));
  EvalPlan plan = Plan({"three"});
  plan.lengths = {100, 200};
  plan.settings["text"] = "new";
  script_ = {};
  ASSERT_OK_AND_ASSIGN(const Records records, RecordsOf(plan));
  EXPECT_THAT(script_.asked, SizeIs(12));
  EXPECT_THAT(records.answers, SizeIs(18));
  // The manifest remembers all three.
  EvalPlan other = Plan({"one"});
  other.configurations[0].settings["top-k"] = "5";
  EXPECT_THAT(RunEval(other, nullptr), StatusIs(absl::StatusCode::kFailedPrecondition));
  plan.settings["text"] = "newer";
  EXPECT_THAT(RunEval(plan, nullptr), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(RunnerTest, OtherSettingsAreRefusedByName) {
  ASSERT_OK(RunEval(Plan(), nullptr));
  const std::string before = Read("records.jsonl") + Read("manifest.json");
  script_ = {};
  EvalPlan seed = Plan();
  seed.settings["seed"] = "2";
  EXPECT_THAT(RunEval(seed, nullptr),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr(dir_.file("out")), HasSubstr("seed 1"),
                             HasSubstr("now it is 2"), HasSubstr("--out"))));
  EvalPlan top = Plan();
  top.configurations[1].settings["top-k"] = "5";
  EXPECT_THAT(RunEval(top, nullptr),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr("top-k 4 (two)"), HasSubstr("now it is 5"))));
  EXPECT_EQ(script_.opened, 0);
  EXPECT_EQ(Read("records.jsonl") + Read("manifest.json"), before);
}

TEST_F(RunnerTest, SettingsWithoutResultsBindNobody) {
  ASSERT_OK(RecordLog::Open(dir_.file("out"), {.settings = {{"seed", "1"}}}).status());
  ASSERT_OK(RecordLog::Open(dir_.file("out"), {.settings = {{"seed", "2"}}}).status());
  EXPECT_THAT(Read("manifest.json"), AllOf(HasSubstr("\"2\""), Not(HasSubstr("\"1\""))));
}

TEST_F(RunnerTest, DamagedFilesAreRefused) {
  ASSERT_OK(RunEval(Plan(), nullptr));
  const std::string manifest = Read("manifest.json");
  for (const char* bad : {"", "[]", "{", R"({"version":2,"settings":{"a":1},"configurations":{}})",
                          R"({"version":2,"settings":{},"configurations":{"a":2}})"}) {
    std::ofstream(path("manifest.json")) << bad;
    EXPECT_THAT(RunEval(Plan(), nullptr),
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr("manifest.json")))
        << bad;
  }
  std::ofstream(path("manifest.json")) << R"({"version":9,"settings":{},"configurations":{}})";
  EXPECT_THAT(RunEval(Plan(), nullptr),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("another version")));
  std::filesystem::remove(path("manifest.json"));
  EXPECT_THAT(RunEval(Plan(), nullptr),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("no manifest.json")));
  std::ofstream(path("manifest.json")) << manifest;
  std::ofstream(path("records.jsonl")) << "nonsense\n";
  EXPECT_THAT(RunEval(Plan(), nullptr),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("records.jsonl")));
}

TEST_F(RunnerTest, OneProcessAtATime) {
  ASSERT_OK_AND_ASSIGN(const auto log, RecordLog::Open(dir_.file("out"), {}));
  EXPECT_THAT(RunEval(Plan(), nullptr),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("another process")));
}

TEST_F(RunnerTest, ADirectoryThatCannotBeMadeIsNamed) {
  EvalPlan plan = Plan();
  plan.directory = dir_.Write("file", "x") + "/out";
  EXPECT_THAT(RunEval(plan, nullptr),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr(plan.directory)));
}

TEST_F(RunnerTest, WhatCannotBeReadIsAResult) {
  script_.cannot_read = "too long";
  ASSERT_OK_AND_ASSIGN(const Records skipped, RecordsOf(Plan()));
  EXPECT_THAT(script_.asked, IsEmpty());
  ASSERT_THAT(skipped.skips, SizeIs(2));
  EXPECT_EQ(skipped.skips[1].config, "two");
  EXPECT_EQ(skipped.skips[1].reason, "too long");
  EXPECT_THAT(Read("report.md"), HasSubstr("too long"));
  ASSERT_OK_AND_ASSIGN(const Records again, RecordsOf(Plan()));
  EXPECT_THAT(again.skips, SizeIs(2));  // told once
  script_.cannot_read.reset();
  ASSERT_OK_AND_ASSIGN(const Records run, RecordsOf(Plan()));
  EXPECT_THAT(run.answers, SizeIs(12));
}

TEST_F(RunnerTest, RunningOutOfRoomLeavesTheSampleOpenAndTheOthersGoOn) {
  script_.sample_a = absl::ResourceExhaustedError("the disk is full");
  ASSERT_OK_AND_ASSIGN(const EvalOutcome outcome, RunEval(Plan(), nullptr));
  EXPECT_THAT(outcome.records.answers, SizeIs(8));  // of 12: two of each a are missing
  EXPECT_THAT(outcome.records.skips, IsEmpty());
  ASSERT_THAT(outcome.cells, SizeIs(2));
  EXPECT_EQ(outcome.cells[0].planned, 6);
  EXPECT_EQ(outcome.cells[0].answered, 4);
  EXPECT_EQ(outcome.cells[0].score, 4);
  EXPECT_EQ(outcome.cells[0].retrievals, 4);
  EXPECT_EQ(outcome.cells[0].hits, 4);
  EXPECT_THAT(CheckOutcome(outcome, {}),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr("one counting 100: 4 of 6 planned answers are there: "
                                       "sample a: the disk is full"),
                             HasSubstr("two counting 100: 4 of 6"))));

  script_.sample_a = absl::OkStatus();
  ASSERT_OK_AND_ASSIGN(const EvalOutcome rest, RunEval(Plan(), nullptr));
  EXPECT_THAT(rest.records.answers, SizeIs(12));
  EXPECT_THAT(script_.asked, SizeIs(12));
  EXPECT_OK(CheckOutcome(rest, {}));
  EXPECT_EQ(rest.cells[1].answered, 6);
}

TEST_F(RunnerTest, NoRoomToBeginIsNoResultAndTheOthersGoOn) {
  script_.open = absl::ResourceExhaustedError("no memory is left");
  ASSERT_OK_AND_ASSIGN(const EvalOutcome outcome, RunEval(Plan(), nullptr));
  EXPECT_THAT(outcome.records.answers, SizeIs(6));
  EXPECT_THAT(outcome.records.skips, IsEmpty());
  EXPECT_THAT(CheckOutcome(outcome, {}),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       "one counting 100: 0 of 6 planned answers are there: no memory is left"));
}

TEST_F(RunnerTest, OtherErrorsStop) {
  script_.ask = absl::DataLossError("a block is damaged");
  EXPECT_THAT(RunEval(Plan(), nullptr), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_EQ(script_.opened, 1);
  script_.ask = absl::OkStatus();
  ASSERT_OK_AND_ASSIGN(const Records rest, RecordsOf(Plan()));
  EXPECT_THAT(rest.answers, SizeIs(12));
  EXPECT_THAT(script_.asked, SizeIs(12));
}

TEST_F(RunnerTest, WhatIsKnownBeforehandIsNoError) {
  script_.cannot_read = "too long";
  ASSERT_OK_AND_ASSIGN(const EvalOutcome outcome, RunEval(Plan(), nullptr));
  ASSERT_THAT(outcome.cells, SizeIs(2));
  EXPECT_EQ(outcome.cells[0].planned, 6);
  EXPECT_EQ(outcome.cells[0].answered, 0);
  EXPECT_EQ(outcome.cells[0].skip_reason, "too long");
  EXPECT_OK(CheckOutcome(outcome, {}));
}

TEST_F(RunnerTest, APerplexityThatRunsOutOfRoomStaysOpen) {
  EvalPlan plan = Plan();
  plan.perplexity = {.name = "book", .text = std::make_shared<const std::string>(1000, 'x')};
  plan.tasks.clear();
  script_.ask = absl::ResourceExhaustedError("the disk is full");
  ASSERT_OK_AND_ASSIGN(const EvalOutcome outcome, RunEval(plan, nullptr));
  EXPECT_THAT(outcome.records.skips, IsEmpty());
  EXPECT_THAT(script_.asked, SizeIs(2));
  EXPECT_THAT(CheckOutcome(outcome, {}),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr("one perplexity 100: not read: the disk is full"),
                             HasSubstr("two perplexity 100"))));
  script_.ask = absl::OkStatus();
  ASSERT_OK_AND_ASSIGN(const EvalOutcome again, RunEval(plan, nullptr));
  EXPECT_OK(CheckOutcome(again, {}));
  EXPECT_THAT(again.records.perplexities, SizeIs(64));
}

TEST_F(RunnerTest, ATaskThatCannotBeMadeIsNamedWithItsLength) {
  EvalPlan plan = Plan();
  plan.lengths = {5};
  EXPECT_THAT(RunEval(plan, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("counting at length 5: length is too small")));
}

TEST_F(RunnerTest, ACancelBeforeACellStopsThere) {
  std::atomic<bool> cancel{true};
  EXPECT_THAT(RunEval(Plan(), &cancel), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(script_.opened, 0);
}

TEST_F(RunnerTest, PerplexityIsAveragedByPosition) {
  EvalPlan plan = Plan({"one"});
  plan.tasks.clear();
  plan.lengths = {11, 5000};  // more than the text has
  plan.perplexity = {
      .name = "book", .text = std::make_shared<const std::string>(1000, 'x'), .bins = 3};
  ASSERT_OK_AND_ASSIGN(const Records records, RecordsOf(plan));
  ASSERT_THAT(records.perplexities, SizeIs(6));
  // Positions 1..10 in three bins: 1-3, 4-6, 7-10.
  const std::vector<std::tuple<int64_t, int64_t, double>> expected = {
      {1, 4, 2.0}, {4, 7, 5.0}, {7, 11, 8.5}};
  for (size_t i = 0; i < 3; ++i) {
    const PerplexityRecord& record = records.perplexities[i];
    EXPECT_EQ(std::tuple(record.begin, record.end, record.mean_nll), expected[i]);
    EXPECT_EQ(record.length, 11);
    EXPECT_EQ(record.text, "book");
  }
  EXPECT_EQ(records.perplexities[5].end, 1000);
  EXPECT_EQ(records.ingests.at(1).ram_bytes, 7);

  // A cut between two bins: only what is missing is added.
  std::string lines = Read("records.jsonl");
  const size_t second = lines.find('\n') + 1;
  std::filesystem::resize_file(path("records.jsonl"), second);
  ASSERT_OK_AND_ASSIGN(const Records again, RecordsOf(plan));
  EXPECT_THAT(again.perplexities, SizeIs(6));
}

TEST_F(RunnerTest, PerplexityBinsMayDouble) {
  EvalPlan plan = Plan({"one"});
  plan.tasks.clear();
  plan.lengths = {1000};
  plan.perplexity = {
      .name = "book", .text = std::make_shared<const std::string>(1000, 'x'), .bins = 0};
  ASSERT_OK_AND_ASSIGN(const Records records, RecordsOf(plan));
  std::vector<int64_t> ends;
  for (const PerplexityRecord& record : records.perplexities) ends.push_back(record.end);
  EXPECT_THAT(ends, ElementsAre(256, 512, 1000));
  EXPECT_EQ(records.perplexities[0].begin, 1);
}

TEST_F(RunnerTest, WhoCannotTellLikelihoodsIsSkipped) {
  EvalPlan plan = Plan({"one"});
  plan.perplexity = {.name = "book", .text = std::make_shared<const std::string>(1000, 'x')};
  script_.ask = absl::UnimplementedError("no likelihoods");
  plan.tasks.clear();
  ASSERT_OK_AND_ASSIGN(const Records records, RecordsOf(plan));
  ASSERT_THAT(records.skips, SizeIs(1));
  EXPECT_EQ(records.skips[0].task, kPerplexityTask);
  plan.perplexity->text = std::make_shared<const std::string>("x");
  EXPECT_THAT(RunEval(plan, nullptr), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace infllm::services
