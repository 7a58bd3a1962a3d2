#include "services/eval/run/outcome.h"

#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "services/eval/report/text.h"

namespace infllm::services {
namespace {

std::string Incomplete(const CellOutcome& cell) {
  const std::string reason = !cell.error.ok()           ? std::string(cell.error.message())
                             : cell.skip_reason.empty() ? "no reason is known"
                                                        : cell.skip_reason;
  return absl::StrCat(cell.config, " ", cell.task, " ", FormatLength(cell.length), ": ",
                      cell.planned > 0 ? absl::StrCat(cell.answered, " of ", cell.planned,
                                                      " planned answers are there")
                                       : "not read",
                      ": ", reason);
}

}  // namespace

bool HasFloor(const std::string& config) {
  return config.starts_with("infllm") || config == "endpoint";
}

absl::Status CheckOutcome(const EvalOutcome& outcome, const Floors& floors) {
  std::vector<std::string> failures;
  std::map<std::string, CellOutcome> sums;  // by configuration
  for (const CellOutcome& cell : outcome.cells) {
    const bool floor = HasFloor(cell.config) && (floors.score > 0 || floors.recall > 0);
    if (!cell.error.ok() || (floor && cell.answered < cell.planned)) {
      failures.push_back(Incomplete(cell));
    }
    if (!floor || cell.planned == 0) continue;
    CellOutcome& sum = sums[cell.config];
    sum.answered += cell.answered;
    sum.score += cell.score;
    sum.retrievals += cell.retrievals;
    sum.hits += cell.hits;
  }
  for (const auto& [config, sum] : sums) {
    const auto check = [&](const char* what, double total, int64_t count, double floor) {
      if (floor <= 0 || (count > 0 && total >= floor * static_cast<double>(count))) return;
      failures.push_back(absl::StrCat(
          config, " has a ", what, " of ",
          count > 0 ? FormatPercent(total / static_cast<double>(count)) + "%" : "nothing", " over ",
          count, " answers, required are ", FormatPercent(floor), "%"));
    };
    check("score", sum.score, sum.answered, floors.score);
    check("recall", static_cast<double>(sum.hits), sum.retrievals, floors.recall);
  }
  if (failures.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrJoin(failures, "; "));
}

}  // namespace infllm::services
