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
void CpuSelectBlocks(ThreadPool& pool, Isa isa, const SelectBlocksArgs& args);
void CpuEncodeBounds(ThreadPool& pool, Isa isa, const EncodeBoundsArgs& args);
void CpuLookUpBlocks(const LookUpBlocksArgs& args);

// Scoring::kHeadVote of one item of args.
void CpuHeadVote(ThreadPool& pool, Isa isa, const ScoreBlocksArgs& args, const ScoreItem& item);

// Queries as their products with a block are, for Scoring::kMean.
struct ScoredQueries {
  int64_t width = 0;
  const float* all_summed = nullptr;    // [count, width]; kBounds only
  const float* all_arranged = nullptr;  // [count, ArrangedWidth(width)]
  const float* summed(int64_t i) const { return all_summed + i * width; }
  const float* arranged(int64_t i) const { return all_arranged + i * ArrangedWidth(width); }
};
// Valid until the thread's next call.
ScoredQueries ArrangeQueries(const SelectKernels& kernels, const ScoreBlocksArgs& args);
// Scores the blocks of queries[count], each of at least one, and sorts them.
void ScoreChunks(ThreadPool& pool, const SelectKernels& kernels, DType dtype, int64_t width,
                 ChunkQuery* queries, int64_t count);

// TopK of one item.
void SelectTop(const TopKItem& item);

const SelectKernels& SelectKernelsFor(Isa isa);

}  // namespace infllm::kernels
