#include "worker/engine/sampler.h"

#include "absl/strings/str_cat.h"

namespace infllm::worker {

absl::Status SamplingOptions::Validate() const {
  if (!(temperature >= 0 && temperature <= 100)) {
    return absl::InvalidArgumentError(
        absl::StrCat("temperature is ", temperature, ", must be in [0, 100]"));
  }
  if (top_k < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("top-k-sampling is ", top_k, ", must be 0 (all tokens) or more"));
  }
  if (!(top_p > 0 && top_p <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("top-p is ", top_p, ", must be in (0, 1]"));
  }
  return absl::OkStatus();
}

}  // namespace infllm::worker
