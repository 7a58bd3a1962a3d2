// Sequences that go on from a committed context: bit for bit as if they had read it themselves.
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tests/memstore/fake_disk.h"
#include "tests/support/deferring_backend.h"
#include "tests/support/status_matchers.h"
#include "tests/worker/engine_fixture.h"

namespace infllm::worker {
namespace {

using ::infllm::testing::DeferringBackend;
using ::infllm::testing::IsOk;
using ::infllm::testing::StatusIs;
using kernels::DType;
using memstore::FakeDisk;
using ::testing::AllOf;
using ::testing::HasSubstr;

using Kind = std::tuple<kernels::RepresentativeKind, kernels::Scoring, DType>;
class ResumeTest : public ::testing::TestWithParam<Kind> {
 protected:
  static AttentionOptions Options() {
    AttentionOptions options = SmallEngineOptions(PolicyKind::kInfLlm);
    std::tie(options.representative, options.scoring, std::ignore) = GetParam();
    return options;
  }
  static DType Type() { return std::get<2>(GetParam()); }
  EngineWorld World(bool remote = false, bool deferring = false) const {
    return EngineWorld(
        Options(), Type(), 2,
        [&](std::unique_ptr<kernels::Backend> base) {
          return deferring ? std::make_unique<DeferringBackend>(std::move(base)) : std::move(base);
        },
        int64_t{64} << 20, remote, FakeDisk::Open(disk_));
  }
  // Goes on from `name` in an engine of its own; the logits of what is read then.
  std::vector<float> GoOn(EngineWorld& world, const std::string& name, int64_t position,
                          std::span<const int32_t> tokens) const {
    const auto found = world.store->FindCommitted("", name);
    EXPECT_OK(found);
    const auto checkpoint = world.store->ReadCheckpoint(found->id);
    EXPECT_OK(checkpoint);
    const auto sequence = world.engine->Open(*found, checkpoint->state, position);
    EXPECT_OK(sequence);
    EXPECT_EQ(world.engine->position(*sequence), position);
    return world.ReadAll(*sequence, tokens, 16);
  }
  std::span<const int32_t> Part(int64_t begin, int64_t end) const {
    return std::span(tokens_).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  }

  const std::shared_ptr<FakeDisk> disk_ = std::make_shared<FakeDisk>();
  const std::vector<int32_t> tokens_ = RandomTokens(400, 3);
};
INSTANTIATE_TEST_SUITE_P(
    Kinds, ResumeTest,
    ::testing::Values(
        Kind{kernels::RepresentativeKind::kBounds, kernels::Scoring::kMean, DType::kF32},
        Kind{kernels::RepresentativeKind::kBounds, kernels::Scoring::kHeadVote, DType::kBF16},
        Kind{kernels::RepresentativeKind::kMeanKey, kernels::Scoring::kMean, DType::kF32},
        Kind{kernels::RepresentativeKind::kMeanKey, kernels::Scoring::kMean, DType::kBF16}));

// In the sinks, with and without a page that grows, before and after the window is full.
TEST_P(ResumeTest, AnyEndOfAContextChangesNoBit) {
  for (const int64_t end : {3, 6, 9, 14, 40, 47, 64, 101, 200, 254, 300}) {
    SCOPED_TRACE(end);
    const std::string name = std::to_string(end);
    std::vector<float> expected;
    {
      EngineWorld world = World();
      const SequenceId sequence = world.NewSequence();
      world.ReadAll(sequence, Part(0, end), 16);
      ASSERT_OK(world.engine->Commit(sequence, name, {}, Part(0, end)));
      expected = world.ReadAll(sequence, Part(end, end + 80), 16);
    }
    for (const auto& [remote, deferring] :
         {std::pair{false, false}, {true, false}, {false, true}}) {
      EngineWorld world = World(remote, deferring);
      EXPECT_EQ(GoOn(world, name, end, Part(end, end + 80)), expected)
          << (remote ? "remote" : "in process") << (deferring ? ", on a device" : "");
    }
  }
}

TEST_P(ResumeTest, FromCommitToCommitLikeAtOnce) {
  std::vector<float> expected;
  {
    EngineWorld world = World();
    const SequenceId sequence = world.NewSequence();
    world.ReadAll(sequence, Part(0, 320), 16);
    expected = world.ReadAll(sequence, Part(320, 400), 16);
  }
  memstore::ContextId replaces;
  int64_t done = 0;
  for (const int64_t end : {16, 64, 144, 160, 320}) {  // each in an engine of its own
    EngineWorld world = World();
    SequenceId sequence = world.NewSequence();
    if (done > 0) {
      ASSERT_OK_AND_ASSIGN(const auto found, world.store->FindCommitted("", "a"));
      ASSERT_OK_AND_ASSIGN(const auto checkpoint, world.store->ReadCheckpoint(found.id));
      ASSERT_OK_AND_ASSIGN(sequence, world.engine->Open(found, checkpoint.state, done));
    }
    world.ReadAll(sequence, Part(done, end), 16);
    ASSERT_OK_AND_ASSIGN(replaces, world.engine->Commit(sequence, "a", replaces, Part(0, end)));
    done = end;
  }
  EngineWorld world = World();
  EXPECT_EQ(GoOn(world, "a", 320, Part(320, 400)), expected);
}

TEST_P(ResumeTest, FromTheMiddleOfAContextLikeFromItsEnd) {
  const bool mean_key = Options().representative == kernels::RepresentativeKind::kMeanKey;
  EngineWorld world = World();
  const SequenceId sequence = world.NewSequence();
  world.ReadAll(sequence, Part(0, 301), 16);
  ASSERT_OK(world.engine->Commit(sequence, "a", {}, Part(0, 301)));
  ASSERT_OK_AND_ASSIGN(const auto found, world.store->FindCommitted("", "a"));
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, world.store->ReadCheckpoint(found.id));
  for (const int64_t position : {0, 16, 48, 160, 288}) {
    if (mean_key) {
      EXPECT_THAT(world.engine->Open(found, checkpoint.state, position),
                  StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("mean-key")));
      continue;
    }
    const SequenceId alone = world.NewSequence();
    world.ReadAll(alone, Part(0, position), 16);
    EXPECT_EQ(GoOn(world, "a", position, Part(position, position + 60)),
              world.ReadAll(alone, Part(position, position + 60), 16))
        << position;
  }
  for (const int64_t position : {-16, 8, 300, 302, 304}) {
    EXPECT_THAT(world.engine->Open(found, checkpoint.state, position),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         AllOf(HasSubstr(std::to_string(position)), HasSubstr("301"))));
  }
}

TEST_P(ResumeTest, ATextStartsFromTheContextThatBeginsLikeIt) {
  const bool mean_key = Options().representative == kernels::RepresentativeKind::kMeanKey;
  {
    EngineWorld world = World();
    const SequenceId sequence = world.NewSequence();
    world.ReadAll(sequence, Part(0, 101), 16);
    ASSERT_OK(world.engine->Commit(sequence, "a", {}, Part(0, 101)));
    // What is read in other pieces is not what another would have read.
    world.ReadAll(sequence, Part(101, 181), 16);
    ASSERT_OK(world.engine->Commit(sequence, "b", {}, Part(0, 181)));
    const SequenceId other = world.NewSequence();
    world.ReadAll(other, Part(0, 64), 16);
    for (int64_t i = 64; i < 128; ++i) world.ReadAll(other, Part(i, i + 1), 16);
    ASSERT_OK(world.engine->Commit(other, "c", {}, Part(0, 128)));
  }
  struct Case {
    size_t differs = 0;  // the first token that is not theirs
    int64_t cached = 0;
  };
  for (const bool remote : {false, true}) {
    EngineWorld world = World(remote);
    for (const auto& [differs, cached] : {Case{200, 96}, {96, 96}, {90, 80}, {5, 0}}) {
      std::vector<int32_t> text(Part(0, 250).begin(), Part(0, 250).end());
      text[differs] ^= 1;
      ASSERT_OK_AND_ASSIGN(const Engine::Start start, world.engine->StartFromPrefix(text));
      EXPECT_OK(start.passed_over);
      EXPECT_EQ(start.cached_tokens, mean_key ? 0 : cached) << differs;
      EXPECT_EQ(start.context.empty(), start.cached_tokens == 0);
      const auto begin = static_cast<size_t>(start.cached_tokens);
      const SequenceId alone = world.NewSequence();
      world.ReadAll(alone, std::span(text).first(begin), 16);
      EXPECT_EQ(world.ReadAll(start.sequence, std::span(text).subspan(begin), 16),
                world.ReadAll(alone, std::span(text).subspan(begin), 16))
          << differs;
    }
  }
}

TEST_P(ResumeTest, ForksOfACommitGoTheirOwnWay) {
  EngineWorld world = World();
  const SequenceId sequence = world.NewSequence();
  world.ReadAll(sequence, Part(0, 200), 16);
  ASSERT_OK(world.engine->Commit(sequence, "a", {}, Part(0, 200)));
  const std::vector<float> expected = world.ReadAll(world.Fork(sequence), Part(200, 300), 16);
  const std::vector<int32_t> other = RandomTokens(90, 99);
  GoOn(world, "a", 200, other);
  world.ReadAll(sequence, other, 16);
  world.engine->Drop(sequence);
  EXPECT_EQ(GoOn(world, "a", 200, Part(200, 300)), expected);
}

TEST_P(ResumeTest, WhatDoesNotFitIsRefused) {
  {
    EngineWorld world = World();
    const SequenceId sequence = world.NewSequence();
    world.ReadAll(sequence, Part(0, 100), 16);
    EXPECT_THAT(world.engine->Commit(sequence, "a", {}, Part(0, 99)),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("100 tokens")));
    ASSERT_OK(world.engine->Commit(sequence, "a", {}, Part(0, 100)));
  }
  EngineWorld world = World();
  ASSERT_OK_AND_ASSIGN(memstore::CommittedContext found, world.store->FindCommitted("", "a"));
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, world.store->ReadCheckpoint(found.id));
  const auto refused = [&](const memstore::CommittedContext& context, const char* text) {
    EXPECT_THAT(world.engine->Open(context, checkpoint.state, context.tokens),
                StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr(text)));
  };
  memstore::CommittedContext other = found;
  other.options.model.lo ^= 1;
  refused(other, "other weights");
  other = found;
  other.options.recipe += " x=1";
  refused(other, "other settings");
  other = found;
  other.options.geometry.layers += 1;
  refused(other, "another shape");
  for (const int64_t wrong : {-1, 1}) {
    other = found;
    other.blocks += wrong;
    EXPECT_THAT(world.engine->Open(other, checkpoint.state, 100),
                StatusIs(absl::StatusCode::kDataLoss));
    other = found;
    other.published += wrong;
    EXPECT_THAT(world.engine->Open(other, checkpoint.state, 100),
                StatusIs(absl::StatusCode::kDataLoss));
  }
  // Whatever the bytes of the checkpoint are.
  const std::span<const std::byte> state = checkpoint.state;
  const auto damaged = StatusIs(absl::StatusCode::kDataLoss, HasSubstr("\"a\""));
  for (const size_t size : {size_t{0}, size_t{10}, size_t{48}, state.size() - 1}) {
    EXPECT_THAT(world.engine->Open(found, state.first(size), 100), damaged) << size;
  }
  for (size_t i = 0; i < 48; ++i) {
    std::vector<std::byte> changed(state.begin(), state.end());
    changed[i] ^= std::byte{0x81};
    EXPECT_THAT(world.engine->Open(found, changed, 100), damaged) << i;
  }
  EXPECT_OK(world.engine->Open(found, state, 100)) << "nothing of it was kept";
}

TEST_P(ResumeTest, MountedContextsAreSearchedLikeTheOwn) {
  if (Options().representative == kernels::RepresentativeKind::kMeanKey) {
    EngineWorld world = World();
    const SequenceId sequence = world.NewSequence();
    world.ReadAll(sequence, Part(0, 100), 16);
    ASSERT_OK(world.engine->Commit(sequence, "a", {}, Part(0, 100)));
    const memstore::CommittedContext a = *world.store->FindCommitted("", "a");
    EXPECT_THAT(world.engine->NewSequence({&a, 1}),
                StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("mean-key")));
    return;
  }
  {
    EngineWorld world = World();
    for (const auto& [name, begin, end] :
         {std::tuple{"a", 0, 121}, {"b", 121, 200}, {"short", 200, 203}}) {
      const SequenceId sequence = world.NewSequence();
      world.ReadAll(sequence, Part(begin, end), 16);
      ASSERT_OK(world.engine->Commit(sequence, name, {}, Part(begin, end)));
    }
  }
  std::vector<float> expected;
  for (const auto& [remote, deferring] : {std::pair{false, false}, {true, false}, {false, true}}) {
    SCOPED_TRACE(remote ? "remote" : deferring ? "on a device" : "in process");
    EngineWorld world = World(remote, deferring);
    std::vector<memstore::CommittedContext> contexts;
    for (const char* name : {"a", "b", "short"}) {
      contexts.push_back(*world.store->FindCommitted("", name));
    }
    const int64_t blocks = contexts[0].blocks + contexts[1].blocks;
    EXPECT_EQ(contexts[2].blocks, 0);
    std::vector<int64_t> seen;
    const auto watch = [&](SequenceId sequence) {
      world.engine->SetObserver(
          sequence, [&](int64_t layer, int64_t, std::span<const memstore::SelectedBlock> selected) {
            for (const auto& block : selected) {
              if (layer == 0) seen.push_back(block.index);
            }
          });
    };
    // From its first token on, where a text alone has nothing to select.
    ASSERT_OK_AND_ASSIGN(const SequenceId sequence, world.engine->NewSequence(contexts));
    watch(sequence);
    const std::vector<float> logits = world.ReadAll(sequence, Part(300, 330), 16);
    EXPECT_EQ(seen.size(), 6u) << "three of each exec block";
    EXPECT_THAT(seen, ::testing::Each(::testing::Lt(blocks)));
    EXPECT_EQ(world.engine->StatsOf(sequence).blocks, blocks);
    EXPECT_NE(logits, world.ReadAll(world.NewSequence(), Part(300, 330), 16));
    if (expected.empty()) expected = logits;
    EXPECT_EQ(logits, expected);

    // In other pieces, and after a fork: the same.
    ASSERT_OK_AND_ASSIGN(const SequenceId again, world.engine->NewSequence(contexts));
    const SequenceId fork = world.Fork(again);
    EXPECT_EQ(world.ReadAll(fork, Part(300, 330), 32), logits);
    world.engine->Drop(again);

    // What the sequence has read itself comes behind them.
    seen.clear();
    world.ReadAll(sequence, Part(200, 300), 16);
    EXPECT_EQ(world.engine->StatsOf(sequence).blocks, blocks + 10);
    EXPECT_THAT(seen, ::testing::Contains(::testing::Ge(blocks)));
    EXPECT_THAT(seen, ::testing::Contains(::testing::Lt(blocks)));

    // The context that is gone on from has its own window and sinks.
    const auto checkpoint = world.store->ReadCheckpoint(contexts[1].id);
    ASSERT_OK(checkpoint);
    ASSERT_OK_AND_ASSIGN(
        const SequenceId after_b,
        world.engine->Open(contexts[1], checkpoint->state, contexts[1].tokens, {&contexts[0], 1}));
    seen.clear();
    watch(after_b);
    world.ReadAll(after_b, Part(300, 332), 16);
    EXPECT_THAT(seen, ::testing::Contains(::testing::Lt(contexts[0].blocks)));

    EXPECT_THAT(world.engine->Commit(after_b, "c", {}, Part(0, 111)),
                StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("mounts contexts")));
    memstore::CommittedContext other = contexts[0];
    other.options.recipe += " x=1";
    EXPECT_THAT(world.engine->NewSequence({&other, 1}),
                StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("other settings")));
  }
}

TEST_P(ResumeTest, MountedContextsLieBeforeWhatIsOpened) {
  if (Options().representative == kernels::RepresentativeKind::kMeanKey) return;
  EngineWorld world = World();
  const SequenceId sequence = world.NewSequence();
  world.ReadAll(sequence, Part(0, 256), 16);
  for (const char* name : {"a", "b"}) {
    ASSERT_OK(world.engine->Commit(sequence, name, {}, Part(0, 256)));
  }
  const memstore::CommittedContext a = *world.store->FindCommitted("", "a");
  const memstore::CommittedContext b = *world.store->FindCommitted("", "b");
  const auto checkpoint = world.store->ReadCheckpoint(a.id);
  ASSERT_OK(checkpoint);
  // Opened at its beginning a context has no block of its own.
  ASSERT_OK_AND_ASSIGN(const SequenceId opened,
                       world.engine->Open(a, checkpoint->state, 0, {&b, 1}));
  ASSERT_OK_AND_ASSIGN(const SequenceId made, world.engine->NewSequence({&b, 1}));
  EXPECT_EQ(world.ReadAll(opened, Part(256, 330), 16), world.ReadAll(made, Part(256, 330), 16));
}

TEST(ResumePolicyTest, OnlyInfLlmCommits) {
  EngineWorld world(SmallEngineOptions(PolicyKind::kLmInfinite), DType::kF32, 1);
  const SequenceId sequence = world.NewSequence();
  world.ReadAll(sequence, RandomTokens(20, 1), 16);
  EXPECT_THAT(world.engine->Commit(sequence, "a", {}, RandomTokens(20, 1)),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("lm-infinite")));
  EXPECT_THAT(world.engine->Open({}, {}, 0),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("lm-infinite")));
  const memstore::CommittedContext some;
  EXPECT_THAT(world.engine->NewSequence({&some, 1}),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("lm-infinite")));
}

}  // namespace
}  // namespace infllm::worker
