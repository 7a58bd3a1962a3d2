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
#include "worker/engine/sampler.h"
#include "worker/engine/session.h"

namespace infllm::worker {
namespace {

constexpr double kNllTolerance = 1e-3;

// What a run makes of the tokens of a golden.
struct Outcome {
  std::vector<int32_t> argmax;
  std::vector<double> nll;

  void Add(const PolicyGolden& golden, std::span<const float> logits) {
    argmax.push_back(Argmax(logits));
    if (argmax.size() < golden.ids.size()) {
      nll.push_back(NegativeLogLikelihood(logits, golden.ids[argmax.size()]));
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

  // Calls run(session, golden, outcome) for each golden that `wanted` and each backend, and
  // compares the outcome.
  void Check(absl::FunctionRef<bool(const PolicyGolden&)> wanted,
             absl::FunctionRef<void(Session&, const PolicyGolden&, Outcome&)> run) {
    int64_t cases = 0;
    for (size_t i = 0; i < backends_.size(); ++i) {
      SCOPED_TRACE(std::string(backends_[i]->name()) + " " + std::to_string(i));
      ASSERT_OK_AND_ASSIGN(auto model, GoldenModel::Open(std::get<0>(GetParam()), *backends_[i]));
      for (const PolicyGolden& golden : goldens_) {
        if (!wanted(golden)) continue;
        SCOPED_TRACE(golden.name);
        ASSERT_OK_AND_ASSIGN(auto session, model->NewSession(golden.options));
        Outcome outcome;
        run(*session, golden, outcome);
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

TEST_P(PolicyGoldenTest, OnePassGivesTheGolden) {
  Check([](const PolicyGolden&) { return true; },
        [](Session& session, const PolicyGolden& golden, Outcome& outcome) {
          ASSERT_OK(session.Score(golden.ids, [&](int64_t, std::span<const float> logits) {
            outcome.Add(golden, logits);
          }));
        });
}

// With one token per exec block, reading and generating are the same thing.
TEST_P(PolicyGoldenTest, StepByStepGivesTheGoldenOfExecBlockOne) {
  Check([](const PolicyGolden& golden) { return golden.options.exec_block == 1; },
        [](Session& session, const PolicyGolden& golden, Outcome& outcome) {
          for (const int32_t id : golden.ids) {
            ASSERT_OK_AND_ASSIGN(const std::span<const float> logits, session.Step(id));
            outcome.Add(golden, logits);
          }
        });
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
