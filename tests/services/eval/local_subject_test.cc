#include "services/eval/run/local_subject.h"

#include <string>
#include <vector>

#include "memstore/in_process_store.h"
#include "tests/services/eval/small_model.h"
#include "tests/support/status_matchers.h"
#include "worker/engine/engine.h"

namespace infllm::services {
namespace {

using ::infllm::testing::StatusIs;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Optional;
using ::testing::UnorderedElementsAre;

std::string Story(int first, int sentences) {
  std::string text;
  for (int i = first; i < first + sentences; ++i) {
    text += "Once there was a dog named Tim who lived in house number " + std::to_string(i * 37) +
            ". He liked to play with a big red ball in the park.\n";
  }
  return text;
}

// A passage put into a story after some of its sentences, asked for twice.
Sample Needle(const std::string& id, int before, int after) {
  const std::string passage = "The pass key is 48213. Remember it.\n";
  Sample sample{.id = id, .text = Story(0, before)};
  const TextRange range{static_cast<int64_t>(sample.text.size()),
                        static_cast<int64_t>(sample.text.size() + passage.size())};
  sample.text += passage + Story(before, after);
  sample.questions = {{.prompt = "What is the pass key? The pass key is",
                       .answers = {"48213"},
                       .evidence = {range}},
                      {.prompt = "One day, the dog", .answers = {"x"}}};
  sample.max_new_tokens = 24;
  return sample;
}

std::vector<Sample> Samples() {
  std::vector<Sample> samples;
  for (const int before : {20, 40, 5, 33, 33}) {
    samples.push_back(Needle("needle" + std::to_string(samples.size()), before, 48 - before));
  }
  samples.push_back({.id = "beginning",
                     .text = Story(0, 25),
                     .questions = {{.prompt = "Tim"}},
                     .max_new_tokens = 9});
  samples.push_back(
      {.id = "other", .text = "A cat. " + Story(7, 9), .questions = {{.prompt = "Tim"}}});
  return samples;
}

struct Outcome {
  int64_t tokens_read = 0;
  std::vector<std::vector<Answer>> answers;  // [samples][questions]
};

class LocalSubjectTest : public ::testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<Subject> NewSubject(int64_t max_full_tokens = 65536) {
    auto runtime = NewEngine(SmallModel(), SmallFlags(GetParam()), nullptr);
    EXPECT_OK(runtime);
    return NewLocalSubject(SmallModel(), *std::move(runtime), max_full_tokens);
  }

  void Ask(Subject& subject, std::span<const Sample> samples, Outcome& outcome) {
    const size_t first = outcome.answers.size();
    outcome.answers.resize(first + samples.size());
    const SubjectEvents events{.on_read =
                                   [&](size_t, const Reading& reading) {
                                     outcome.tokens_read += reading.tokens_read;
                                     return absl::OkStatus();
                                   },
                               .on_answer =
                                   [&](size_t sample, size_t question, const Answer& answer) {
                                     auto& answers = outcome.answers[first + sample];
                                     EXPECT_EQ(answers.size(), question);
                                     answers.push_back(answer);
                                     return absl::OkStatus();
                                   },
                               .on_progress = {}};
    ASSERT_OK(subject.Ask(samples, events, nullptr));
  }
};

TEST_P(LocalSubjectTest, SharingWhatTextsBeginWithChangesNoAnswer) {
  const std::vector<Sample> samples = Samples();
  const auto subject = NewSubject();
  Outcome together, alone;
  Ask(*subject, samples, together);
  for (const Sample& sample : samples) Ask(*subject, {&sample, 1}, alone);

  int64_t tokens = 0;
  for (const Sample& sample : samples) tokens += subject->CountTokens(sample.text);
  EXPECT_EQ(alone.tokens_read, tokens);
  EXPECT_LT(together.tokens_read, tokens * 2 / 3);
  ASSERT_EQ(together.answers.size(), alone.answers.size());
  for (size_t i = 0; i < samples.size(); ++i) {
    ASSERT_EQ(together.answers[i].size(), samples[i].questions.size());
    for (size_t q = 0; q < together.answers[i].size(); ++q) {
      const Answer &shared = together.answers[i][q], &own = alone.answers[i][q];
      EXPECT_EQ(shared.output, own.output) << samples[i].id;
      EXPECT_EQ(shared.retrieval, own.retrieval) << samples[i].id;
      EXPECT_EQ(shared.text_tokens, subject->CountTokens(samples[i].text));
      EXPECT_EQ(shared.cache_hits, own.cache_hits);
      EXPECT_EQ(shared.cache_misses, own.cache_misses);
      EXPECT_EQ(shared.miss_bytes, own.cache_misses * 2 * 4 * 16 * 8 * 4);
      EXPECT_EQ(shared.retrieval.has_value(), !samples[i].questions[q].evidence.empty());
    }
  }
}

TEST_P(LocalSubjectTest, PerplexityIsThatOfTheFirstTokens) {
  worker::ModelRuntime& model = SmallModel();
  const std::string text = Story(0, 30);
  std::vector<int32_t> ids = model.model->EncodePrompt(text);
  ids.resize(700);
  ASSERT_OK_AND_ASSIGN(const EngineRuntime runtime,
                       NewEngine(model, SmallFlags(GetParam()), nullptr));
  ASSERT_OK_AND_ASSIGN(const worker::SequenceId sequence, runtime.engine->NewSequence());
  std::vector<double> expected;
  for (size_t at = 0; at < ids.size(); at += 32) {
    const size_t count = std::min<size_t>(32, ids.size() - at);
    std::vector<int32_t> targets(
        ids.begin() + std::ptrdiff_t(at) + 1,
        ids.begin() + std::ptrdiff_t(std::min(at + count + 1, ids.size())));
    targets.resize(count, -1);
    worker::StepItem item{.sequence = sequence,
                          .tokens = std::span(ids).subspan(at, count),
                          .want = worker::StepItem::Want::kScores,
                          .targets = targets};
    ASSERT_OK(runtime.engine->Step({&item, 1}));
    ASSERT_OK(item.status);
    for (const worker::StepItem::Score& score : item.scores) expected.push_back(-score.logprob);
  }
  expected.pop_back();
  std::vector<double> nll;
  int64_t done = 0;
  const auto subject = NewSubject();
  ASSERT_OK_AND_ASSIGN(const Reading reading, subject->Perplexity(
                                                  text, 700,
                                                  [&](int64_t position, double value) {
                                                    nll.push_back(value);
                                                    EXPECT_EQ(position,
                                                              static_cast<int64_t>(nll.size()));
                                                  },
                                                  [&](int64_t now, int64_t total) {
                                                    done = now;
                                                    EXPECT_EQ(total, 700);
                                                  },
                                                  nullptr));
  EXPECT_EQ(nll, expected);
  EXPECT_EQ(done, 700);
  EXPECT_EQ(reading.tokens_read, 700);
  EXPECT_GT(reading.ram_bytes, 0);
}

TEST_P(LocalSubjectTest, ProgressGoesUpToAllTokensAndCancelEndsIt) {
  const std::vector<Sample> samples = {Needle("a", 3, 15), Needle("b", 14, 4)};
  const auto subject = NewSubject();
  int64_t last = 0, most = 0;
  SubjectEvents events;
  events.on_progress = [&](int64_t done, int64_t total) {
    EXPECT_GE(done, last);
    last = done;
    most = total;
  };
  ASSERT_OK(subject->Ask(samples, events, nullptr));
  EXPECT_EQ(last, most);
  std::atomic<bool> cancel{false};
  events.on_progress = [&](int64_t, int64_t) { cancel = true; };
  EXPECT_THAT(subject->Ask(samples, events, &cancel), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_OK(subject->Ask(samples, {}, nullptr));  // the subject can still be asked
}

TEST_P(LocalSubjectTest, ErrorsOfTheListenerAndOfSamplesEndIt) {
  const std::vector<Sample> samples = {Needle("a", 3, 15), Needle("b", 14, 4)};
  const auto subject = NewSubject();
  SubjectEvents events;
  events.on_answer = [](size_t, size_t, const Answer&) { return absl::DataLossError("disk"); };
  EXPECT_THAT(subject->Ask(samples, events, nullptr),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("disk")));
  const Sample mute{.id = "mute", .text = "x", .questions = {{.prompt = ""}}};
  EXPECT_THAT(
      subject->Ask({&mute, 1}, {}, nullptr),
      StatusIs(absl::StatusCode::kInvalidArgument, AllOf(HasSubstr("mute"), HasSubstr("prompt"))));
  EXPECT_OK(subject->Ask({}, {}, nullptr));
}

// A store without a disk, too small for the longer texts.
TEST(LocalSubjectRoomTest, ATextThatTheStoreCannotHoldLeavesTheOthersToBeAsked) {
  worker::ModelRuntime& model = SmallModel();
  EngineRuntime runtime{.step_tokens = 512, .max_sequences = 4};
  runtime.store = memstore::NewInProcessStore({.ram_capacity_bytes = 1 << 21}, *model.backend,
                                              /*cold=*/nullptr)
                      .value();
  ASSERT_OK_AND_ASSIGN(
      runtime.engine,
      worker::Engine::New(*model.model, *model.backend, *model.pool, runtime.store.get(),
                          {.attention = SmallFlags("infllm").attention, .kv_dtype = model.dtype}));
  const auto subject = NewLocalSubject(model, std::move(runtime), 0);
  const std::vector<Sample> samples = {
      Needle("long", 60, 60),
      Needle("long, too", 60, 70),  // shares the beginning
      {.id = "short", .text = "A cat. " + Story(7, 9), .questions = {{.prompt = "Tim"}}}};
  std::vector<size_t> failed, answered;
  int64_t last = 0, most = 1;
  SubjectEvents events;
  events.on_answer = [&](size_t sample, size_t, const Answer&) {
    answered.push_back(sample);
    return absl::OkStatus();
  };
  EXPECT_THAT(subject->Ask(samples, events, nullptr),
              StatusIs(absl::StatusCode::kResourceExhausted));
  answered.clear();
  events.on_error = [&](size_t sample, const absl::Status& error) {
    failed.push_back(sample);
    EXPECT_THAT(error, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("--ram-bytes")));
  };
  events.on_progress = [&](int64_t done, int64_t total) {
    last = done;
    most = total;
  };
  ASSERT_OK(subject->Ask(samples, events, nullptr));
  EXPECT_THAT(failed, UnorderedElementsAre(0, 1));
  EXPECT_THAT(answered, ElementsAre(2));
  EXPECT_LE(last, most);
}

TEST_P(LocalSubjectTest, OnlyFullAttentionRefusesLongTexts) {
  const auto subject = NewSubject(/*max_full_tokens=*/1000);
  EXPECT_EQ(subject->CannotRead(1000), std::nullopt);
  const auto reason = subject->CannotRead(1 << 20);
  if (std::string(GetParam()) != "full") {
    EXPECT_EQ(reason, std::nullopt);
    return;
  }
  // 2 x 5 layers x 4 heads x 8 x 4 bytes x 2^20 tokens.
  EXPECT_THAT(reason, Optional(AllOf(HasSubstr("1,048,576 tokens"), HasSubstr("1.2 GiB"),
                                     HasSubstr("about"), HasSubstr("--max-full-tokens"))));
  EXPECT_THAT(subject->CannotRead(int64_t{1} << 40), Optional(HasSubstr("of memory are free")));
}

INSTANTIATE_TEST_SUITE_P(Policies, LocalSubjectTest,
                         ::testing::Values("full", "streaming-llm", "lm-infinite", "infllm"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::erase(name, '-');
                           return name;
                         });

}  // namespace
}  // namespace infllm::services
