// Codes of bounds (EncodeBounds) and what they say of a query: one table per instruction set. Plain
// data only: this header is also compiled for AVX-512.
//
// Negate the least keys and the negative parts of a split query, and its product with a block is
//   sum over channels c of w[c] y[c], w >= 0,
// which grows with every y. A code n[c] in 0..15 says that y[c] <= origin[c] + n[c] step[c], the
// origin and the step being of the channel in the run. So with levels m and a unit u, m[c] u near
// w[c] step[c], and its rest r[c] = w[c] step[c] - m[c] u,
//   w . y <= w . origin + u (m . n) + 15 sum of max(r, 0),
// where m . n is in whole numbers. The bound also covers the rounding of its own and of any order
// of sums of the product in fp32.
//
// A run's codes: origins, steps (CodedWidth(width) floats each, of which origins are NaN where an
// element is not finite), then for each 16 blocks and each 8 channels 64 bytes: 4 of each block, of
// which byte i has channel i in its low and channel 4 + i in its high half.
#pragma once

#include <cstddef>
#include <cstdint>

namespace infllm::kernels {

// A query and where the bounds of a run's blocks go.
struct BoundedQuery {
  const float* query = nullptr;  // [width], made by split_query
  float* out = nullptr;          // [kRunBlocks]
};

struct CodeKernels {
  // Codes of one run of rows, [kRunBlocks, width]. scratch: [CodedWidth(width)].
  void (*encode)(const void* rows, bool bf16, int64_t width, uint8_t* scratch, std::byte* codes);
  // queries[i].out[b] >= what `dots` makes of the query and block b, or +inf; never NaN.
  // scratch: [4, 2 * CodedWidth(width)].
  void (*bound)(const BoundedQuery* queries, int64_t count, int64_t width, const std::byte* codes,
                uint8_t* scratch);
  // The i with !(values[i] < least), ascending, into out[n]; returns how many.
  int64_t (*not_below)(const float* values, int64_t n, float least, uint32_t* out);
};

namespace generic {
extern const CodeKernels kCodeKernels;
}
namespace avx2 {
extern const CodeKernels kCodeKernels;
}
namespace avx512 {
extern const CodeKernels kCodeKernels;
}
namespace avx512bf16 {
extern const CodeKernels kCodeKernels;
}

}  // namespace infllm::kernels
