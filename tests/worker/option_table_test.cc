#include "worker/attention/option_table.h"

#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "tests/support/status_matchers.h"

namespace infllm::worker {
namespace {

using ::infllm::testing::StatusIs;
using kernels::RepresentativeKind;
using kernels::Scoring;
using ::testing::AllOf;
using ::testing::HasSubstr;

const AttentionOption& Option(std::string_view name) {
  const AttentionOption* option = FindOption(name);
  EXPECT_NE(option, nullptr) << name;
  return *option;
}
absl::Status Set(std::string_view name, std::string_view text, AttentionOptions& options) {
  return SetOption(Option(name), text, options);
}

TEST(OptionTableTest, NamesAreUniqueAndFound) {
  std::set<std::string_view> names;
  for (const AttentionOption& option : OptionTable()) {
    EXPECT_TRUE(names.insert(option.name).second) << option.name;
    EXPECT_EQ(FindOption(option.name), &option);
    EXPECT_FALSE(option.help.empty());
  }
  EXPECT_EQ(FindOption("selection"), nullptr);
  EXPECT_EQ(FindOption(""), nullptr);
}

TEST(OptionTableTest, DefaultsAreValid) {
  for (const AttentionOption& option : OptionTable()) {
    EXPECT_OK(CheckOption(option, AttentionOptions())) << option.name;
  }
}

// Every value of every choice, and both ends of every range.
TEST(OptionTableTest, ValuesAreReadBack) {
  for (const AttentionOption& option : OptionTable()) {
    std::vector<std::string> values;
    if (const auto* integer = std::get_if<IntegerOption>(&option.kind)) {
      values = {std::to_string(integer->least), std::to_string(integer->most)};
    } else if (const auto* choice = std::get_if<ChoiceOption>(&option.kind)) {
      values.assign(choice->names.begin(), choice->names.end());
    } else {
      values = {"1"};
    }
    for (const std::string& value : values) {
      AttentionOptions options;
      EXPECT_OK(SetOption(option, value, options));
      EXPECT_EQ(ValueText(option, options), value) << option.name;
    }
  }
}

TEST(OptionTableTest, AnOptionSetsItsOwnMember) {
  AttentionOptions options;
  ASSERT_OK(Set("policy", "lm-infinite", options));
  ASSERT_OK(Set("rope-scaling", "ntk", options));
  ASSERT_OK(Set("rope-factor", "2.5", options));
  ASSERT_OK(Set("top-k", "7", options));
  ASSERT_OK(Set("representatives", "mean-key", options));
  ASSERT_OK(Set("scoring", "head-vote", options));
  ASSERT_OK(Set("far-bias", "-1.5", options));
  ASSERT_OK(Set("cache-policy", "lru-s", options));
  ASSERT_OK(Set("compat", "reference", options));
  EXPECT_EQ(options.policy, PolicyKind::kLmInfinite);
  EXPECT_EQ(options.rope_scaling, RopeScaling::kNtk);
  EXPECT_EQ(options.rope_factor, 2.5);
  EXPECT_EQ(options.top_k, 7);
  EXPECT_EQ(options.representative, RepresentativeKind::kMeanKey);
  EXPECT_EQ(options.scoring, Scoring::kHeadVote);
  EXPECT_EQ(options.far_bias, -1.5);
  EXPECT_EQ(options.cache_policy, CachePolicy::kLruS);
  EXPECT_TRUE(options.compat_reference);
}

TEST(OptionTableTest, BadTextIsNamedAndChangesNothing) {
  struct Row {
    const char* name;
    const char* text;
    const char* limit;
  };
  for (const Row& row : {Row{"n-local", "many", "whole number in [1, 16777216]"},
                         {"n-local", "", "whole number"},
                         {"n-local", "1.5", "whole number"},
                         {"n-local", "64 ", "whole number"},
                         {"n-local", "0", "[1, "},
                         {"n-local", "99999999999999999999", "[1, "},
                         {"top-k", "65537", "[0, 65536]"},
                         {"n-init", "-1", "[0, "},
                         {"score-decay", "1.5", "[0, 1]"},
                         {"rope-factor", "nan", "number in [1, "},
                         {"far-bias", "20.5", "[-20, 20]"},
                         {"far-bias", "-inf", "[-20, 20]"},
                         {"policy", "magic", "one of full, streaming-llm, lm-infinite, infllm"},
                         {"compat", "true", "one of none, reference"}}) {
    AttentionOptions options;
    EXPECT_THAT(Set(row.name, row.text, options),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         AllOf(HasSubstr(std::string(row.name) + " is " + row.text),
                               HasSubstr(row.limit))));
    EXPECT_EQ(ValueText(Option(row.name), options),
              ValueText(Option(row.name), AttentionOptions()));
  }
}

TEST(OptionTableTest, ValuesSetInCodeAreChecked) {
  AttentionOptions options;
  options.far_bias = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(CheckOption(Option("far-bias"), options),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("far-bias is nan")));
  options.policy = static_cast<PolicyKind>(9);
  EXPECT_THAT(CheckOption(Option("policy"), options),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("policy is unknown")));
}

// Texts that others may have stored: a change of any breaks what was made with it.
TEST(RecipeTest, IsTheOptionsThatMatterInTheOrderOfTheTable) {
  AttentionOptions options;
  EXPECT_EQ(Recipe(options),
            "policy=infllm rope-scaling=none n-init=128 n-local=4096 block-tokens=32 top-k=64 "
            "representatives=bounds scoring=mean far-bias=0 exec-block=512 compat=none");
  options.representative = RepresentativeKind::kMeanKey;
  options.rope_scaling = RopeScaling::kLinear;
  options.rope_factor = 1.1;
  options.far_bias = -0.0;
  EXPECT_EQ(Recipe(options),
            "policy=infllm rope-scaling=linear rope-factor=1.1 n-init=128 n-local=4096 "
            "block-tokens=32 top-k=64 representatives=mean-key repr-top-k=4 scoring=mean "
            "far-bias=0 exec-block=512 compat=none");
  options = {.policy = PolicyKind::kFull};
  EXPECT_EQ(Recipe(options), "policy=full rope-scaling=none");
  options.policy = PolicyKind::kStreamingLlm;
  EXPECT_EQ(Recipe(options), "policy=streaming-llm rope-scaling=none n-init=128 n-local=4096");
}

TEST(RecipeTest, WhatOnlyCostsIsLeftOut) {
  AttentionOptions options;
  options.cache_blocks = 999;
  options.cache_policy = CachePolicy::kLruS;
  options.score_decay = 0.5;
  EXPECT_EQ(Recipe(options), Recipe(AttentionOptions()));
}

TEST(RecipeTest, WhatHasNoEffectIsLeftOut) {
  AttentionOptions options, other;
  other.repr_top_k = 3;   // of mean keys only
  other.rope_factor = 3;  // nothing is scaled
  EXPECT_EQ(Recipe(options), Recipe(other));
  options.exec_block = other.exec_block = 1;
  other.compat_reference = true;  // a single query attends nothing twice
  EXPECT_EQ(Recipe(options), Recipe(other));
  options.top_k = other.top_k = 0;
  other.scoring = Scoring::kHeadVote;  // nothing is retrieved
  EXPECT_EQ(Recipe(options), Recipe(other));
  other.block_tokens = 8;  // still decides what is forgotten when
  EXPECT_NE(Recipe(options), Recipe(other));
}

TEST(RecipeTest, EveryOptionOfTheRecipeTellsItsValuesApart) {
  AttentionOptions base;  // under which all matter
  base.representative = RepresentativeKind::kMeanKey;
  base.rope_scaling = RopeScaling::kLinear;
  for (const AttentionOption& option : OptionTable()) {
    if (!option.recipe) continue;
    ASSERT_TRUE(option.matters(base)) << option.name;
    std::vector<std::string_view> values = {"3", "5"};
    if (const auto* choice = std::get_if<ChoiceOption>(&option.kind)) {
      values.assign(choice->names.begin(), choice->names.end());
    }
    std::set<std::string> recipes;
    for (const std::string_view value : values) {
      AttentionOptions options = base;
      ASSERT_OK(SetOption(option, value, options));
      recipes.insert(Recipe(options));
    }
    EXPECT_EQ(recipes.size(), values.size()) << option.name;
  }
}

}  // namespace
}  // namespace infllm::worker
