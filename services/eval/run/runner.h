// Runs tasks over configurations and lengths and writes down what comes out.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/eval/run/outcome.h"
#include "services/eval/run/record_log.h"
#include "services/eval/run/subject.h"
#include "services/eval/tasks/task.h"

namespace infllm::services {

// Somebody to evaluate. Opened for one length at a time: a store of keys and values lives no longer
// than it is needed, and some configurations depend on the length.
struct Configuration {
  std::string name;   // in records and tables: "infllm/head-vote"
  Settings settings;  // that its answers depend on
  std::function<absl::StatusOr<std::unique_ptr<Subject>>(int64_t length)> open;
};

struct PerplexityPlan {
  std::string name;  // of the text, in records
  std::shared_ptr<const std::string> text;
  int64_t bins = 32;  // of equal size; 0: each twice as long as the one before
};

struct EvalPlan {
  std::string directory;  // of manifest.json, records.jsonl, report.md, report.html, results.json
  std::string title;      // of the reports
  Settings settings;      // that all answers depend on
  std::vector<Configuration> configurations;
  std::vector<const Task*> tasks;
  TaskRequest request;           // `length` is filled in
  std::vector<int64_t> lengths;  // ascending, so that mistakes show early
  std::optional<PerplexityPlan> perplexity;
};

// Each task at each length for each configuration. What the directory's records hold already is not
// done again; questions that a cut run left open are asked. A configuration that says beforehand
// that it cannot run at a length is recorded as skipped. Where memory or disk runs out on the way
// (RESOURCE_EXHAUSTED), the samples concerned stay open, their cell keeps the error, and the run
// goes on with the others; any other error ends it. The reports are written at the end, also when
// the run ends early. Progress goes to stderr. Deterministic but for times.
//   CANCELLED  *cancel became true; the text tells how to go on
//   and the errors of RecordLog::Open(), Task::Make() and the subjects
absl::StatusOr<EvalOutcome> RunEval(const EvalPlan& plan, const std::atomic<bool>* cancel);

}  // namespace infllm::services
