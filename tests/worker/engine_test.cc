#include "worker/engine/engine.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tests/support/deferring_backend.h"
#include "tests/support/status_matchers.h"
#include "tests/worker/engine_fixture.h"

namespace infllm::worker {
namespace {

using ::infllm::testing::DeferringBackend;
using ::infllm::testing::StatusIs;
using kernels::DType;
using ::testing::AllOf;
using ::testing::HasSubstr;
using Want = StepItem::Want;

// ---- Neighbours never matter ----

using Kind = std::tuple<PolicyKind, kernels::RepresentativeKind, kernels::Scoring, DType>;
class NeighboursTest : public ::testing::TestWithParam<Kind> {
 protected:
  static AttentionOptions Options() {
    AttentionOptions options = SmallEngineOptions(std::get<0>(GetParam()));
    options.representative = std::get<1>(GetParam());
    options.scoring = std::get<2>(GetParam());
    return options;
  }
  static DType Type() { return std::get<3>(GetParam()); }

  static constexpr size_t kPrompt = 300, kDecoded = 12;
  const std::vector<int32_t> tokens_ = RandomTokens(kPrompt + kDecoded, 1);
  std::span<const int32_t> prompt() const { return std::span(tokens_).first(kPrompt); }
  std::span<const int32_t> decoded() const { return std::span(tokens_).subspan(kPrompt); }

  // All logits of the sequence alone: read in one exec block a step, on one thread.
  std::vector<float> Alone() const {
    EngineWorld world(Options(), Type(), 1);
    const SequenceId sequence = world.NewSequence();
    std::vector<float> logits = world.ReadAll(sequence, prompt(), 16);
    const std::vector<float> rest = world.ReadAll(sequence, decoded(), 1);
    logits.insert(logits.end(), rest.begin(), rest.end());
    return logits;
  }
};

TEST_P(NeighboursTest, CutsThreadsAndForksChangeNoBit) {
  const std::vector<float> alone = Alone();
  for (const int threads : {1, 3}) {
    EngineWorld world(Options(), Type(), threads);
    for (const size_t chunk : {16, 32, 48}) {
      if (static_cast<int64_t>(chunk) > world.engine->max_item_tokens()) continue;
      SequenceId sequence = world.NewSequence();
      std::vector<float> logits = world.ReadAll(sequence, prompt().first(144), chunk);
      // A fork goes on; what it came from reads something else first.
      const SequenceId fork = world.Fork(sequence);
      world.ReadAll(sequence, RandomTokens(100, 7), 16);
      world.engine->Drop(sequence);
      sequence = fork;
      for (const auto& rest : {world.ReadAll(sequence, prompt().subspan(144), chunk),
                               world.ReadAll(sequence, decoded(), 1)}) {
        logits.insert(logits.end(), rest.begin(), rest.end());
      }
      EXPECT_EQ(logits, alone) << threads << " threads, steps of " << chunk;
      world.engine->Drop(sequence);
    }
  }
}

// Among 31 others that read and decode at their own pace.
TEST_P(NeighboursTest, OthersInTheStepChangeNoBit) {
  const std::vector<float> alone = Alone();
  EngineWorld world(Options(), Type(), 2);
  struct Other {
    SequenceId sequence;
    std::vector<int32_t> tokens;
    size_t at = 0;
  };
  std::vector<Other> others;
  const SequenceId sequence = world.NewSequence();
  for (uint32_t i = 0; i < 31; ++i) {
    // Some are forks of the sequence itself, which go their own way.
    others.push_back({i % 5 == 4 ? world.Fork(sequence) : world.NewSequence(),
                      RandomTokens(40 + 13 * i, 100 + i)});
  }
  std::vector<float> logits;
  size_t at = 0;
  for (int step = 0; at < tokens_.size(); ++step) {
    const size_t count = at < kPrompt ? std::min<size_t>(16, kPrompt - at) : 1;
    std::vector<StepItem> items;
    for (size_t i = 0; i < others.size(); ++i) {
      if (i == others.size() / 2) {
        items.push_back({.sequence = sequence,
                         .tokens = std::span(tokens_).subspan(at, count),
                         .want = Want::kLogits});
      }
      Other& other = others[i];
      // In turn a chunk, a token, or nothing; in the end it begins anew.
      const size_t take = (i + static_cast<size_t>(step)) % 4 == 0   ? 16
                          : (i + static_cast<size_t>(step)) % 4 == 1 ? 0
                                                                     : 1;
      if (other.at + take > other.tokens.size()) {
        world.engine->Drop(other.sequence);
        other.sequence = world.NewSequence();
        other.at = 0;
      }
      if (take == 0) continue;
      items.push_back({.sequence = other.sequence,
                       .tokens = std::span(other.tokens).subspan(other.at, take),
                       .want = i % 3 == 0 ? Want::kSample : Want::kNothing});
      other.at += take;
    }
    ASSERT_OK(world.engine->Step(items));
    for (const StepItem& item : items) {
      ASSERT_OK(item.status);
      if (item.sequence == sequence) {
        logits.insert(logits.end(), item.logits.begin(), item.logits.end());
      }
    }
    at += count;
  }
  EXPECT_EQ(logits, alone);
}

// A device that defers everything, reads no host memory in place and looks blocks up by itself; and
// a store that has to be asked.
TEST_P(NeighboursTest, DevicesAndRemoteStoresChangeNoBit) {
  const std::vector<float> alone = Alone();
  for (const bool remote : {false, true}) {
    EngineWorld world(
        Options(), Type(), 2,
        [](std::unique_ptr<kernels::Backend> base) {
          return std::make_unique<DeferringBackend>(std::move(base));
        },
        int64_t{64} << 20, remote);
    const SequenceId sequence = world.NewSequence();
    std::vector<float> logits = world.ReadAll(sequence, prompt(), 16);
    const std::vector<float> rest = world.ReadAll(sequence, decoded(), 1);
    logits.insert(logits.end(), rest.begin(), rest.end());
    EXPECT_EQ(logits, alone) << (remote ? "remote" : "in process");
  }
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, NeighboursTest,
    ::testing::Values(Kind{PolicyKind::kFull, {}, {}, DType::kF32},
                      Kind{PolicyKind::kStreamingLlm, {}, {}, DType::kF32},
                      Kind{PolicyKind::kLmInfinite, {}, {}, DType::kBF16},
                      Kind{PolicyKind::kInfLlm, kernels::RepresentativeKind::kBounds,
                           kernels::Scoring::kMean, DType::kF32},
                      Kind{PolicyKind::kInfLlm, kernels::RepresentativeKind::kBounds,
                           kernels::Scoring::kMean, DType::kBF16},
                      Kind{PolicyKind::kInfLlm, kernels::RepresentativeKind::kBounds,
                           kernels::Scoring::kHeadVote, DType::kF32},
                      Kind{PolicyKind::kInfLlm, kernels::RepresentativeKind::kMeanKey,
                           kernels::Scoring::kMean, DType::kBF16}),
    [](const auto& info) {
      std::string name(Name(std::get<0>(info.param)));
      if (std::get<0>(info.param) == PolicyKind::kInfLlm) {
        name +=
            std::string(Name(std::get<1>(info.param))) + std::string(Name(std::get<2>(info.param)));
      }
      name += std::string(kernels::Name(std::get<3>(info.param)));
      std::erase(name, '-');
      return name;
    });

// ---- What is wanted of the logits ----

TEST(EngineTest, ScoresAndSamplesAreThoseOfTheLogits) {
  EngineWorld world(SmallEngineOptions(PolicyKind::kInfLlm), DType::kF32, 2);
  const std::vector<int32_t> tokens = RandomTokens(48, 2);
  const SequenceId first = world.NewSequence();
  const std::vector<float> logits = world.Read(first, tokens);
  const auto vocab = static_cast<size_t>(world.engine->config().vocab_size);
  ASSERT_EQ(logits.size(), tokens.size() * vocab);

  std::vector<int32_t> targets(tokens.begin() + 1, tokens.end());
  targets.push_back(-1);
  StepItem scored{
      .sequence = world.NewSequence(), .tokens = tokens, .want = Want::kScores, .targets = targets};
  StepItem sampled{.sequence = world.NewSequence(), .tokens = tokens, .want = Want::kSample};
  StepItem items[] = {std::move(scored), std::move(sampled)};
  ASSERT_OK(world.engine->Step(items));
  ASSERT_OK(items[0].status);
  ASSERT_EQ(items[0].scores.size(), tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    const float* const row = &logits[i * vocab];
    EXPECT_EQ(items[0].scores[i].argmax, std::max_element(row, row + vocab) - row);
    if (targets[i] < 0) continue;
    double sum = 0;
    const double top = *std::max_element(row, row + vocab);
    for (size_t t = 0; t < vocab; ++t) sum += std::exp(row[t] - top);
    EXPECT_NEAR(items[0].scores[i].logprob, row[targets[i]] - top - std::log(sum), 1e-9);
  }
  EXPECT_EQ(items[1].token, items[0].scores.back().argmax);
  EXPECT_LT(items[1].logprob, 0);
}

// ---- One item's failure is its own ----

TEST(EngineTest, ADamagedBlockFailsItsSequenceAndNoOther) {
  for (const bool views : {true, false}) {
    std::vector<std::vector<float>> logits[2];
    for (const bool damaged : {false, true}) {
      EngineWorld world(SmallEngineOptions(PolicyKind::kInfLlm), DType::kF32, 2);
      world.store->views = views;
      std::vector<SequenceId> sequences;
      std::vector<std::vector<int32_t>> texts;
      for (uint32_t i = 0; i < 4; ++i) {
        sequences.push_back(world.NewSequence());
        texts.push_back(RandomTokens(200, 10 + i));
      }
      const memstore::ContextId bad = world.store->contexts[2];
      for (size_t at = 0; at < 200; at += 16) {
        if (damaged && at == 160) {
          world.store->fault = [bad](const memstore::ContextId& context) {
            return context == bad ? absl::DataLossError("block 3 is damaged") : absl::OkStatus();
          };
        }
        std::vector<StepItem> items;
        for (size_t i = 0; i < 4; ++i) {
          items.push_back(
              {.sequence = sequences[i],
               .tokens = std::span(texts[i]).subspan(at, std::min<size_t>(16, 200 - at)),
               .want = Want::kLogits});
        }
        ASSERT_OK(world.engine->Step(items));
        for (size_t i = 0; i < 4; ++i) {
          if (damaged && i == 2 && !items[i].status.ok()) {
            EXPECT_GE(at, 160u);
            // First by the damage; then because the sequence is of no use any more.
            EXPECT_TRUE(absl::IsDataLoss(items[i].status) || absl::IsNotFound(items[i].status));
            continue;
          }
          ASSERT_OK(items[i].status);
          if (i != 2) logits[damaged].push_back(items[i].logits);
        }
        if (damaged && at == 192) {
          EXPECT_FALSE(items[2].status.ok());
          EXPECT_FALSE(world.engine->Fork(sequences[2]).ok());
        }
      }
    }
    EXPECT_EQ(logits[true], logits[false]);
  }
}

TEST(EngineTest, ASequenceWhoseBlocksFindNoMemoryFailsAlone) {
  EngineWorld world(SmallEngineOptions(PolicyKind::kInfLlm), DType::kF32, 2);
  const std::vector<int32_t> text =
      RandomTokens(static_cast<size_t>(world.engine->max_item_tokens()), 3);
  const std::vector<float> expected = world.Read(world.NewSequence(), text);
  const SequenceId a = world.NewSequence(), b = world.NewSequence();
  const memstore::ContextId of_a = world.store->contexts[1];
  world.store->on_append = [&](const memstore::ContextId& context) {
    if (context == of_a) throw std::bad_alloc();
  };
  StepItem items[] = {{.sequence = a, .tokens = text, .want = Want::kLogits},
                      {.sequence = b, .tokens = text, .want = Want::kLogits}};
  ASSERT_OK(world.engine->Step(items));
  EXPECT_THAT(items[0].status, StatusIs(absl::StatusCode::kResourceExhausted));
  ASSERT_OK(items[1].status);
  EXPECT_EQ(items[1].logits, expected);
}

TEST(EngineTest, CompatReferenceIsInfLlmsAlone) {
  AttentionOptions options = SmallEngineOptions(PolicyKind::kLmInfinite);
  const std::vector<int32_t> text = RandomTokens(200, 5);
  EngineWorld plain(options, DType::kF32, 1);
  options.compat_reference = true;
  EngineWorld compat(options, DType::kF32, 1);
  EXPECT_EQ(plain.ReadAll(plain.NewSequence(), text, 64),
            compat.ReadAll(compat.NewSequence(), text, 64));
}

TEST(EngineTest, PinsInTheStoresOwnMemoryAreNotCountedTwice) {
  for (const bool remote : {false, true}) {
    EngineWorld world(SmallEngineOptions(PolicyKind::kInfLlm), DType::kF32, 1, nullptr,
                      int64_t{64} << 20, remote);
    const SequenceId sequence = world.NewSequence();
    world.ReadAll(sequence, RandomTokens(200, 3), 16);
    const Engine::KvUse use = world.engine->kv_use();
    const int64_t pages = (use.pages - use.free_pages) * use.page_bytes;
    const AttentionStats stats = world.engine->StatsOf(sequence);
    ASSERT_GT(stats.cache_misses, 0);
    EXPECT_EQ(stats.device_bytes > pages, remote);
  }
}

TEST(EngineTest, WhatDoesNotFitIsRefusedBeforeTheStepAndFitsLater) {
  const AttentionOptions options = SmallEngineOptions(PolicyKind::kFull);
  const std::vector<int32_t> text = RandomTokens(384, 3);
  std::vector<float> expected;
  int64_t page_bytes = 0;
  {
    EngineWorld world(options, DType::kF32, 2);
    expected = world.ReadAll(world.NewSequence(), text, 128);
    page_bytes = world.engine->kv_use().page_bytes;
  }
  EngineWorld world(options, DType::kF32, 2, nullptr, 4 * page_bytes);  // of 128 tokens
  EXPECT_EQ(world.engine->kv_use().pages, 4);
  const SequenceId a = world.NewSequence(), b = world.NewSequence();
  world.ReadAll(b, RandomTokens(256, 4), 128);
  std::vector<float> logits = world.ReadAll(a, std::span(text).first(256), 128);
  StepItem items[] = {
      {.sequence = a, .tokens = std::span(text).subspan(256), .want = Want::kLogits},
      {.sequence = b, .tokens = std::span(text).first(1), .want = Want::kLogits},
  };
  ASSERT_OK(world.engine->Step(items));
  for (const StepItem& item : items) {
    EXPECT_THAT(item.status, StatusIs(absl::StatusCode::kResourceExhausted,
                                      AllOf(HasSubstr(std::to_string(page_bytes)),
                                            HasSubstr(std::to_string(4 * page_bytes)),
                                            HasSubstr("--kv-bytes"))));
    EXPECT_TRUE(item.unchanged);
  }
  EXPECT_EQ(world.engine->position(a), 256);
  world.engine->Drop(b);
  const std::vector<float> rest = world.Read(a, std::span(text).subspan(256));
  logits.insert(logits.end(), rest.begin(), rest.end());
  EXPECT_EQ(logits, expected);
}

TEST(EngineTest, BadItemsAreRefusedByNameAndLeaveTheirSequencesAsTheyWere) {
  EngineWorld world(SmallEngineOptions(PolicyKind::kInfLlm), DType::kF32, 1);
  const SequenceId a = world.NewSequence(), b = world.NewSequence();
  const std::vector<int32_t> good = RandomTokens(16, 5), many = RandomTokens(64, 5);
  const std::vector<int32_t> outside = {5, 512}, negative = {-1};
  const auto refused = [&](StepItem item, absl::StatusCode code, const std::string& text) {
    StepItem items[] = {std::move(item), {.sequence = b, .tokens = good}};
    ASSERT_OK(world.engine->Step(items));
    EXPECT_THAT(items[0].status, StatusIs(code, HasSubstr(text)));
    EXPECT_TRUE(items[0].unchanged);
    EXPECT_OK(items[1].status);
  };
  const auto bad = absl::StatusCode::kInvalidArgument;
  refused({.sequence = a, .tokens = outside}, bad, "token 1 is 512");
  refused({.sequence = a, .tokens = negative}, bad, "token 0 is -1");
  refused({.sequence = a, .tokens = {}}, bad, "no next tokens");
  refused({.sequence = a, .tokens = many}, bad, "at most 48");
  refused({.sequence = a, .tokens = good, .want = Want::kScores, .targets = outside}, bad,
          "2 targets for 16 tokens");
  refused({.sequence = a, .tokens = outside, .want = Want::kNothing}, bad, "0 to 511");
  refused({.sequence = a, .tokens = good, .want = Want::kSample, .sampling = {.temperature = -3}},
          bad, "temperature is -3");
  refused({.sequence = SequenceId{12345}, .tokens = good}, absl::StatusCode::kNotFound,
          "sequence 12345 does not exist");
  StepItem twice[] = {{.sequence = a, .tokens = good}, {.sequence = a, .tokens = good}};
  ASSERT_OK(world.engine->Step(twice));
  EXPECT_OK(twice[0].status);
  EXPECT_THAT(twice[1].status, StatusIs(bad, HasSubstr("twice")));
  EXPECT_EQ(world.engine->position(a), 16);
}

// ---- Planned once, then only enqueued ----

class WaitsTest : public ::testing::Test {
 protected:
  // Decodes `sequences` forks of one text, warm; the counts of each further step that fills no
  // page.
  static std::vector<DeferringBackend::Counts> DecodeSteps(EngineWorld& world, int sequences) {
    const SequenceId text = world.NewSequence();
    world.ReadAll(text, RandomTokens(206, 6), 48);  // 200 tokens behind the sinks: 25 blocks
    std::vector<SequenceId> forks;
    for (int i = 0; i < sequences; ++i) forks.push_back(world.Fork(text));
    auto& device = static_cast<DeferringBackend&>(*world.backend);
    std::vector<DeferringBackend::Counts> result;
    const int32_t token = 9;  // always the same: so that what is selected changes little
    for (int step = 0; step < 40; ++step) {
      std::vector<StepItem> items;
      for (const SequenceId fork : forks) {
        items.push_back({.sequence = fork, .tokens = {&token, 1}, .want = Want::kSample});
      }
      const DeferringBackend::Counts before = device.counts();
      EXPECT_OK(world.engine->Step(items));
      for (const StepItem& item : items) EXPECT_OK(item.status);
      const DeferringBackend::Counts after = device.counts();
      int64_t misses = 0;
      for (const SequenceId fork : forks) misses += world.engine->StatsOf(fork).cache_misses;
      const bool hits_only = misses == misses_;
      misses_ = misses;
      // Every eighth token fills a page, which goes to the store.
      if (step < 16 || !hits_only || !hit_only_before_ || (step + 1) % 8 == 0) {
        hit_only_before_ = hits_only;
        continue;
      }
      result.push_back({.waits = after.waits - before.waits,
                        .copies = after.copies - before.copies,
                        .allocations = after.allocations - before.allocations});
    }
    return result;
  }
  static inline int64_t misses_ = 0;
  static inline bool hit_only_before_ = false;

  static std::unique_ptr<EngineWorld> World(bool remote) {
    misses_ = 0;
    hit_only_before_ = false;
    return std::make_unique<EngineWorld>(
        SmallEngineOptions(PolicyKind::kInfLlm), DType::kF32, 2,
        [](std::unique_ptr<kernels::Backend> base) {
          return std::make_unique<DeferringBackend>(std::move(base));
        },
        int64_t{64} << 20, remote);
  }
};

TEST_F(WaitsTest, ADecodeStepOfCachedBlocksAllocatesNothingAndWaitsOnce) {
  for (const int sequences : {1, 8}) {
    const auto world = World(/*remote=*/false);
    const auto steps = DecodeSteps(*world, sequences);
    ASSERT_GE(steps.size(), 3u);
    for (const DeferringBackend::Counts& counts : steps) {
      EXPECT_EQ(counts.waits, 1);
      EXPECT_EQ(counts.allocations, 0);
    }
  }
}

TEST_F(WaitsTest, WithARemoteStoreItIsAskedAndWaitedForOncePerLayer) {
  const auto world = World(/*remote=*/true);
  const auto steps = DecodeSteps(*world, 8);
  ASSERT_GE(steps.size(), 3u);
  for (const DeferringBackend::Counts& counts : steps) {
    EXPECT_LE(counts.waits, world->engine->config().layers + 1);
    EXPECT_EQ(counts.allocations, 0);
  }
  const int64_t before = world->store->selects;
  const SequenceId sequence = world->NewSequence();
  world->ReadAll(sequence, RandomTokens(206, 6), 48);
  const int64_t reading = world->store->selects - before;
  // Several exec blocks, one call per layer.
  EXPECT_LE(reading, world->engine->config().layers * 5);
}

}  // namespace
}  // namespace infllm::worker
