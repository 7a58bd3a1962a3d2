#include "services/eval/run/configurations.h"

#include <CLI/CLI.hpp>

#include "services/runtime/presets.h"
#include "tests/support/status_matchers.h"
#include "worker/attention/option_table.h"

namespace infllm::services {
namespace {

using ::infllm::testing::StatusIs;
using ::testing::AllOf;
using ::testing::DoubleEq;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

class ConfigurationsTest : public ::testing::Test {
 protected:
  // The flags as a command has them after this command line.
  RuntimeFlags Base(const std::string& arguments = "") {
    CLI::App app;
    RuntimeFlags flags;
    AddRuntimeFlags(app, flags);
    app.parse("--model m " + arguments);
    return flags;
  }
  std::vector<std::string> Names(const ConfigurationChoice& choice) {
    auto made = MakeConfigurations(Base(), choice);
    EXPECT_OK(made);
    std::vector<std::string> names;
    if (made.ok()) {
      for (const AttentionConfiguration& configuration : *made) names.push_back(configuration.name);
    }
    return names;
  }
};

TEST_F(ConfigurationsTest, PoliciesAndScorings) {
  EXPECT_THAT(Names({.policies = PolicyNames(), .scorings = {"mean", "head-vote"}}),
              ElementsAre("full", "pi", "ntk", "lm-infinite", "streaming-llm", "infllm/mean",
                          "infllm/head-vote"));
  ASSERT_OK_AND_ASSIGN(const auto made, MakeConfigurations(Base("--n-local 2048"),
                                                           {.policies = {"pi", "lm-infinite"},
                                                            .scorings = {"mean"}}));
  EXPECT_EQ(made[0].flags.attention.policy, worker::PolicyKind::kFull);
  EXPECT_EQ(made[0].flags.attention.rope_scaling, worker::RopeScaling::kLinear);
  EXPECT_EQ(made[1].flags.attention.policy, worker::PolicyKind::kLmInfinite);
  EXPECT_EQ(made[1].flags.attention.n_local, 2048);
  EXPECT_EQ(made[1].flags.model, "m");
}

TEST_F(ConfigurationsTest, VariedFlagsMultiplyWhereTheyMatter) {
  EXPECT_THAT(
      Names({.policies = {"full", "lm-infinite", "infllm"},
             .scorings = {"mean"},
             .vary = {"top-k=8,16", "n-local=1024,2048"}}),
      ElementsAre("full", "lm-infinite/n-local=1024", "lm-infinite/n-local=2048",
                  "infllm/mean/top-k=8/n-local=1024", "infllm/mean/top-k=8/n-local=2048",
                  "infllm/mean/top-k=16/n-local=1024", "infllm/mean/top-k=16/n-local=2048"));
  ASSERT_OK_AND_ASSIGN(
      const auto made,
      MakeConfigurations(Base(), {.policies = {"infllm"},
                                  .scorings = {"head-vote"},
                                  .vary = {"block-tokens=64", "cache-policy=lru-s"}}));
  ASSERT_EQ(made.size(), 1u);
  const worker::AttentionOptions options = made[0].flags.attention;
  EXPECT_EQ(options.block_tokens, 64);
  EXPECT_EQ(options.cache_policy, worker::CachePolicy::kLruS);
  EXPECT_EQ(options.scoring, kernels::Scoring::kHeadVote);
}

TEST_F(ConfigurationsTest, NamedChoicesOfTheCommandAreKept) {
  ASSERT_OK_AND_ASSIGN(const auto made,
                       MakeConfigurations(Base("--cache-policy lru-s --compat reference"),
                                          {.policies = {"infllm"},
                                           .scorings = {"mean"},
                                           .vary = {"representatives=bounds,mean-key"}}));
  ASSERT_EQ(made.size(), 2u);
  const worker::AttentionOptions options = made[1].flags.attention;
  EXPECT_EQ(options.cache_policy, worker::CachePolicy::kLruS);
  EXPECT_EQ(options.representative, kernels::RepresentativeKind::kMeanKey);
  EXPECT_TRUE(options.compat_reference);
  EXPECT_EQ(made[0].settings.at("cache-policy"), "lru-s");
  EXPECT_EQ(made[0].settings.at("representatives"), "bounds");
}

// Given before the kind of representative that it belongs to, and of no effect on the other.
TEST_F(ConfigurationsTest, AnOptionIsVariedWhereItMatters) {
  EXPECT_THAT(Names({.policies = {"infllm"},
                     .scorings = {"mean"},
                     .vary = {"repr-top-k=1,2", "representatives=bounds,mean-key"}}),
              ElementsAre("infllm/mean/representatives=bounds",
                          "infllm/mean/representatives=mean-key/repr-top-k=1",
                          "infllm/mean/representatives=mean-key/repr-top-k=2"));
}

TEST_F(ConfigurationsTest, PresetsSetOptionsThatThereAre) {
  for (const Preset& preset : Presets()) {
    worker::AttentionOptions options;
    for (const auto& [name, value] : preset.settings) {
      const worker::AttentionOption* const option = worker::FindOption(name);
      ASSERT_NE(option, nullptr) << preset.name << " " << name;
      EXPECT_OK(worker::SetOption(*option, value, options)) << preset.name;
      EXPECT_EQ(worker::ValueText(*option, options), value) << preset.name << " " << name;
    }
  }
}

TEST_F(ConfigurationsTest, SettingsAreTheFlagsThatMatter) {
  ASSERT_OK_AND_ASSIGN(
      const auto made,
      MakeConfigurations(Base("--n-init 64"), {.policies = {"full", "streaming-llm", "infllm"},
                                               .scorings = {"mean"},
                                               .vary = {"top-k=8"}}));
  EXPECT_THAT(made[0].settings,
              UnorderedElementsAre(Pair("policy", "full"), Pair("rope-scaling", "none")));
  EXPECT_THAT(made[1].settings,
              UnorderedElementsAre(Pair("policy", "streaming-llm"), Pair("rope-scaling", "none"),
                                   Pair("n-init", "64"), Pair("n-local", "4096")));
  EXPECT_EQ(made[2].settings.at("top-k"), "8");
  EXPECT_EQ(made[2].settings.at("scoring"), "mean");
  EXPECT_EQ(made[2].settings.at("n-init"), "64");
}

TEST_F(ConfigurationsTest, RopeFactorFollowsTheLengthUnlessGiven) {
  ASSERT_OK_AND_ASSIGN(const auto made, MakeConfigurations(Base(), {.policies = {"pi", "full"}}));
  EXPECT_EQ(made[0].settings.at("rope-factor"), "length / trained length");
  const auto factor = [&](int64_t length) {
    return FlagsAtLength(made[0], length, 512)->attention.rope_factor;
  };
  EXPECT_THAT(factor(4096), DoubleEq(8));
  EXPECT_THAT(factor(100), DoubleEq(1));
  EXPECT_THAT(FlagsAtLength(made[0], 4096, 0),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--rope-factor")));
  EXPECT_OK(FlagsAtLength(made[1], 4096, 0));

  ASSERT_OK_AND_ASSIGN(const auto given,
                       MakeConfigurations(Base("--rope-factor 3"),
                                          {.policies = {"ntk"}, .rope_factor_given = true}));
  EXPECT_THAT(FlagsAtLength(given[0], 4096, 512)->attention.rope_factor, DoubleEq(3));
  EXPECT_EQ(given[0].settings.at("rope-factor"), "3");
  // Given before the scaling that it belongs to.
  EXPECT_THAT(
      Names({.policies = {"infllm"},
             .scorings = {"mean"},
             .vary = {"rope-factor=2,4", "rope-scaling=none,ntk"}}),
      ElementsAre("infllm/mean/rope-scaling=none", "infllm/mean/rope-scaling=ntk/rope-factor=2",
                  "infllm/mean/rope-scaling=ntk/rope-factor=4"));
}

TEST_F(ConfigurationsTest, MistakesAreNamed) {
  const auto expect = [&](ConfigurationChoice choice, const std::string& what) {
    EXPECT_THAT(MakeConfigurations(Base(), choice),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(what)))
        << what;
  };
  expect({.policies = {"magic"}}, "no policy magic");
  expect({.policies = {"infllm"}, .scorings = {"loud"}}, "infllm/loud");
  const auto vary = [&](std::vector<std::string> texts, const std::string& what) {
    expect({.policies = {"infllm"}, .scorings = {"mean"}, .vary = std::move(texts)}, what);
  };
  vary({"top-k"}, "FLAG=VALUE");
  vary({"top-k="}, "FLAG=VALUE");
  vary({"=3"}, "no flag  to vary");
  vary({"no-such=3"}, "no flag no-such");
  vary({"policy=full"}, "no flag policy");
  vary({"model=x"}, "no flag model");
  vary({"top-k=many"}, "top-k is many, must be a whole number in [0, 65536]");
  vary({"top-k=-1"}, "top-k is -1");
  vary({"repr-top-k=1"}, "no effect on infllm");
  vary({"cache-policy=magic"}, "cache-policy");
  vary({"top-k=1", "top-k=2"}, "twice");
  expect({.policies = {"full", "lm-infinite"}, .vary = {"top-k=3"}},
         "no effect on full, lm-infinite");
}

TEST(ParseLengthTest, UnitsAreBinary) {
  for (const auto& [text, length] :
       std::vector<std::pair<std::string, int64_t>>{{"1", 1},
                                                    {"1000", 1000},
                                                    {"1K", 1024},
                                                    {"64k", 65536},
                                                    {"1M", 1048576},
                                                    {"1024M", int64_t{1} << 30}}) {
    ASSERT_OK_AND_ASSIGN(const int64_t parsed, ParseLength(text));
    EXPECT_EQ(parsed, length);
  }
  for (const char* text : {"", "K", "0", "-1", "1.5K", "1G", "1KK", " 1", "1 K", "+1", "0x10",
                           "1025M", "99999999999999999999", "12345678901234K"}) {
    EXPECT_THAT(ParseLength(text), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(text)));
  }
}

TEST(ParseDepthsTest, RangesAndLists) {
  const auto depths = [](const char* text) { return *ParseDepths(text); };
  EXPECT_THAT(depths("0:100:25"), ElementsAre(0, 0.25, 0.5, 0.75, 1));
  EXPECT_THAT(depths("0:100:30"), ElementsAre(0, DoubleEq(0.3), DoubleEq(0.6), DoubleEq(0.9)));
  EXPECT_THAT(depths("50"), ElementsAre(0.5));
  EXPECT_THAT(depths("100,0,50,0"), ElementsAre(0, 0.5, 1));
  EXPECT_THAT(depths("5:5:1"), ElementsAre(0.05));
  EXPECT_EQ(depths("0:100:10").size(), 11u);
  EXPECT_EQ(depths("0:100:0.1").size(), 1001u);
  for (const char* text : {"", ",", "a", "0:100", "0:100:0", "0:100:-1", "100:0:10", "0:101:10",
                           "-1", "nan", "inf", "1:2:3:4", "0:100:nan", "1,,2", "0:100:1e-9"}) {
    EXPECT_THAT(ParseDepths(text), StatusIs(absl::StatusCode::kInvalidArgument,
                                            AllOf(HasSubstr(text), HasSubstr("0:100:10"))));
  }
}

}  // namespace
}  // namespace infllm::services
