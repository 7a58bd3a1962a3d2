// The attention and block-selection ops of the reference backend: plain loops in double.
// Arguments have been validated by the caller.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/backend.h"

namespace infllm::kernels {

void ReferenceAttention(const AttentionArgs& args);
void ReferenceRepresentatives(const RepresentativeArgs& args);
void ReferenceMeanQuery(const MeanQueryArgs& args);
void ReferenceScoreBlocks(const ScoreBlocksArgs& args);
void ReferenceTopK(const float* scores, int64_t n, int64_t k, std::span<int64_t> out_indices);

}  // namespace infllm::kernels
