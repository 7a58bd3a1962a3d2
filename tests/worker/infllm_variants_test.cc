// Representatives and scorings: every combination against plain loops.
#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "tests/support/status_matchers.h"
#include "tests/worker/attention_oracle.h"
#include "tests/worker/attention_policy_fixture.h"
#include "tests/worker/infllm_oracle.h"
#include "worker/attention/attention_policy.h"

namespace infllm::worker {
namespace {

using kernels::RepresentativeKind;
using kernels::Scoring;

AttentionOptions Variant(RepresentativeKind representative, Scoring scoring) {
  AttentionOptions options = SmallOptions(PolicyKind::kInfLlm);
  options.representative = representative;
  options.scoring = scoring;
  return options;
}

std::string Describe(const AttentionOptions& o) {
  std::string text;
  for (const std::string_view part :
       {Name(o.representative), Name(o.scoring), Name(o.rope_scaling), Name(o.cache_policy)}) {
    text.append(part).append(" ");
  }
  return text + "n_init " + std::to_string(o.n_init) + " exec " + std::to_string(o.exec_block);
}

std::vector<AttentionOptions> Variants() {
  std::vector<AttentionOptions> variants;
  for (const auto representative : {RepresentativeKind::kMeanKey, RepresentativeKind::kBounds}) {
    for (const auto scoring : {Scoring::kMean, Scoring::kHeadVote}) {
      variants.push_back(Variant(representative, scoring));
    }
  }
  return variants;
}

class InfLlmVariantsTest : public AttentionPolicyTest {
 protected:
  struct Outcome {
    std::vector<float> out;                   // of the last layer
    std::vector<OracleRetrieval> retrievals;  // of the last layer, without mass
    AttentionStats stats;
  };
  Outcome Observe(const ModelConfig& model, const AttentionOptions& options, const Sequence& s,
                  int64_t chunk) {
    Outcome outcome;
    const auto policy = Policy(model, options);
    auto state = policy->NewState();
    EXPECT_OK(state);
    (*state)->observer = [&](int64_t layer, int64_t position,
                             std::span<const memstore::SelectedBlock> blocks) {
      if (layer != model.layers - 1) return;
      OracleRetrieval& retrieval = outcome.retrievals.emplace_back();
      retrieval.position = position;
      for (const memstore::SelectedBlock& block : blocks) retrieval.blocks.push_back(block.index);
    };
    outcome.out = Feed(*policy, model, **state, s, 0, s.tokens, chunk);
    outcome.stats = policy->StatsOf(**state);
    return outcome;
  }

  void ExpectMatchesTheOracle(const ModelConfig& model, const AttentionOptions& options,
                              const Sequence& s, int64_t chunk) {
    SCOPED_TRACE(Describe(options));
    const OracleRun expected = OracleInfLlm(model, options, s);
    // The test is about texts of which much is not attended.
    EXPECT_GT(expected.unseen / model.q_heads, 2000);
    const Outcome actual = Observe(model, options, s, chunk);
    EXPECT_EQ(actual.retrievals, expected.retrievals);
    EXPECT_LT(MaxDifference(actual.out, expected.out), kTolerance);
  }
};

TEST_P(InfLlmVariantsTest, EveryCombinationIsWhatItsDefinitionSays) {
  const ModelConfig model = TinyModel();
  const Sequence s = RandomSequence(model, 160, 21);
  for (const AttentionOptions& options : Variants()) ExpectMatchesTheOracle(model, options, s, 16);
}

TEST_P(InfLlmVariantsTest, VariantsHoldForOtherShapesStepsAndScalings) {
  for (AttentionOptions variant : Variants()) {
    for (const auto& [q_heads, kv_heads, head_dim] :
         {std::tuple{2, 2, 8}, {8, 4, 24}, {3, 1, 32}}) {
      const ModelConfig model = TinyModel(q_heads, kv_heads, head_dim);
      ExpectMatchesTheOracle(model, variant, RandomSequence(model, 160, 22), 16);
    }
    const ModelConfig model = TinyModel();
    const Sequence s = RandomSequence(model, 160, 23);
    AttentionOptions decoding = variant;
    decoding.exec_block = 1;
    ExpectMatchesTheOracle(model, decoding, s, 20);
    AttentionOptions odd = variant;  // exec blocks that are not whole blocks, no sinks
    odd.n_init = 0;
    odd.exec_block = 11;
    odd.block_tokens = 5;
    ExpectMatchesTheOracle(model, odd, s, 33);
    for (const RopeScaling scaling : {RopeScaling::kLinear, RopeScaling::kNtk}) {
      AttentionOptions scaled = variant;
      scaled.rope_scaling = scaling;
      ExpectMatchesTheOracle(model, scaled, s, 32);
    }
  }
}

TEST_P(InfLlmVariantsTest, ChunksCachesAndTiersDoNotChangeResults) {
  const ModelConfig model = TinyModel();
  const Sequence s = RandomSequence(model, 400, 27);
  for (AttentionOptions options : Variants()) {
    SCOPED_TRACE(Describe(options));
    const auto expected = Run(model, options, s, 64);
    EXPECT_EQ(Run(model, options, s, 400), expected);
    EXPECT_EQ(Run(model, options, s, 8), expected);
    const int64_t payload = 2 * model.kv_heads * options.block_tokens * model.head_dim * 4;
    for (const CachePolicy policy : {CachePolicy::kLru, CachePolicy::kLruS}) {
      for (const int64_t cache_blocks : {3, 4, 100}) {
        options.cache_policy = policy;
        options.cache_blocks = cache_blocks;
        // Room for little more than what the cache and the selections of a step pin.
        ResetStore(2 * model.layers * (cache_blocks + 4 * options.top_k) * (payload + 4096));
        EXPECT_EQ(Run(model, options, s, 64), expected) << cache_blocks;
      }
    }
    ResetStore(int64_t{64} << 20);
  }
}

TEST_P(InfLlmVariantsTest, ForksContinueAsIfTheyHadReadItAll) {
  const ModelConfig model = TinyModel();
  const Sequence s = RandomSequence(model, 320, 28);
  const Sequence other = RandomSequence(model, 320, 29);
  for (AttentionOptions options : Variants()) {
    SCOPED_TRACE(Describe(options));
    options.cache_policy = CachePolicy::kLruS;
    const auto policy = Policy(model, options);
    ASSERT_OK_AND_ASSIGN(const auto parent, policy->NewState());
    const int64_t cut = 200;  // in the middle of a page
    Feed(*policy, model, *parent, s, 0, cut, 40);
    ASSERT_OK_AND_ASSIGN(const auto fork, policy->Fork(*parent));
    const auto forked = Feed(*policy, model, *fork, other, cut, 320, 40);
    const auto continued = Feed(*policy, model, *parent, s, cut, 320, 40);

    ASSERT_OK_AND_ASSIGN(const auto fresh, policy->NewState());
    Feed(*policy, model, *fresh, s, 0, cut, 40);
    EXPECT_EQ(continued, Feed(*policy, model, *fresh, s, cut, 320, 40));
    ASSERT_OK_AND_ASSIGN(const auto fresh_other, policy->NewState());
    Feed(*policy, model, *fresh_other, s, 0, cut, 40);
    EXPECT_EQ(forked, Feed(*policy, model, *fresh_other, other, cut, 320, 40));
  }
}

// bf16 may change a close selection, so nothing is dropped; head dims make odd page sizes.
TEST_P(InfLlmVariantsTest, Bf16StaysCloseToF32) {
  const ModelConfig model = TinyModel(4, 2, 10);
  const Sequence s = RandomSequence(model, 120, 30);
  for (AttentionOptions options : Variants()) {
    SCOPED_TRACE(Describe(options));
    options.top_k = 100;
    options.cache_blocks = 100;
    options.block_tokens = 7;
    const auto policy = Policy(model, options, kernels::DType::kBF16);
    ASSERT_OK_AND_ASSIGN(const auto state, policy->NewState());
    const auto bf16 = Feed(*policy, model, *state, s, 0, s.tokens, 16);
    EXPECT_LT(MaxDifference(bf16, Run(model, options, s, 16)), 0.1);
  }
}

// lru-s by its definition (paper sec. 3.2): (hits, misses) of a cache of `capacity` blocks.
std::pair<int64_t, int64_t> SimulateLruS(const std::vector<OracleRetrieval>& retrievals,
                                         int64_t capacity, double decay) {
  std::map<int64_t, double> cache;  // block: score
  int64_t hits = 0, misses = 0;
  for (const OracleRetrieval& retrieval : retrievals) {
    const std::set<int64_t> selected(retrieval.blocks.begin(), retrieval.blocks.end());
    int64_t missing = 0;
    for (const int64_t block : selected) missing += !cache.contains(block);
    misses += missing;
    hits += static_cast<int64_t>(selected.size()) - missing;
    while (static_cast<int64_t>(cache.size()) + missing > capacity) {
      auto victim = cache.end();
      for (auto it = cache.begin(); it != cache.end(); ++it) {
        if (selected.contains(it->first)) continue;
        if (victim == cache.end() || it->second < victim->second) victim = it;
      }
      cache.erase(victim);
    }
    for (auto& [block, score] : cache) score *= decay;
    for (size_t i = 0; i < retrieval.blocks.size(); ++i) {
      cache[retrieval.blocks[i]] += retrieval.mass[i];
    }
  }
  return {hits, misses};
}

TEST_P(InfLlmVariantsTest, LruSScoresBlocksByWhatTheyDrew) {
  const ModelConfig model = TinyModel();
  const Sequence s = RandomSequence(model, 400, 32);
  for (AttentionOptions options : Variants()) {
    options.cache_policy = CachePolicy::kLruS;
    options.score_decay = 0.9;
    const std::vector<OracleRetrieval> retrievals = OracleInfLlm(model, options, s).retrievals;
    for (const int64_t cache_blocks : {4, 5, 8, 11}) {
      options.cache_blocks = cache_blocks;
      const auto [hits, misses] = SimulateLruS(retrievals, cache_blocks, options.score_decay);
      EXPECT_GT(hits, 0);
      const AttentionStats stats = Observe(model, options, s, 64).stats;
      EXPECT_EQ(stats.cache_hits, model.layers * hits) << Describe(options) << cache_blocks;
      EXPECT_EQ(stats.cache_misses, model.layers * misses) << Describe(options) << cache_blocks;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, InfLlmVariantsTest,
                         ::testing::Values(TestDevice::kReference, TestDevice::kCpu,
                                           TestDevice::kDeferring),
                         TestDeviceName);

}  // namespace
}  // namespace infllm::worker
