#include "services/memstore/retry.h"

#include <algorithm>
#include <cmath>

namespace infllm::services {

Retrier::Retrier(const RetryOptions& options, RetryClock& clock)
    : options_(options),
      clock_(clock),
      random_(options.seed != 0 ? options.seed : std::random_device()()) {}

absl::Status Retrier::Run(absl::FunctionRef<absl::Status()> attempt) {
  const absl::Time start = clock_.Now();
  for (int retry = 0;; ++retry) {
    absl::Status status = attempt();
    const absl::Time give_up = start + PatienceFor(status);
    if (clock_.Now() >= give_up) return status;
    const absl::Duration wait = NextWait(retry, status.code());
    if (!clock_.Sleep(std::min(wait, give_up - clock_.Now()))) {
      return absl::CancelledError(status.message());
    }
  }
}

RetryCounts Retrier::counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

absl::Duration Retrier::PatienceFor(const absl::Status& status) const {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
      return options_.unavailable_patience;
    case absl::StatusCode::kResourceExhausted:
      return options_.exhausted_patience;
    case absl::StatusCode::kAborted:
      return options_.damaged_patience;
    default:
      return absl::ZeroDuration();
  }
}

absl::Duration Retrier::NextWait(int retry, absl::StatusCode code) {
  const std::lock_guard lock(mutex_);
  ++counts_.retries;
  ++(code == absl::StatusCode::kUnavailable         ? counts_.unavailable
     : code == absl::StatusCode::kResourceExhausted ? counts_.exhausted
                                                    : counts_.damaged);
  const double part = std::uniform_real_distribution<double>(0.5, 1)(random_);
  return part *
         std::min(options_.longest_wait, std::exp2(std::min(retry, 30)) * options_.first_wait);
}

}  // namespace infllm::services
