#include "services/eval/tasks/plan.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"
#include "services/eval/tasks/fit.h"

namespace infllm::services {
namespace {

// Each hidden key is a question, or a part of one.
constexpr int64_t kMostNeedles = 10000;
constexpr int64_t kMostSamples = 100000;

Sample Build(const SamplePlan& plan, const PlanTraits& traits, const Haystack& haystack,
             std::string id, int64_t haystack_bytes) {
  HiddenText hidden = haystack.Hide(plan.before, haystack.Take(haystack_bytes), plan.statements);
  Sample sample;
  sample.id = std::move(id);
  sample.text = std::move(hidden.text);
  sample.metric = traits.metric;
  sample.max_new_tokens = traits.max_new_tokens;
  for (const PlannedQuestion& planned : plan.questions) {
    Question question{.prompt = planned.prompt, .answers = planned.answers, .label = planned.label};
    for (const size_t i : planned.evidence) question.evidence.push_back(hidden.places[i]);
    if (!planned.evidence.empty()) question.depth = plan.statements[planned.evidence[0]].depth;
    sample.questions.push_back(std::move(question));
  }
  return sample;
}

}  // namespace

absl::Status CheckRequest(const TaskRequest& request) {
  if (!request.count_tokens) return absl::InvalidArgumentError("count_tokens is not set");
  if (request.length <= 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("length %d: must be at least 1 token", request.length));
  }
  if (request.samples < 1 || request.samples > kMostSamples) {
    return absl::InvalidArgumentError(
        absl::StrFormat("samples %d: must be in [1, %d]", request.samples, kMostSamples));
  }
  if (request.needles < 0 || request.needles > kMostNeedles) {
    return absl::InvalidArgumentError(
        absl::StrFormat("needles %d: must be in [0, %d]", request.needles, kMostNeedles));
  }
  for (const double depth : request.depths) {
    if (!(depth >= 0 && depth <= 1)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("depth %g: must be in [0, 1], 0 being the start of the text", depth));
    }
  }
  return absl::OkStatus();
}

std::vector<Slot> SlotsPerDepth(const TaskRequest& request, std::string_view task) {
  if (request.depths.empty()) return Slots(request, task);
  std::vector<Slot> slots;
  for (size_t d = 0; d < request.depths.size(); ++d) {
    for (int64_t i = 0; i < request.samples; ++i) {
      slots.push_back({absl::StrFormat("depth-%d-%d", d, i), request.depths[d],
                       Random(request.seed, task, slots.size())});
    }
  }
  return slots;
}

std::vector<Slot> Slots(const TaskRequest& request, std::string_view task) {
  std::vector<Slot> slots;
  for (int64_t i = 0; i < request.samples; ++i) {
    slots.push_back({absl::StrFormat("%d", i), -1, Random(request.seed, task, slots.size())});
  }
  return slots;
}

std::vector<double> EvenDepths(int64_t n) {
  std::vector<double> depths;
  for (int64_t i = 0; i < n; ++i) {
    depths.push_back((static_cast<double>(i) + 0.5) / static_cast<double>(n));
  }
  return depths;
}

std::vector<double> RulerDepths(Random& random, int64_t n) {
  constexpr int64_t kDepths = 40;
  if (n > kDepths) return EvenDepths(n);
  std::vector<double> depths;
  for (const int64_t i : random.Distinct(n, kDepths)) {
    depths.push_back(std::round(static_cast<double>(i) * 100 / (kDepths - 1)) / 100);
  }
  return depths;
}

absl::StatusOr<std::vector<Sample>> MakePlanned(const TaskRequest& request,
                                                const PlanTraits& traits, const Haystack& haystack,
                                                std::vector<Slot> slots,
                                                const std::function<SamplePlan(Slot&)>& plan) {
  std::vector<SamplePlan> plans;
  plans.reserve(slots.size());
  for (Slot& slot : slots) plans.push_back(plan(slot));
  // No token of running text is 64 bytes long on average.
  const SizeRange sizes{.smallest = 0, .largest = 64 * request.length, .step = 4096};
  return FitSamples(request, traits.task, static_cast<int64_t>(slots.size()), sizes,
                    [&](int64_t index, int64_t size) {
                      const auto i = static_cast<size_t>(index);
                      return Build(plans[i], traits, haystack, slots[i].id, size);
                    });
}

}  // namespace infllm::services
