// The checks of block selection and sampling, as kernels/validate_args.h has those of the other
// operations.
#pragma once

#include "absl/status/status.h"
#include "kernels/ops/sample.h"
#include "kernels/ops/select.h"

namespace infllm::kernels {

// The fields of the arguments.
absl::Status Validate(const RepresentativesArgs& args);
absl::Status Validate(const MeanQueriesArgs& args);
absl::Status Validate(const ScoreBlocksArgs& args);
absl::Status Validate(const TopKArgs& args);
absl::Status Validate(const SelectBlocksArgs& args);
absl::Status Validate(const EncodeBoundsArgs& args);
absl::Status Validate(const LookUpBlocksArgs& args);
absl::Status Validate(const SampleArgs& args);
absl::Status Validate(const LogProbsArgs& args);

// The lists that they point to. After Validate.
absl::Status ValidateForHost(const RepresentativesArgs& args);
absl::Status ValidateForHost(const MeanQueriesArgs& args);
absl::Status ValidateForHost(const ScoreBlocksArgs& args);
absl::Status ValidateForHost(const TopKArgs& args);
absl::Status ValidateForHost(const SelectBlocksArgs& args);
absl::Status ValidateForHost(const EncodeBoundsArgs& args);
absl::Status ValidateForHost(const LookUpBlocksArgs& args);
absl::Status ValidateForHost(const SampleArgs& args);
absl::Status ValidateForHost(const LogProbsArgs& args);

}  // namespace infllm::kernels
