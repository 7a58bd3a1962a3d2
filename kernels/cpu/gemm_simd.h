// The inner loops of Linear, one table per instruction set. Plain data only: this header is also
// compiled for AVX-512. Nothing here is validated; cpu_linear.cc is the only caller.
//
// Packed rows, of weights and of activations alike, are 4-byte words: one float, or a pair of bf16
// of consecutive k. A run of `height` rows is interleaved, [words, height], so that a multiply
// reads both operands front to back:
//   * weights: panels of `panel_width` output features (the last one padded with zeros),
//   * activations: tiles of at most `max_tile_rows` rows (gemm_amx.cc has an order of its own).
// Each y[r, o] is one fixed order of multiply-adds over k, whatever the tiles and panels around it:
// it depends neither on the number of threads nor on the other rows.
#pragma once

#include <cstdint>

#include "kernels/core/dtype.h"

namespace infllm::kernels {

// Rows are split into the fewest tiles possible, of nearly equal height.
constexpr int64_t TileCount(int64_t rows, int64_t max_tile_rows) {
  return (rows + max_tile_rows - 1) / max_tile_rows;
}
constexpr int64_t TileStart(int64_t rows, int64_t tiles, int64_t tile) {
  return rows * tile / tiles;
}

struct GemmTask {
  const float* x;        // packed tiles; tile t starts at word TileStart(t) * words
  const float* weights;  // packed panels
  const float* bias;     // [out_features] or null
  float* y;              // [rows, out_features]
  int64_t rows;
  int64_t words;  // of a row, padding included
  int64_t out_features;
  bool accumulate;
  // The part to compute.
  int64_t first_tile, end_tile;
  int64_t first_panel, end_panel;
};

// How rows of one compute dtype are packed and multiplied.
struct GemmFormat {
  int values_per_word;
  int word_multiple;  // packed rows are padded with zeros to a multiple of so many words
  int64_t max_tile_rows;
  int64_t tiles_per_block;       // as many as a pass over k keeps in the second cache level
  int64_t multiply_adds_per_ns;  // of words, roughly, by one thread
  // Packs src [height, k], its rows `stride` floats apart. dst of weights is
  // [ceil(k / values_per_word), height]: the caller pads it. That of rows is a tile of activations.
  void (*pack_weights)(const float* src, int64_t stride, int64_t height, int64_t k, float* dst);
  void (*pack_rows)(const float* src, int64_t stride, int64_t height, int64_t k, float* dst);
  void (*multiply)(const GemmTask& task);
};

struct GemmKernels {
  int64_t panel_width;
  GemmFormat f32;
  GemmFormat bf16;  // null functions where the instruction set has no bf16 products
  // dst[i] = float(src[i]), rounded to bf16 first if asked. src needs no alignment.
  void (*to_float)(const void* src, DType dtype, int64_t n, bool round_to_bf16, float* dst);
};

namespace generic {
extern const GemmKernels kGemmKernels;
}
namespace avx2 {
extern const GemmKernels kGemmKernels;
}
namespace avx512 {
extern const GemmKernels kGemmKernels;
}
namespace avx512bf16 {
extern const GemmKernels kGemmKernels;
}
namespace amx {
// That of avx512bf16 with tile registers, for the same packed weights.
GemmFormat Bf16Format(const GemmFormat& avx512bf16);
}  // namespace amx

}  // namespace infllm::kernels
