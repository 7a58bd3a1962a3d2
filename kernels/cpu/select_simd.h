// The inner loops of block selection, one table per instruction set. Plain data only: this header
// is also compiled for AVX-512. What a row of results is does not depend on its neighbours, so
// ranges may be cut anywhere.
#pragma once

#include <cstdint>

namespace infllm::kernels {

// A query and where its scores of the blocks of a chunk go.
struct ChunkQuery {
  const void* rows = nullptr;  // the chunk: [blocks, width], fp32 or bf16
  int64_t blocks = 0;
  const float* query = nullptr;  // made by arrange_query
  float* out = nullptr;          // [blocks]
};

// Elements of an arranged query.
constexpr int64_t ArrangedWidth(int64_t width) { return (width + 31) / 32 * 32; }

// Rows are of fp32 or bf16 as the flag says.
struct SelectKernels {
  // Puts query, [width], into the order in which `dots` meets such rows: [ArrangedWidth(width)].
  void (*arrange_query)(const float* query, int64_t width, bool bf16, float* out);
  // out[0, g] = sum over the heads h of g of min(query[h], 0), out[1, g] that of max(query[h], 0);
  // query: [q_heads, head_dim], out: [2, kv_heads, head_dim].
  void (*split_query)(const float* query, int64_t q_heads, int64_t kv_heads, int64_t head_dim,
                      float* out);
  // queries[i].out[b] = queries[i].query . rows[b] for first <= b < end. All have the same rows.
  // The order of a sum depends on `width` alone.
  void (*dots)(const ChunkQuery* queries, int64_t count, bool bf16, int64_t width, int64_t first,
               int64_t end);
  // out[i] = query . rows[i], bit for bit as `dots` would.
  void (*dots_of)(const void* const* rows, int64_t count, bool bf16, int64_t width,
                  const float* query, float* out);
  // out[c] = mean over r < count of rows[r][c].
  void (*mean_rows)(const void* const* rows, int64_t count, bool bf16, int64_t width, float* out);
  // least[c] = min over r of rows[r, c], largest[c] their max, rows: [count, width].
  void (*bounds)(const void* rows, int64_t count, bool bf16, int64_t width, float* least,
                 float* largest);
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
