// Block selection of the CPU backend; see kernels/ops/select.h for what each operation computes.
// Arguments have been validated by the caller. Nothing is allocated once calls of that size have
// been made by the thread.
#pragma once

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/select_simd.h"
#include "kernels/ops/select.h"

namespace infllm::kernels {

void CpuRepresentatives(ThreadPool& pool, Isa isa, const RepresentativesArgs& args);
void CpuMeanQueries(ThreadPool& pool, Isa isa, const MeanQueriesArgs& args);
void CpuScoreBlocks(ThreadPool& pool, Isa isa, const ScoreBlocksArgs& args);
void CpuTopK(ThreadPool& pool, const TopKArgs& args);
void CpuLookUpBlocks(const LookUpBlocksArgs& args);

// Scoring::kHeadVote of one item of args.
void CpuHeadVote(ThreadPool& pool, Isa isa, const ScoreBlocksArgs& args, const ScoreItem& item);

const SelectKernels& SelectKernelsFor(Isa isa);

}  // namespace infllm::kernels
