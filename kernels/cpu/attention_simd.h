// The inner loops of CpuAttention, one table per instruction set. Plain data only: this header is
// also compiled for AVX-512. Nothing here is validated.
//
// One unit of work is a *query tile* (some tokens of all query heads that share a KV head) against
// *key tiles* of up to kTileKeys keys. A key tile is transposed once, [head_dim, keys], and then
// met by all rows of the query tile in blocks of kRowBlock rows:
//   scores (rows x keys)  ->  online softmax  ->  weighted sum of values,
// so that keys lie in vector lanes for the first product and value dimensions for the second.
// attention_amx.cc does the same for bf16 pages with tile registers.
#pragma once

#include <cstdint>

namespace infllm::kernels {

inline constexpr int kTileKeys = 128;
inline constexpr int kRowBlock = 6;
inline constexpr int kMaxLanes = 16;
// Floats of scratch that TileKernels::attend needs.
inline constexpr int kAttendScratch = 24 * kTileKeys;

// Row arrays have room for this many rows, so that a vector or a block of up to kMaxLanes rows may
// be read and written past the last of them.
constexpr int64_t PaddedRows(int64_t rows) {
  return (rows + kRowBlock - 1) / kRowBlock * kRowBlock + kMaxLanes;
}
constexpr int64_t PaddedDim(int64_t head_dim) {
  return (head_dim + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
}

struct KeyTile {
  // Set by the caller. Key i is visible to the tokens [first_token[i], end_token[i]).
  int64_t head_dim;
  bool bf16;  // elements of keys and values, instead of fp32
  int32_t keys;
  bool all_visible;          // every key to every token of the query tile
  const void* k[kTileKeys];  // row of head_dim elements
  const void* v[kTileKeys];  // likewise
  int32_t first_token[kTileKeys];
  int32_t end_token[kTileKeys];
  float bias;  // added to the logits
  // Room for what pack() makes of keys and values: [kTileKeys, PaddedDim(head_dim)] each.
  float* packed_keys;
  float* packed_values;

  // Set by pack().
  bool masked;
  const float* values[kTileKeys];  // rows readable up to a whole number of vectors; of packed tiles
                                   // without AMX
  // Per vector of keys: who sees some of them, [some_first, some_end), and who sees all.
  int32_t some_first[kTileKeys / 4];
  int32_t some_end[kTileKeys / 4];
  int32_t all_first[kTileKeys / 4];
  int32_t all_end[kTileKeys / 4];
};

// Queries where they lie: of some consecutive heads and tokens.
struct QuerySource {
  const float* q;        // of the first token and head; those of a token are side by side
  int64_t token_stride;  // floats
  int64_t heads;
  int64_t tokens;
  int64_t head_dim;
  float scale;  // of the logits: > 0
  bool bf16;    // the keys that they meet, as in KeyTile
};

struct QueryRows {
  int64_t rows;
  float scale;           // as in QuerySource; of use where pack_queries() leaves it out
  const float* q;        // as pack_queries() leaves them
  const int32_t* token;  // [PaddedRows]
  // The state of the online softmax; before the first tile: zero, -inf, zero.
  float* out;  // [PaddedRows, PaddedDim]: sum of e^(s - max) v
  float* max;  // [PaddedRows]
  float* sum;  // [rows, kMaxLanes]: sum of e^(s - max), spread over lanes
};

// How the rows of a query tile meet key tiles.
struct TileKernels {
  // Packs [PaddedRows, PaddedDim(head_dim)] floats or fewer; rows are ordered by head, then token.
  void (*pack_queries)(const QuerySource& source, float* packed);
  // Makes the tile ready for attend().
  void (*pack)(KeyTile& tile);
  // Folds a packed tile into the rows. scratch: kAttendScratch floats.
  void (*attend)(const KeyTile& tile, const QueryRows& rows, float* scratch);
  // p[PaddedRows, kTileKeys] = e^(s - max) for a given max. Null if in place.
  void (*rescore)(const KeyTile& tile, const QueryRows& rows, const float* max, float* p);
};

// Query tiles of so few rows, as in decoding, read keys and values where they lie: packing them
// costs more than it gains.
inline constexpr int64_t kInPlaceRows = 8;

// Constant expressions, which no code has to run for: a CPU may lack what a table is compiled with.
struct AttentionKernels {
  int64_t tile_rows;  // rows of a query tile, if the heads of a KV head are not more
  TileKernels packed;
  // Of up to kInPlaceRows rows; all in fp32, as is `masses`, which their masses are made with.
  const TileKernels* in_place;
  int64_t in_place_dims;  // of which head_dim is a multiple then
  TileKernels masses;
  // total[r] = sum of the lanes of sum[r].
  void (*row_totals)(const float* sum, int64_t rows, float* total);
  // out[r] = factor[r] e^(a[r] - max[r]); zero where a is -inf.
  void (*rescale)(const float* a, const float* max, const float* factor, int64_t rows, float* out);
  // out[d] = sum over i < n of weight[i] parts[i][d].
  void (*combine)(const float* const* parts, const float* weights, int64_t n, int64_t head_dim,
                  float* out);
  // mass[k] += sum over r of weight[r] p[r, k], for whole vectors that cover `keys`.
  void (*fold_mass)(const float* p, const float* weight, int64_t rows, int64_t keys, float* mass);
};

namespace generic {
extern const AttentionKernels kAttentionKernels;
}
namespace avx2 {
extern const AttentionKernels kAttentionKernels;
}
namespace avx512 {
extern const AttentionKernels kAttentionKernels;
}
namespace avx512bf16 {
extern const AttentionKernels kAttentionKernels;
}
namespace amx {
// For bf16 pages: those of avx512bf16 with tile registers. Queries and the weights e^(s - max) that
// values are multiplied with are rounded to bf16, sums are fp32.
AttentionKernels Bf16Attention(const AttentionKernels& avx512bf16);
}  // namespace amx

}  // namespace infllm::kernels
