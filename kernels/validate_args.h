// The checks that every backend makes before it computes: one place, so that all refuse alike.
// INVALID_ARGUMENT names the op, the offending value and its limit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/backend.h"

namespace infllm::kernels {

// Whether the weight was packed by the calling backend, only that backend can tell.
absl::Status Validate(const LinearArgs& args);
absl::Status Validate(const RmsNormArgs& args);
absl::Status Validate(const RopeArgs& args);
absl::Status Validate(const StorePageArgs& args);
absl::Status Validate(const AttentionArgs& args);
absl::Status Validate(const RepresentativeArgs& args);
absl::Status Validate(const MeanQueryArgs& args);
absl::Status Validate(const ScoreBlocksArgs& args);
absl::Status ValidateSiluMul(const float* gate_up, const float* out, int64_t rows, int64_t width);
absl::Status ValidateCopyColumns(const float* src, int64_t src_width, int64_t src_column,
                                 const float* dst, int64_t dst_width, int64_t dst_column,
                                 int64_t rows, int64_t width);
absl::Status ValidateTopK(const float* scores, int64_t n, int64_t k,
                          std::span<const int64_t> out_indices);
absl::Status ValidateCopy(const char* op, const void* to, const void* from, size_t bytes);
absl::Status ValidatePackWeight(std::span<const Backend::WeightSource> sources, int64_t in_features,
                                DType compute);

}  // namespace infllm::kernels
