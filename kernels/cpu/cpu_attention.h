// The attention and block-selection ops of the CPU backend; see kernels/backend.h for what each
// computes. Arguments have been validated by the caller.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/backend.h"
#include "kernels/core/thread_pool.h"
#include "kernels/cpu/isa.h"

namespace infllm::kernels {

void CpuAttention(ThreadPool& pool, Isa isa, const AttentionArgs& args);
void CpuRepresentatives(Isa isa, const RepresentativeArgs& args);
void CpuMeanQuery(ThreadPool& pool, Isa isa, const MeanQueryArgs& args);
void CpuScoreBlocks(ThreadPool& pool, Isa isa, const ScoreBlocksArgs& args);
void CpuTopK(const float* scores, int64_t n, int64_t k, std::span<int64_t> out_indices);

}  // namespace infllm::kernels
