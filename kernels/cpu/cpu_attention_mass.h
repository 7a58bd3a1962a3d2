// The probabilities that keys draw, for those who ask (AttentionSpan::near_mass, block_mass): after
// the attention itself, from the scores once more.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/attention_simd.h"
#include "kernels/cpu/scratch.h"
#include "kernels/ops/attention.h"

namespace infllm::kernels {

// What the softmax of the rows came to, of the spans that ask for mass.
class RowStats {
 public:
  void Reset(const AttentionArgs& args, const AttentionPlan& plan);
  bool empty() const { return size_ == 0; }
  bool Wanted(int64_t span) const { return offsets_[static_cast<size_t>(span)] >= 0; }
  // [PaddedRows(max_rows)] each, of a query tile (of its span) and KV head.
  float* max(const AttentionPlan& plan, int64_t span, int64_t tile, int64_t kv_head);
  // 1 / sum over all keys of e^(s - max)
  float* inverse(const AttentionPlan& plan, int64_t span, int64_t tile, int64_t kv_head);

 private:
  std::vector<int64_t> offsets_;  // by span of the plan; -1: asks for none
  int64_t size_ = 0;
  Scratch floats_;
  float* data_ = nullptr;
};

// Runs on the calling thread alone if `inline_only`.
void CpuAttentionMass(ThreadPool& pool, bool inline_only, const AttentionKernels& kernels,
                      const AttentionArgs& args, const AttentionPlan& plan, RowStats& stats);

}  // namespace infllm::kernels
