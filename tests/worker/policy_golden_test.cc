// Every attention policy under many parameters, against an independent implementation.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "absl/functional/function_ref.h"
#include "kernels/backend.h"
#include "tests/support/status_matchers.h"
#include "tests/worker/golden_common.h"
#include "worker/engine/engine.h"

namespace infllm::worker {
namespace {

constexpr double kNllTolerance = 1e-3;

// What a run makes of the tokens of a golden.
struct Outcome {
  std::vector<int32_t> argmax;
  std::vector<double> nll;

  void Add(const PolicyGolden& golden, const StepItem& item) {
    for (const StepItem::Score& score : item.scores) {
      argmax.push_back(score.argmax);
      if (argmax.size() < golden.ids.size()) nll.push_back(-score.logprob);
    }
  }
};

void ExpectMatches(const Outcome& outcome, const PolicyGolden& golden) {
  ASSERT_EQ(outcome.argmax.size(), golden.argmax.size());
  ASSERT_EQ(outcome.nll.size(), golden.nll.size());
  for (size_t i = 0; i < golden.argmax.size(); ++i) {
    const auto& ties = golden.near_ties;
    if (std::binary_search(ties.begin(), ties.end(), static_cast<int64_t>(i))) continue;
    ASSERT_EQ(outcome.argmax[i], golden.argmax[i]) << "after token " << i;
  }
  for (size_t i = 0; i < golden.nll.size(); ++i) {
    ASSERT_NEAR(outcome.nll[i], golden.nll[i], kNllTolerance) << "of token " << i + 1;
  }
}

enum class Device { kReference, kCpu };

class PolicyGoldenTest : public ::testing::TestWithParam<std::tuple<std::string_view, Device>> {
 protected:
  PolicyGoldenTest() : pool_(2) {
    if (std::get<1>(GetParam()) == Device::kReference) {
      backends_.push_back(kernels::NewReferenceBackend());
      return;
    }
    for (const kernels::Isa isa : kernels::SupportedIsas()) {
      backends_.push_back(kernels::NewCpuBackend(pool_, isa));
    }
  }

  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(goldens_, ReadPolicyGoldens(std::get<0>(GetParam())));
  }

  // Reads each golden that is `wanted` in steps of `chunk` tokens on each backend.
  void Check(absl::FunctionRef<bool(const PolicyGolden&)> wanted, int64_t chunk) {
    int64_t cases = 0;
    for (size_t i = 0; i < backends_.size(); ++i) {
      SCOPED_TRACE(std::string(backends_[i]->name()) + " " + std::to_string(i));
      ASSERT_OK_AND_ASSIGN(auto model,
                           GoldenModel::Open(std::get<0>(GetParam()), *backends_[i], pool_));
      for (const PolicyGolden& golden : goldens_) {
        if (!wanted(golden)) continue;
        SCOPED_TRACE(golden.name);
        ASSERT_OK_AND_ASSIGN(auto engine, model->NewEngine(golden.options));
        Outcome outcome;
        const int64_t exec_block = golden.options.exec_block;
        ASSERT_OK(ReadAll(
            *engine, golden.ids, std::max(chunk / exec_block, int64_t{1}) * exec_block,
            StepItem::Want::kScores, [&](const StepItem& item) { outcome.Add(golden, item); }));
        ExpectMatches(outcome, golden);
        ++cases;
      }
    }
    EXPECT_GT(cases, 0);
  }

  kernels::ThreadPool pool_;
  std::vector<std::unique_ptr<kernels::Backend>> backends_;
  std::vector<PolicyGolden> goldens_;
};

TEST_P(PolicyGoldenTest, ReadingGivesTheGolden) {
  Check([](const PolicyGolden&) { return true; }, 512);
}

// With one token per exec block, reading and generating are the same thing.
TEST_P(PolicyGoldenTest, StepByStepGivesTheGoldenOfExecBlockOne) {
  Check([](const PolicyGolden& golden) { return golden.options.exec_block == 1; }, 1);
}

std::string ParamName(const ::testing::TestParamInfo<PolicyGoldenTest::ParamType>& info) {
  std::string name(std::get<0>(info.param));
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Cpu, PolicyGoldenTest,
                         ::testing::Combine(::testing::Values("tiny-llama", "tiny-mistral",
                                                              "tiny-qwen2", "stories260K"),
                                            ::testing::Values(Device::kCpu)),
                         ParamName);
// One model: the loops of this backend are slow under sanitizers.
INSTANTIATE_TEST_SUITE_P(Reference, PolicyGoldenTest,
                         ::testing::Combine(::testing::Values("tiny-qwen2"),
                                            ::testing::Values(Device::kReference)),
                         ParamName);

}  // namespace
}  // namespace infllm::worker
