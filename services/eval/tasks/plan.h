// Samples that hide statements in a haystack and ask for them: what most tasks are.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/eval/tasks/haystack.h"
#include "services/eval/tasks/random.h"
#include "services/eval/tasks/sample.h"
#include "services/eval/tasks/task.h"

namespace infllm::services {

struct PlannedQuestion {
  std::string prompt;
  std::vector<std::string> answers;
  std::vector<size_t> evidence;  // of SamplePlan::statements; the first tells the depth
  std::string label;
};
struct SamplePlan {
  std::string before;  // the haystack
  std::vector<Statement> statements;
  std::vector<PlannedQuestion> questions;
};

// What all samples of a task have in common.
struct PlanTraits {
  std::string_view task;
  Metric metric = Metric::kAllSubstrings;
  int64_t max_new_tokens = 0;
};

// One sample to make: where, and the choices that are its own.
struct Slot {
  std::string id;
  double depth = -1;  // where the task has depths and the request names them
  Random random;
};

// INVALID_ARGUMENT names a field that is out of range, its value and its limits.
absl::Status CheckRequest(const TaskRequest& request);

// request.samples for each of request.depths, or in all if there are none.
std::vector<Slot> SlotsPerDepth(const TaskRequest& request, std::string_view task);
// request.samples in all.
std::vector<Slot> Slots(const TaskRequest& request, std::string_view task);

// `n` depths in the middles of n equal parts.
std::vector<double> EvenDepths(int64_t n);
// `n` different ones of RULER's 40 depths, 0 to 1, ascending. More than 40 are in the middles of n
// equal parts.
std::vector<double> RulerDepths(Random& random, int64_t n);

// Plans each slot, and hides its statements in as much of `haystack` as fits; all share its size.
absl::StatusOr<std::vector<Sample>> MakePlanned(const TaskRequest& request,
                                                const PlanTraits& traits, const Haystack& haystack,
                                                std::vector<Slot> slots,
                                                const std::function<SamplePlan(Slot&)>& plan);

}  // namespace infllm::services
