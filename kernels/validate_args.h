// The checks that every backend makes before it computes: one place, so that all refuse alike.
// INVALID_ARGUMENT names the op, the offending value and its limit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/backend.h"

namespace infllm::kernels {

// The fields of the arguments, not what they point to: on a device, an earlier operation may still
// have to write that. Whether a weight was packed by the calling backend, only that backend can
// tell.
absl::Status Validate(const LinearArgs& args);
absl::Status Validate(const RmsNormArgs& args);
absl::Status Validate(const SiluMulArgs& args);
absl::Status Validate(const GatherRowsArgs& args);
absl::Status Validate(const RotateAndStoreArgs& args);
absl::Status Validate(const AttentionArgs& args);

// For backends of the host, which compute at once and in kF32: the lists that the arguments point
// to, and that all activations are kF32. After Validate.
absl::Status ValidateForHost(const LinearArgs& args);
absl::Status ValidateForHost(const RmsNormArgs& args);
absl::Status ValidateForHost(const SiluMulArgs& args);
absl::Status ValidateForHost(const GatherRowsArgs& args);
absl::Status ValidateForHost(const RotateAndStoreArgs& args);
absl::Status ValidateForHost(const AttentionArgs& args);

absl::Status ValidateCopy(const void* to, const void* from, size_t bytes);
absl::Status ValidateZero(const void* device, size_t bytes);
absl::Status ValidatePackWeight(std::span<const WeightSource> sources, int64_t in_features,
                                DType compute);

}  // namespace infllm::kernels
