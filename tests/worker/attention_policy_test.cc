#include "worker/attention/attention_policy.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/backend.h"
#include "tests/support/status_matchers.h"
#include "tests/worker/attention_oracle.h"
#include "tests/worker/attention_policy_fixture.h"

namespace infllm::worker {
namespace {

using ::infllm::testing::StatusIs;
using ::testing::AllOf;
using ::testing::HasSubstr;

TEST_P(AttentionPolicyTest, FullIsCausalAttention) {
  const ModelConfig model = TinyModel();
  const Sequence s = RandomSequence(model, 150, 1);
  const auto expected = OracleAttention(model, s, TrueDistance());
  EXPECT_LT(MaxDifference(Run(model, SmallOptions(PolicyKind::kFull), s, 150), expected),
            kTolerance);
}

TEST_P(AttentionPolicyTest, FullHonoursTheModelsSlidingWindow) {
  ModelConfig model = TinyModel();
  model.sliding_window = 20;
  const Sequence s = RandomSequence(model, 300, 2);
  const auto expected = OracleAttention(model, s, [](int64_t i, int64_t j) {
    return i - j < 20 ? std::optional<int64_t>(i - j) : std::nullopt;
  });
  EXPECT_LT(MaxDifference(Run(model, SmallOptions(PolicyKind::kFull), s, 64), expected),
            kTolerance);
}

TEST_P(AttentionPolicyTest, EveryPolicyIsCausalAttentionBelowTheWindow) {
  const ModelConfig model = TinyModel();
  const Sequence s = RandomSequence(model, 24, 3);
  const auto expected = OracleAttention(model, s, TrueDistance());
  for (const PolicyKind policy :
       {PolicyKind::kStreamingLlm, PolicyKind::kLmInfinite, PolicyKind::kInfLlm}) {
    EXPECT_LT(MaxDifference(Run(model, SmallOptions(policy), s, 8), expected), kTolerance)
        << Name(policy);
  }
}

TEST_P(AttentionPolicyTest, InfLlmIsClippedFullAttentionWhileNothingIsDropped) {
  for (const auto& [q_heads, kv_heads, head_dim] :
       {std::tuple{1, 1, 8}, {4, 2, 16}, {8, 2, 24}, {8, 1, 32}}) {
    const ModelConfig model = TinyModel(q_heads, kv_heads, head_dim);
    const AttentionOptions options = SmallOptions(PolicyKind::kInfLlm);
    // n_init + n_local + top_k blocks: one more block than this and selection begins.
    const int64_t tokens = options.n_init + options.n_local + options.top_k * options.block_tokens;
    const Sequence s = RandomSequence(model, tokens, 4);
    const auto expected = OracleAttention(model, s, [&](int64_t i, int64_t j) {
      return std::optional<int64_t>(std::min(i - j, options.n_local - 1));
    });
    for (const auto scoring : {kernels::Scoring::kMean, kernels::Scoring::kHeadVote}) {
      AttentionOptions scored = options;
      scored.scoring = scoring;
      EXPECT_LT(MaxDifference(Run(model, scored, s, 16), expected), kTolerance);
    }
  }
}

TEST_P(AttentionPolicyTest, LmInfiniteClipsTheDistanceToItsSinks) {
  const ModelConfig model = TinyModel();
  const AttentionOptions options = SmallOptions(PolicyKind::kLmInfinite);
  const Sequence s = RandomSequence(model, 400, 5);
  const auto expected = OracleAttention(model, s, [&](int64_t i, int64_t j) {
    if (i - j < options.n_local) return std::optional<int64_t>(i - j);
    return j < options.n_init ? std::optional<int64_t>(options.n_local - 1) : std::nullopt;
  });
  EXPECT_LT(MaxDifference(Run(model, options, s, 64), expected), kTolerance);
}

TEST_P(AttentionPolicyTest, StreamingLlmPlacesItsSinksBeforeTheWindow) {
  const ModelConfig model = TinyModel();
  const AttentionOptions options = SmallOptions(PolicyKind::kStreamingLlm);
  const Sequence s = RandomSequence(model, 400, 6);
  const auto expected = OracleAttention(model, s, [&](int64_t i, int64_t j) {
    if (i - j < options.n_local) return std::optional<int64_t>(i - j);
    return j < options.n_init ? std::optional<int64_t>(options.n_local + options.n_init - 1 - j)
                              : std::nullopt;
  });
  EXPECT_LT(MaxDifference(Run(model, options, s, 64), expected), kTolerance);
}

// Every block must be attended or dropped as a whole; the blocks that were chosen are reported.
TEST_P(AttentionPolicyTest, InfLlmAttendsExactlyTheReportedBlocks) {
  const ModelConfig model = TinyModel();
  AttentionOptions options = SmallOptions(PolicyKind::kInfLlm);
  options.exec_block = 1;
  const Sequence s = RandomSequence(model, 300, 7);
  const auto policy = Policy(model, options);
  ASSERT_OK_AND_ASSIGN(const auto state, policy->NewState());
  std::vector<std::vector<int64_t>> chosen(static_cast<size_t>(s.tokens));
  state->observer = [&](int64_t layer, int64_t position,
                        std::span<const memstore::SelectedBlock> blocks) {
    if (layer != model.layers - 1) return;
    for (const auto& block : blocks) {
      chosen[static_cast<size_t>(position)].push_back(block.index);
    }
  };
  const auto actual = Feed(*policy, model, *state, s, 0, s.tokens, 20);
  int64_t partial = 0;
  const auto expected = OracleAttention(model, s, [&](int64_t i, int64_t j) {
    if (i - j < options.n_local) return std::optional<int64_t>(i - j);
    const int64_t block = (j - options.n_init) / options.block_tokens;
    const int64_t block_end = options.n_init + (block + 1) * options.block_tokens;
    const auto& blocks = chosen[static_cast<size_t>(i)];
    // A block that ends after i - n_local is not cut yet: its old tokens are the remainder.
    const bool seen = j < options.n_init || block_end > i - options.n_local ||
                      std::count(blocks.begin(), blocks.end(), block) > 0;
    if (!seen) ++partial;
    return seen ? std::optional<int64_t>(options.n_local - 1) : std::nullopt;
  });
  EXPECT_GT(partial, 1000);  // the test is about texts of which most is not attended
  EXPECT_LT(MaxDifference(actual, expected), kTolerance);
}

TEST_P(AttentionPolicyTest, ChunkSizeDoesNotChangeResults) {
  const ModelConfig model = TinyModel();
  const Sequence s = RandomSequence(model, 400, 8);
  for (const PolicyKind policy : {PolicyKind::kFull, PolicyKind::kStreamingLlm,
                                  PolicyKind::kLmInfinite, PolicyKind::kInfLlm}) {
    const AttentionOptions options = SmallOptions(policy);
    const auto once = Run(model, options, s, 400);
    for (const int64_t chunk : {8, 16, 64, 104}) {
      EXPECT_EQ(Run(model, options, s, chunk), once) << Name(policy) << " chunk " << chunk;
    }
  }
}

TEST_P(AttentionPolicyTest, CacheAndTiersDoNotChangeResults) {
  const ModelConfig model = TinyModel();
  const Sequence s = RandomSequence(model, 600, 9);
  AttentionOptions options = SmallOptions(PolicyKind::kInfLlm);
  const auto expected = Run(model, options, s, 64);
  const int64_t payload = 2 * model.kv_heads * options.block_tokens * model.head_dim * 4;
  for (const CachePolicy policy : {CachePolicy::kLru, CachePolicy::kLruS}) {
    for (const int64_t cache_blocks : {3, 4, 100}) {
      options.cache_policy = policy;
      options.cache_blocks = cache_blocks;
      // Room for all blocks, and for little more than what the cache pins.
      for (const int64_t ram_blocks : {int64_t{1000}, 2 * model.layers * (cache_blocks + 4)}) {
        ResetStore(ram_blocks * (payload + 4096));
        EXPECT_EQ(Run(model, options, s, 64), expected) << cache_blocks << " " << ram_blocks;
      }
    }
  }
}

TEST_P(AttentionPolicyTest, ForksContinueAsIfTheyHadReadItAll) {
  const ModelConfig model = TinyModel();
  Sequence s = RandomSequence(model, 320, 10);
  Sequence other = RandomSequence(model, 320, 11);
  for (const PolicyKind kind : {PolicyKind::kFull, PolicyKind::kStreamingLlm,
                                PolicyKind::kLmInfinite, PolicyKind::kInfLlm}) {
    const auto policy = Policy(model, SmallOptions(kind));
    ASSERT_OK_AND_ASSIGN(const auto parent, policy->NewState());
    const int64_t cut = 200;  // in the middle of a page
    Feed(*policy, model, *parent, s, 0, cut, 40);
    ASSERT_OK_AND_ASSIGN(const auto fork, policy->Fork(*parent));
    // The fork reads another continuation first; the parent must not notice.
    const auto forked = Feed(*policy, model, *fork, other, cut, 320, 40);
    const auto continued = Feed(*policy, model, *parent, s, cut, 320, 40);

    ASSERT_OK_AND_ASSIGN(const auto fresh, policy->NewState());
    Feed(*policy, model, *fresh, s, 0, cut, 40);
    EXPECT_EQ(continued, Feed(*policy, model, *fresh, s, cut, 320, 40)) << Name(kind);
    ASSERT_OK_AND_ASSIGN(const auto fresh_other, policy->NewState());
    Feed(*policy, model, *fresh_other, s, 0, cut, 40);
    EXPECT_EQ(forked, Feed(*policy, model, *fresh_other, other, cut, 320, 40)) << Name(kind);
  }
}

TEST_P(AttentionPolicyTest, DroppedTokensFreeTheirMemory) {
  const ModelConfig model = TinyModel();
  const Sequence s = RandomSequence(model, 3000, 12);
  for (const PolicyKind kind :
       {PolicyKind::kStreamingLlm, PolicyKind::kLmInfinite, PolicyKind::kInfLlm}) {
    const auto policy = Policy(model, SmallOptions(kind));
    ASSERT_OK_AND_ASSIGN(const auto state, policy->NewState());
    Feed(*policy, model, *state, s, 0, 1500, 64);
    const int64_t at_half = policy->StatsOf(*state).device_bytes;
    Feed(*policy, model, *state, s, 1500, 3000, 64);
    EXPECT_LE(policy->StatsOf(*state).device_bytes, at_half + at_half / 2) << Name(kind);
  }
}

TEST_P(AttentionPolicyTest, BlocksAreCutOnceTheyLeaveTheWindow) {
  const ModelConfig model = TinyModel();
  const AttentionOptions options = SmallOptions(PolicyKind::kInfLlm);
  const Sequence s = RandomSequence(model, 200, 13);
  const auto policy = Policy(model, options);
  ASSERT_OK_AND_ASSIGN(const auto state, policy->NewState());
  for (int64_t tokens = 8; tokens <= 200; tokens += 8) {
    Feed(*policy, model, *state, s, tokens - 8, tokens, 8);
    EXPECT_EQ(
        policy->StatsOf(*state).blocks,
        std::max<int64_t>(0, tokens - options.n_init - options.n_local) / options.block_tokens);
  }
}

TEST_P(AttentionPolicyTest, Bf16CacheStaysCloseToF32) {
  const ModelConfig model = TinyModel();
  const Sequence s = RandomSequence(model, 90, 14);
  AttentionOptions options = SmallOptions(PolicyKind::kInfLlm);
  options.top_k = 100;  // nothing dropped: rounding must not change a selection
  options.cache_blocks = 100;
  const auto policy = Policy(model, options, kernels::DType::kBF16);
  ASSERT_OK_AND_ASSIGN(const auto state, policy->NewState());
  const auto bf16 = Feed(*policy, model, *state, s, 0, s.tokens, 16);
  EXPECT_LT(MaxDifference(bf16, Run(model, options, s, 16)), 0.1);
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionPolicyTest,
                         ::testing::Values(TestDevice::kReference, TestDevice::kCpu,
                                           TestDevice::kDeferring),
                         TestDeviceName);

struct BadOptions {
  const char* name;
  void (*change)(AttentionOptions&);
  const char* parameter;
  const char* limit;
};

class AttentionOptionsTest : public ::testing::TestWithParam<BadOptions> {};

TEST_P(AttentionOptionsTest, ErrorsNameParameterAndLimit) {
  AttentionOptions options;
  ASSERT_OK(options.Validate(TinyModel()));
  GetParam().change(options);
  EXPECT_THAT(options.Validate(TinyModel()),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr(GetParam().parameter), HasSubstr(GetParam().limit))));
}

INSTANTIATE_TEST_SUITE_P(
    Bad, AttentionOptionsTest,
    ::testing::Values(
        BadOptions{"ExecBlockAboveWindow", [](auto& o) { o.exec_block = 5000; },
                   "exec-block is 5000", "n-local, which is 4096"},
        BadOptions{"NoExecBlock", [](auto& o) { o.exec_block = 0; }, "exec-block is 0", "[1, "},
        BadOptions{"NegativeInit", [](auto& o) { o.n_init = -1; }, "n-init is -1", "[0, "},
        BadOptions{"NoWindow", [](auto& o) { o.n_local = 0; }, "n-local is 0", "[1, "},
        BadOptions{"ReprTopKAboveBlock",
                   [](auto& o) {
                     o.representative = kernels::RepresentativeKind::kMeanKey;
                     o.repr_top_k = 33;
                   },
                   "repr-top-k is 33", "block-tokens, which is 32"},
        BadOptions{"BlockAboveTheStores", [](auto& o) { o.block_tokens = 8193; },
                   "block-tokens is 8193", "[1, 8192]"},
        BadOptions{"FarBias", [](auto& o) { o.far_bias = 21; }, "far-bias is 21", "[-20, 20]"},
        BadOptions{"CompatFarBias",
                   [](auto& o) {
                     o.compat_reference = true;
                     o.representative = kernels::RepresentativeKind::kMeanKey;
                     o.far_bias = 1;
                   },
                   "far-bias is 1", "must be 0 with compat reference"},
        BadOptions{"CacheBelowTopK", [](auto& o) { o.top_k = 129; }, "cache-blocks is 128",
                   "top-k, which is 129"},
        BadOptions{"TopKAboveARequest",
                   [](auto& o) {
                     o.top_k = 65537;
                     o.cache_blocks = 1 << 20;
                   },
                   "top-k is 65537", "[0, 65536]"},
        BadOptions{"CompatScoring",
                   [](auto& o) {
                     o.compat_reference = true;
                     o.representative = kernels::RepresentativeKind::kMeanKey;
                     o.scoring = kernels::Scoring::kHeadVote;
                   },
                   "scoring is head-vote", "must be mean with compat reference"},
        BadOptions{"CompatRepresentatives",
                   [](auto& o) {
                     o.compat_reference = true;
                     o.representative = kernels::RepresentativeKind::kBounds;
                   },
                   "representatives is bounds", "must be mean-key with compat reference"},
        BadOptions{"Decay",
                   [](auto& o) {
                     o.cache_policy = CachePolicy::kLruS;
                     o.score_decay = 1.5;
                   },
                   "score-decay is 1.5", "[0, 1]"},
        BadOptions{"RopeFactor",
                   [](auto& o) {
                     o.rope_scaling = RopeScaling::kLinear;
                     o.rope_factor = 0.5;
                   },
                   "rope-factor is 0.5", "[1, "}),
    [](const auto& info) { return info.param.name; });

TEST(AttentionOptionsTest, WindowMustFitTheModelsSlidingWindow) {
  ModelConfig model = TinyModel();
  model.sliding_window = 1024;
  EXPECT_THAT(AttentionOptions().Validate(model),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("1024")));
}

// What the method does not use is not looked at, so that one set of flags serves all policies.
TEST(AttentionOptionsTest, OtherPoliciesIgnoreTheOptionsOfTheMemory) {
  AttentionOptions options;
  options.cache_blocks = 1;
  options.compat_reference = true;
  options.far_bias = 1;
  options.repr_top_k = 64;
  for (const PolicyKind policy :
       {PolicyKind::kFull, PolicyKind::kStreamingLlm, PolicyKind::kLmInfinite}) {
    options.policy = policy;
    EXPECT_OK(options.Validate(TinyModel()));
  }
}

TEST(AttentionOptionsTest, BoundsDoNotAskForTokensOfAMeanKey) {
  AttentionOptions options;
  options.block_tokens = 2;  // below the default of repr_top_k
  EXPECT_OK(options.Validate(TinyModel()));
}

}  // namespace
}  // namespace infllm::worker
