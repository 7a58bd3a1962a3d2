// What became of a plan: whether all of it was done, and whether it is good enough.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "services/eval/report/record.h"

namespace infllm::services {

// One configuration at one length of a task. Counts and sums are of the answers that are planned,
// whether this run or an earlier one has given them.
struct CellOutcome {
  std::string config;
  std::string task;
  int64_t length = 0;
  int64_t planned = 0;  // answers; none for perplexity
  int64_t answered = 0;
  double score = 0;        // sum
  int64_t retrievals = 0;  // of them, whose retrieval is known
  int64_t hits = 0;
  std::string skip_reason;  // why the configuration cannot run, known before it is tried
  absl::Status error;       // the first on the way; answers may be missing for it
};

struct EvalOutcome {
  Records records;                 // all of the directory
  std::vector<CellOutcome> cells;  // all that were planned
};

// The least that a mean over the answers of each configuration must be; 0: anything will do.
struct Floors {
  double score = 0;
  double recall = 0;
};
// Whether floors are asked of a configuration: the others are there to be compared with.
bool HasFloor(const std::string& config);

// OK if nothing failed on the way and every floor holds. A floor holds only if every answer planned
// for its configuration is there, whatever the reason that one is missing.
//   FAILED_PRECONDITION  names each cell that lacks answers (how many, of how many, why) and each
//                        floor that is missed
absl::Status CheckOutcome(const EvalOutcome& outcome, const Floors& floors);

}  // namespace infllm::services
