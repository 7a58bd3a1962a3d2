// The inner loops of block selection, one table per instruction set. Plain data only: this header
// is also compiled for AVX-512. What a row of results is does not depend on its neighbours, so
// ranges may be cut anywhere.
#pragma once

#include <cstdint>

namespace infllm::kernels {

// Rows of per-head values are padded to this many.
constexpr int64_t PaddedHeads(int64_t heads) { return (heads + 15) / 16 * 16; }

struct SelectKernels {
  // out[r] = query . rows[r], rows: [count, width].
  void (*dots)(const float* query, const float* rows, int64_t count, int64_t width, float* out);
  // logits[b, h] = scale * query[h] . rows[b, h]; query: [heads, head_dim],
  // rows: [blocks, heads, head_dim], logits: [blocks, PaddedHeads(heads)].
  void (*head_dots)(const float* query, const float* rows, int64_t blocks, int64_t heads,
                    int64_t head_dim, float scale, float* logits);
  // max[h] = max over b of x[b, h]; x = e^(x - max); sum[h] = sum over b of x[b, h].
  // x: [blocks, width], width a multiple of 16.
  void (*exponentials)(float* x, int64_t blocks, int64_t width, float* max, float* sum);
  // out[h] = e^(x[h] - y[h]).
  void (*exp_difference)(const float* x, const float* y, int64_t width, float* out);
  // out[c] = mean over r < count of rows[r][c], rows of fp32 or bf16.
  void (*mean_rows)(const void* const* rows, int64_t count, bool bf16, int64_t width, float* out);
};

namespace generic {
extern const SelectKernels kSelectKernels;
}
namespace avx2 {
extern const SelectKernels kSelectKernels;
}
namespace avx512 {
extern const SelectKernels kSelectKernels;
}
namespace avx512bf16 {
extern const SelectKernels kSelectKernels;
}

}  // namespace infllm::kernels
