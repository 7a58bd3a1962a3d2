// The inner loops of Scoring::kHeadVote, one table per instruction set. Plain data only: this
// header is also compiled for AVX-512. What a row of results is does not depend on its neighbours.
#pragma once

#include <cstdint>

namespace infllm::kernels {

// Rows of per-head values are padded to this many.
constexpr int64_t PaddedHeads(int64_t heads) { return (heads + 15) / 16 * 16; }

// Queries and how they meet the rows of a block, [slots, heads / heads_per_row, head_dim]. The
// logit of a head is the sum of its products with its row in each slot.
struct HeadQueries {
  const float* query;  // [slots, heads, head_dim]
  int64_t slots;
  int64_t heads;
  int64_t heads_per_row;  // consecutive heads that share a row
  int64_t head_dim;
  float scale;
};

struct HeadVoteKernels {
  // logits[b, h] = scale * the logit of head h, logits: [blocks, PaddedHeads(heads)]. The rows are
  // of fp32 or bf16 as the flag says.
  void (*head_dots)(const HeadQueries& queries, const void* rows, bool bf16, int64_t blocks,
                    float* logits);
  // max[h] = max over b of x[b, h]; x = e^(x - max); sum[h] = sum over b of x[b, h].
  // x: [blocks, width], width a multiple of 16.
  void (*exponentials)(float* x, int64_t blocks, int64_t width, float* max, float* sum);
  // out[h] = e^(x[h] - y[h]).
  void (*exp_difference)(const float* x, const float* y, int64_t width, float* out);
  // out[b] = sum over the heads h of weight[h] x[b, h], x: [blocks, PaddedHeads(heads)].
  void (*head_sums)(const float* x, const float* weight, int64_t blocks, int64_t heads, float* out);
};

namespace generic {
extern const HeadVoteKernels kHeadVoteKernels;
}
namespace avx2 {
extern const HeadVoteKernels kHeadVoteKernels;
}
namespace avx512 {
extern const HeadVoteKernels kHeadVoteKernels;
}
namespace avx512bf16 {
extern const HeadVoteKernels kHeadVoteKernels;
}

}  // namespace infllm::kernels
