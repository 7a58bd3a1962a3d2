#include "worker/engine/scheduler.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/deferring_backend.h"
#include "tests/support/status_matchers.h"
#include "tests/worker/engine_fixture.h"

namespace infllm::worker {
namespace {

using ::infllm::testing::DeferringBackend;
using ::infllm::testing::StatusIs;
using ::testing::HasSubstr;

struct Generated {
  std::vector<int32_t> tokens;
  Outcome outcome;
  int calls = 0;  // of on_done
};

Request Generate(SequenceId sequence, std::vector<int32_t> prompt, int64_t max_tokens,
                 Generated& out) {
  return {.sequence = sequence,
          .tokens = std::move(prompt),
          .max_tokens = max_tokens,
          .on_token =
              [&out](int32_t token) {
                out.tokens.push_back(token);
                return true;
              },
          .on_done =
              [&out](const Outcome& outcome) {
                out.outcome = outcome;
                ++out.calls;
              }};
}

class SchedulerTest : public ::testing::Test {
 protected:
  SchedulerTest() : world_(SmallEngineOptions(PolicyKind::kInfLlm), kernels::DType::kF32, 2) {}

  // Prefill in exec blocks, then a token a step: what a scheduler must come to.
  std::vector<int32_t> ByHand(const std::vector<int32_t>& prompt, int64_t max_tokens) {
    const SequenceId sequence = world_.NewSequence();
    const std::span<const int32_t> tokens = prompt;
    world_.ReadAll(sequence, tokens.first(tokens.size() - 1), 16);
    std::vector<int32_t> generated;
    int32_t next = prompt.back();
    while (static_cast<int64_t>(generated.size()) < max_tokens) {
      StepItem item{.sequence = sequence, .tokens = {&next, 1}, .want = StepItem::Want::kSample};
      EXPECT_OK(world_.engine->Step({&item, 1}));
      EXPECT_OK(item.status);
      next = item.token;
      generated.push_back(next);
    }
    world_.engine->Drop(sequence);
    return generated;
  }

  EngineWorld world_;
};

TEST_F(SchedulerTest, ManyRequestsGetWhatEachGetsAlone) {
  std::vector<Generated> generated(12);
  std::vector<std::vector<int32_t>> prompts;
  for (const int64_t step_tokens : {int64_t{512}, int64_t{1}, int64_t{40}}) {
    Scheduler scheduler(*world_.engine, {.step_tokens = step_tokens});
    std::vector<SequenceId> sequences;
    for (size_t i = 0; i < generated.size(); ++i) {
      prompts.push_back(RandomTokens(1 + 23 * i, static_cast<uint32_t>(i)));
      sequences.push_back(world_.NewSequence());
      generated[i] = {};
      scheduler.Add(Generate(sequences[i], prompts[i], 5 + static_cast<int64_t>(i), generated[i]));
    }
    ASSERT_OK(scheduler.Run());
    EXPECT_TRUE(scheduler.idle());
    for (size_t i = 0; i < generated.size(); ++i) {
      ASSERT_OK(generated[i].outcome.status);
      EXPECT_EQ(generated[i].calls, 1);
      EXPECT_EQ(generated[i].tokens, ByHand(prompts[i], 5 + static_cast<int64_t>(i))) << i;
      EXPECT_EQ(generated[i].outcome.tokens, 5 + static_cast<int64_t>(i));
      world_.engine->Drop(sequences[i]);
    }
  }
}

TEST_F(SchedulerTest, StopIdsAndTheListenerEndAGeneration) {
  const std::vector<int32_t> prompt = RandomTokens(30, 3);
  const std::vector<int32_t> all = ByHand(prompt, 8);
  const auto stop = std::find_if(all.begin() + 2, all.end(), [&](int32_t id) {
    return std::find(all.begin(), all.begin() + 2, id) == all.begin() + 2;
  });
  ASSERT_NE(stop, all.end());
  Scheduler scheduler(*world_.engine, {});
  Generated stopped, ended;
  Request request = Generate(world_.NewSequence(), prompt, 8, stopped);
  request.stop_ids = {*stop};
  scheduler.Add(std::move(request));
  request = Generate(world_.NewSequence(), prompt, 8, ended);
  request.on_token = [&](int32_t token) {
    ended.tokens.push_back(token);
    return ended.tokens.size() < 3;
  };
  scheduler.Add(std::move(request));
  ASSERT_OK(scheduler.Run());
  EXPECT_TRUE(stopped.outcome.stopped);
  EXPECT_EQ(stopped.tokens, std::vector<int32_t>(all.begin(), stop));
  EXPECT_FALSE(ended.outcome.stopped);
  EXPECT_EQ(ended.tokens, std::vector<int32_t>(all.begin(), all.begin() + 3));
}

TEST_F(SchedulerTest, ScoresAreOfTheTokensThatFollow) {
  const std::vector<int32_t> tokens = RandomTokens(100, 4);
  std::vector<StepItem::Score> scores;
  int64_t read = 0;
  Outcome outcome;
  Scheduler scheduler(*world_.engine, {.step_tokens = 32});
  scheduler.Add({.sequence = world_.NewSequence(),
                 .tokens = tokens,
                 .on_scores =
                     [&](std::span<const StepItem::Score> some) {
                       scores.insert(scores.end(), some.begin(), some.end());
                     },
                 .on_read = [&](int64_t done) { read = done; },
                 .on_done = [&](const Outcome& done) { outcome = done; }});
  ASSERT_OK(scheduler.Run());
  ASSERT_OK(outcome.status);
  EXPECT_EQ(read, 100);
  ASSERT_EQ(scores.size(), 100u);
  EXPECT_EQ(scores.back().logprob, 0);  // nothing follows
  const std::vector<float> logits = world_.ReadAll(world_.NewSequence(), tokens, 16);
  const auto vocab = static_cast<size_t>(world_.engine->config().vocab_size);
  for (size_t i = 0; i < 100; ++i) {
    const float* const row = &logits[i * vocab];
    EXPECT_EQ(scores[i].argmax, std::max_element(row, row + vocab) - row);
    if (i < 99) {
      EXPECT_LT(scores[i].logprob, 0);
    }
  }
}

TEST_F(SchedulerTest, TheSeedDecidesWhateverElseRuns) {
  const std::vector<int32_t> prompt = RandomTokens(20, 5);
  std::vector<int32_t> first;
  for (const int others : {0, 7}) {
    Scheduler scheduler(*world_.engine, {});
    std::vector<Generated> noise(static_cast<size_t>(others));
    for (Generated& other : noise) {
      scheduler.Add(Generate(world_.NewSequence(), RandomTokens(33, 6), 9, other));
    }
    Generated seeded;
    Request request = Generate(world_.NewSequence(), prompt, 20, seeded);
    request.sampling = {.temperature = 1.5, .top_k = 50, .top_p = 0.95, .seed = 42};
    scheduler.Add(std::move(request));
    ASSERT_OK(scheduler.Run());
    if (first.empty()) first = seeded.tokens;
    EXPECT_EQ(seeded.tokens, first);
  }
}

TEST_F(SchedulerTest, CallbacksMayAddForkAndDrop) {
  Scheduler scheduler(*world_.engine, {});
  const SequenceId text = world_.NewSequence();
  std::vector<Generated> answers(3);
  scheduler.Add(
      {.sequence = text, .tokens = RandomTokens(200, 7), .on_done = [&](const Outcome& outcome) {
         ASSERT_OK(outcome.status);
         for (Generated& answer : answers) {
           scheduler.Add(Generate(world_.Fork(text), RandomTokens(5, 8), 4, answer));
         }
         world_.engine->Drop(text);
       }});
  ASSERT_OK(scheduler.Run());
  for (const Generated& answer : answers) {
    ASSERT_OK(answer.outcome.status);
    EXPECT_EQ(answer.tokens, answers[0].tokens);
    EXPECT_EQ(answer.tokens.size(), 4u);
  }
}

TEST_F(SchedulerTest, AFailureIsOfItsRequestAlone) {
  Scheduler scheduler(*world_.engine, {});
  Generated good, bad, empty;
  scheduler.Add(Generate(world_.NewSequence(), {5, 99999}, 4, bad));
  scheduler.Add(Generate(world_.NewSequence(), {}, 4, empty));
  EXPECT_THAT(empty.outcome.status, StatusIs(absl::StatusCode::kInvalidArgument));
  scheduler.Add(Generate(world_.NewSequence(), RandomTokens(50, 9), 4, good));
  ASSERT_OK(scheduler.Run());
  EXPECT_THAT(bad.outcome.status, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("99999")));
  EXPECT_OK(good.outcome.status);
  EXPECT_EQ(good.tokens.size(), 4u);
}

TEST_F(SchedulerTest, CancelEndsAll) {
  Scheduler scheduler(*world_.engine, {});
  Generated a, b;
  std::atomic<bool> cancel{false};
  Request request = Generate(world_.NewSequence(), RandomTokens(50, 10), 1000, a);
  request.on_token = [&](int32_t) {
    cancel = true;
    return true;
  };
  scheduler.Add(std::move(request));
  scheduler.Add(Generate(world_.NewSequence(), RandomTokens(50, 11), 1000, b));
  EXPECT_THAT(scheduler.Run(&cancel), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_TRUE(scheduler.idle());
  EXPECT_THAT(a.outcome.status, StatusIs(absl::StatusCode::kCancelled));
  EXPECT_THAT(b.outcome.status, StatusIs(absl::StatusCode::kCancelled));
}

TEST(SchedulerMemoryTest, RequestsWaitForRoomAndTheLastGivesWayIfNobodyGetsOn) {
  int64_t page_bytes = 0;
  {
    EngineWorld world(SmallEngineOptions(PolicyKind::kFull), kernels::DType::kF32, 1);
    page_bytes = world.engine->kv_use().page_bytes;
  }
  // Three pages of 128 tokens.
  EngineWorld world(SmallEngineOptions(PolicyKind::kFull), kernels::DType::kF32, 1, nullptr,
                    3 * page_bytes);
  Scheduler scheduler(*world.engine, {});
  Generated first, second, third;
  const auto add = [&](Generated& out, size_t prompt, int64_t max_tokens) {
    const SequenceId sequence = world.NewSequence();
    Request request = Generate(sequence, RandomTokens(prompt, 12), max_tokens, out);
    request.on_done = [&, sequence](const Outcome& outcome) {
      out.outcome = outcome;
      world.engine->Drop(sequence);
    };
    scheduler.Add(std::move(request));
  };
  add(first, 250, 4);    // two pages
  add(second, 100, 40);  // one, then another: it waits until the first is done
  add(third, 300, 4);    // three: waits for both
  ASSERT_OK(scheduler.Run());
  EXPECT_OK(first.outcome.status);
  EXPECT_OK(second.outcome.status);
  EXPECT_OK(third.outcome.status);
  add(first, 500, 1);  // four: never
  ASSERT_OK(scheduler.Run());
  EXPECT_THAT(first.outcome.status,
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("--kv-bytes")));
}

// A step has room for one reader only. The one that needs memory waits although it is alone in the
// step: the other, whose turn is next, gets on and gives its memory back.
TEST(SchedulerMemoryTest, AReaderWaitsForOthersThatAreNotInItsStep) {
  const AttentionOptions options = SmallEngineOptions(PolicyKind::kFull);
  int64_t page_bytes = 0;
  {
    EngineWorld world(options, kernels::DType::kF32, 1);
    page_bytes = world.engine->kv_use().page_bytes;
  }
  // Three pages of 128 tokens.
  EngineWorld world(options, kernels::DType::kF32, 1, nullptr, 3 * page_bytes);
  Scheduler scheduler(*world.engine, {.step_tokens = options.exec_block});
  Generated first, second;
  Request later = Generate(world.NewSequence(), RandomTokens(100, 13), 1, second);
  later.on_done = [&, sequence = later.sequence](const Outcome& outcome) {
    second.outcome = outcome;
    world.engine->Drop(sequence);
  };
  Request request = Generate(world.NewSequence(), RandomTokens(300, 12), 1, first);
  request.on_read = [&](int64_t read) {
    if (read == 240) scheduler.Add(std::move(later));  // takes the third page
  };
  scheduler.Add(std::move(request));
  ASSERT_OK(scheduler.Run());
  EXPECT_OK(second.outcome.status);
  EXPECT_OK(first.outcome.status);
}

TEST(SchedulerMemoryTest, APieceThatDoesNotFitIsReadInSmallerOnes) {
  AttentionOptions options = SmallEngineOptions(PolicyKind::kInfLlm);
  int64_t page_bytes = 0;
  {
    EngineWorld world(options, kernels::DType::kF32, 1);
    page_bytes = world.engine->kv_use().page_bytes;
  }
  // Sinks, the window of 40, an exec block of 16 and what is not yet a block; not another exec
  // block.
  EngineWorld world(options, kernels::DType::kF32, 1, nullptr, 10 * page_bytes);
  Scheduler scheduler(*world.engine, {});
  Generated out;
  scheduler.Add(Generate(world.NewSequence(), RandomTokens(500, 16), 3, out));
  ASSERT_OK(scheduler.Run());
  ASSERT_OK(out.outcome.status);
  EXPECT_EQ(out.tokens.size(), 3u);
}

TEST(SchedulerMemoryTest, PiecesGrowAgainOnceThereIsRoom) {
  const AttentionOptions options = SmallEngineOptions(PolicyKind::kInfLlm);
  int64_t page_bytes = 0;
  {
    EngineWorld world(options, kernels::DType::kF32, 1);
    page_bytes = world.engine->kv_use().page_bytes;
  }
  // Beside another sequence there is room for small pieces only, until that one is dropped.
  EngineWorld world(options, kernels::DType::kF32, 1, nullptr, 18 * page_bytes);
  const int64_t whole = world.engine->max_item_tokens();
  const SequenceId other = world.NewSequence();
  Scheduler scheduler(*world.engine, {.step_tokens = whole});
  Generated of_other, out;
  scheduler.Add(Generate(other, RandomTokens(100, 17), 1, of_other));
  ASSERT_OK(scheduler.Run());
  std::vector<int64_t> reads;
  Request request = Generate(world.NewSequence(), RandomTokens(1000, 16), 1, out);
  request.on_read = [&](int64_t read) {
    if (reads.size() == 4) world.engine->Drop(other);
    reads.push_back(read);
  };
  scheduler.Add(std::move(request));
  ASSERT_OK(scheduler.Run());
  ASSERT_OK(out.outcome.status);
  std::vector<int64_t> pieces = {reads[0]};
  for (size_t i = 1; i < reads.size(); ++i) pieces.push_back(reads[i] - reads[i - 1]);
  ASSERT_GT(pieces.size(), 5u);
  // The first one finds the window empty.
  EXPECT_LT(*std::max_element(pieces.begin() + 1, pieces.begin() + 5), whole);
  EXPECT_EQ(*std::max_element(pieces.begin() + 5, pieces.end()), whole);
}

// While one sequence reads, another's tokens come a step apart: no longer than 1.5 times a step of
// the whole budget. Time is counted in rows that go through the model.
TEST(SchedulerFairnessTest, ReadingALongTextHoldsUpNobodysTokens) {
  EngineWorld world(SmallEngineOptions(PolicyKind::kInfLlm), kernels::DType::kF32, 2,
                    [](std::unique_ptr<kernels::Backend> base) {
                      return std::make_unique<DeferringBackend>(std::move(base));
                    });
  const auto& device = static_cast<const DeferringBackend&>(*world.backend);
  // Every row goes through as many products per layer.
  const auto rows = [&] { return static_cast<double>(device.counts().linear_rows); };
  const auto cost_of_budget = [&](int64_t tokens) {
    const double before = rows();
    const SequenceId sequence = world.NewSequence();
    StepItem item{.sequence = sequence, .tokens = {}, .want = StepItem::Want::kSample};
    const std::vector<int32_t> text = RandomTokens(static_cast<size_t>(tokens), 13);
    item.tokens = text;
    EXPECT_OK(world.engine->Step({&item, 1}));
    EXPECT_OK(item.status);
    world.engine->Drop(sequence);
    return rows() - before;
  };
  constexpr int64_t kBudget = 48;
  const double step = cost_of_budget(kBudget);
  Scheduler scheduler(*world.engine, {.step_tokens = kBudget, .clock = rows});
  double last = -1, longest = 0;
  int64_t tokens = 0, read = 0, read_at_first = -1, read_at_last = 0;
  scheduler.Add({.sequence = world.NewSequence(),
                 .tokens = RandomTokens(6000, 14),
                 .on_read = [&](int64_t done) { read = done; }});
  scheduler.Add({.sequence = world.NewSequence(),
                 .tokens = RandomTokens(20, 15),
                 .max_tokens = 100,
                 .on_token = [&](int32_t) {
                   if (last >= 0) longest = std::max(longest, rows() - last);
                   last = rows();
                   if (read_at_first < 0) read_at_first = read;
                   read_at_last = read;
                   ++tokens;
                   return true;
                 }});
  ASSERT_OK(scheduler.Run());
  EXPECT_EQ(tokens, 100);
  EXPECT_EQ(read, 6000);
  EXPECT_LT(read_at_last, 6000);                      // the text was being read all the while,
  EXPECT_GT(read_at_last - read_at_first, 100 * 24);  // and got on
  EXPECT_LE(longest, 1.5 * step);
}

}  // namespace
}  // namespace infllm::worker
