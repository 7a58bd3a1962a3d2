#include "kernels/cpu/attention_simd.h"

#include "kernels/cpu/attention_in_place_simd.h"
#include "kernels/cpu/attention_tile_simd.h"
#include "kernels/cpu/simd.h"

namespace infllm::kernels::INFLLM_ISA {
namespace {

// Accumulators of a register tile: kRowBlock rows by kMaxVectors vectors, which leaves registers
// for one row of the other operand (16 vector registers below AVX-512, 32 with it).
constexpr int kMaxVectors = kLanes == 16 ? 4 : 2;

// ---- Packing ----

// [blocks, head_dim, kRowBlock], times the softmax scale; spare rows are zero.
void PackQueries(const QuerySource& source, float* packed) {
  const int64_t head_dim = source.head_dim;
  const int64_t rows = source.heads * source.tokens;
  const int64_t padded = (rows + kRowBlock - 1) / kRowBlock * kRowBlock;
  for (int64_t r = 0; r < padded; ++r) {
    float* out = packed + r / kRowBlock * head_dim * kRowBlock + r % kRowBlock;
    if (r >= rows) {
      for (int64_t d = 0; d < head_dim; ++d) out[d * kRowBlock] = 0;
      continue;
    }
    const float* q =
        source.q + r % source.tokens * source.token_stride + r / source.tokens * head_dim;
    for (int64_t d = 0; d < head_dim; ++d) out[d * kRowBlock] = q[d] * source.scale;
  }
}

// The first n (<= kLanes) elements of a row of keys or values; zero beyond.
template <bool kBf16>
inline VecF LoadRow(const void* row, int64_t offset, int n) {
  if constexpr (kBf16) {
    const uint16_t* p = static_cast<const uint16_t*>(row) + offset;
    return LoadPartial(p, n);
  } else {
    const float* p = static_cast<const float*>(row) + offset;
    return n == kLanes ? Load(p) : LoadPartial(p, n);
  }
}

// Reads every cache line of some rows in the order of their addresses. The transposition walks down
// columns, which hardware prefetchers follow at half the speed of memory.
inline void Touch(const void* const* rows, int64_t count, int64_t row_bytes) {
  for (int64_t i = 0; i < count; ++i) {
    const char* row = static_cast<const char*>(rows[i]);
    for (int64_t at = 0; at < row_bytes; at += 64) {
      const char byte = row[at];
      asm volatile("" : : "r"(byte));
    }
  }
}

template <bool kBf16>
void PackKeys(const KeyTile& tile) {
  const int64_t head_dim = tile.head_dim;
  for (int64_t key = 0; key < tile.keys; key += kLanes) {
    const int64_t present = tile.keys - key < kLanes ? tile.keys - key : kLanes;
    Touch(tile.k + key, present, head_dim * (kBf16 ? 2 : 4));
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      const int width = static_cast<int>(head_dim - d < kLanes ? head_dim - d : kLanes);
      float* out = tile.packed_keys + d * kTileKeys + key;
      VecF rows[kLanes];
      if (present == kLanes && width == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) rows[i] = LoadRow<kBf16>(tile.k[key + i], d, kLanes);
        Transpose(rows);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) Store(out + i * kTileKeys, rows[i]);
      } else {
        for (int i = 0; i < kLanes; ++i) {
          rows[i] = i < present ? LoadRow<kBf16>(tile.k[key + i], d, width) : VecF{};
        }
        Transpose(rows);
        for (int i = 0; i < width; ++i) Store(out + i * kTileKeys, rows[i]);
      }
    }
  }
}

// Whether row i may be read past its end, up to a whole number of vectors: the next row is there.
template <bool kBf16>
inline bool ReadableInPlace(const KeyTile& tile, int i) {
  if (kBf16) return false;
  const int64_t head_dim = tile.head_dim;
  const int64_t spare = Vectors(head_dim) * kLanes - head_dim;
  if (spare == 0) return true;
  return spare <= head_dim && i + 1 < tile.keys &&
         tile.v[i + 1] == static_cast<const float*>(tile.v[i]) + head_dim;
}

template <bool kBf16>
void PackValues(KeyTile& tile) {
  const int64_t head_dim = tile.head_dim;
  const int64_t stride = PaddedDim(head_dim);
  for (int i = 0; i < tile.keys; ++i) {
    if (ReadableInPlace<kBf16>(tile, i)) {
      tile.values[i] = static_cast<const float*>(tile.v[i]);
      continue;
    }
    float* row = tile.packed_values + i * stride;
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      const int width = static_cast<int>(head_dim - d < kLanes ? head_dim - d : kLanes);
      Store(row + d, LoadRow<kBf16>(tile.v[i], d, width));
    }
    tile.values[i] = row;
  }
}

void Pack(KeyTile& tile) {
  if (tile.bf16) {
    PackKeys<true>(tile);
    PackValues<true>(tile);
  } else {
    PackKeys<false>(tile);
    PackValues<false>(tile);
  }
  PackMasks(tile);
}

// ---- One block of M rows against one tile ----

// s[m, n] = sum over d of q[d, m] k[d, n] for M rows and N vectors of keys.
template <int M, int N>
inline void ScoreVectors(const float* q, const float* k, int64_t head_dim, float* s) {
  VecF acc[M][N] = {};
  for (int64_t d = 0; d < head_dim; ++d) {
    VecF key[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) key[n] = Load(k + n * kLanes);
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      const VecF query = Set(q[m]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[m][n] += query * key[n];
    }
    q += kRowBlock;
    k += kTileKeys;
  }
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) Store(s + m * kTileKeys + n * kLanes, acc[m][n]);
  }
}

// Masked scores of the rows from `row` on. Returns which vectors of p hold them.
template <int M>
inline Span Scores(const KeyTile& tile, const QueryRows& rows, int64_t row, float* p) {
  const TokenSpan tokens = TokensOf(rows.token + row, M);
  const Span span = SeenBy(tile, tokens);
  for (int64_t v = 0; v < Vectors(tile.keys); ++v) {  // p is zero outside
    if (v >= span.begin && v < span.end) continue;
    for (int m = 0; m < M; ++m) Store(p + m * kTileKeys + v * kLanes, VecF{});
  }

  const float* q = rows.q + row * tile.head_dim;
  int64_t v = span.begin;
  for (; v + kMaxVectors <= span.end; v += kMaxVectors) {
    ScoreVectors<M, kMaxVectors>(q, tile.packed_keys + v * kLanes, tile.head_dim, p + v * kLanes);
  }
  for (; v < span.end; ++v) {
    ScoreVectors<M, 1>(q, tile.packed_keys + v * kLanes, tile.head_dim, p + v * kLanes);
  }
  MaskScores(tile, rows.token + row, M, tokens, span, p);
  return span;
}

// out[m, n] = alpha[m] out[m, n] + sum over keys of p[m, key] v[key, n], N vectors of dimensions.
template <int M, int N>
inline void AddValueVectors(const float* const* values, int64_t offset, const float* p,
                            int64_t begin, int64_t end, const float* alpha, float* out,
                            int64_t stride) {
  // Few accumulators would wait for each other: consecutive keys then go to different ones.
  constexpr int kChains = M * N >= 8 ? 1 : M * N >= 4 ? 2 : 4;
  VecF acc[kChains][M][N] = {};
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      acc[0][m][n] = Load(out + m * stride + n * kLanes) * Set(alpha[m]);
    }
  }
  const auto step = [&](VecF(&sums)[M][N], int64_t key) __attribute__((always_inline)) {
    const float* v = values[key] + offset;
    VecF value[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) value[n] = Load(v + n * kLanes);
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      const VecF weight = Set(p[m * kTileKeys + key]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sums[m][n] += weight * value[n];
    }
  };
  int64_t key = begin;
  for (; key + kChains <= end; key += kChains) {
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) step(acc[c], key + c);
  }
  for (; key < end; ++key) step(acc[0], key);
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      VecF total = acc[0][m][n];
#pragma GCC unroll 4
      for (int c = 1; c < kChains; ++c) total += acc[c][m][n];
      Store(out + m * stride + n * kLanes, total);
    }
  }
}

template <int M>
void AttendBlock(const KeyTile& tile, const QueryRows& rows, int64_t row, float* p) {
  const Span span = Scores<M>(tile, rows, row, p);
  if (span.begin == span.end) return;
  float alpha[kMaxLanes];
  Softmax<M>(rows, row, p, span, tile.bias, alpha);

  const int64_t stride = PaddedDim(tile.head_dim);
  const int64_t begin = span.begin * kLanes;
  const int64_t end = span.end * kLanes < tile.keys ? span.end * kLanes : tile.keys;
  float* out = rows.out + row * stride;
  const int64_t vectors = Vectors(tile.head_dim);
  int64_t n = 0;
  for (; n + kMaxVectors <= vectors; n += kMaxVectors) {
    AddValueVectors<M, kMaxVectors>(tile.values, n * kLanes, p, begin, end, alpha, out + n * kLanes,
                                    stride);
  }
  for (; n < vectors; ++n) {
    AddValueVectors<M, 1>(tile.values, n * kLanes, p, begin, end, alpha, out + n * kLanes, stride);
  }
}

template <int M>
void RescoreBlock(const KeyTile& tile, const QueryRows& rows, int64_t row, const float* max,
                  float* p) {
  const Span span = Scores<M>(tile, rows, row, p);
  for (int m = 0; m < M; ++m) {
    const float shift = max[row + m] == kNegInf ? 0.0f : max[row + m];
    Exponentials(p + m * kTileKeys, shift - tile.bias, span);
  }
}

// Calls body(integral constant M, first row) for blocks of M rows.
template <typename Body>
inline void ForRowBlocks(int64_t rows, const Body& body) {
  static_assert(kRowBlock == 6);
  int64_t row = 0;
  for (; row + 6 <= rows; row += 6) body.template operator()<6>(row);
  switch (rows - row) {
    case 5:
      return body.template operator()<5>(row);
    case 4:
      return body.template operator()<4>(row);
    case 3:
      return body.template operator()<3>(row);
    case 2:
      return body.template operator()<2>(row);
    case 1:
      return body.template operator()<1>(row);
    default:
      return;
  }
}

void Attend(const KeyTile& tile, const QueryRows& rows, float* p) {
  ForRowBlocks(rows.rows, [&]<int M>(int64_t row) { AttendBlock<M>(tile, rows, row, p); });
}

void Rescore(const KeyTile& tile, const QueryRows& rows, const float* max, float* p) {
  ForRowBlocks(rows.rows, [&]<int M>(int64_t row) {
    RescoreBlock<M>(tile, rows, row, max, p + row * kTileKeys);
  });
}

// ---- After the tiles ----

void RowTotals(const float* sum, int64_t rows, float* total) {
  for (int64_t r = 0; r < rows; ++r) total[r] = ReduceAdd(Load(sum + r * kMaxLanes));
}

void Rescale(const float* a, const float* max, const float* factor, int64_t rows, float* out) {
  for (int64_t r = 0; r < rows; r += kLanes) {
    const VecF e = Exp(Load(a + r) - FiniteMax(Load(max + r)));
    Store(out + r, Load(factor + r) * e);
  }
}

void Combine(const float* const* parts, const float* weights, int64_t n, int64_t head_dim,
             float* out) {
  for (int64_t d = 0; d < head_dim; d += kLanes) {
    VecF sum = Load(parts[0] + d) * Set(weights[0]);
    for (int64_t i = 1; i < n; ++i) sum += Load(parts[i] + d) * Set(weights[i]);
    if (head_dim - d >= kLanes) {
      Store(out + d, sum);
    } else {
      StorePartial(out + d, sum, static_cast<int>(head_dim - d));
    }
  }
}

template <int N>
inline void FoldVectors(const float* p, const float* weight, int64_t rows, float* mass) {
  VecF acc[N] = {};
  for (int64_t r = 0; r < rows; ++r) {
    const VecF w = Set(weight[r]);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) acc[n] += w * Load(p + r * kTileKeys + n * kLanes);
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) Store(mass + n * kLanes, Load(mass + n * kLanes) + acc[n]);
}

void FoldMass(const float* p, const float* weight, int64_t rows, int64_t keys, float* mass) {
  constexpr int kStep = kTileVectors < 8 ? kTileVectors : 8;
  const int64_t vectors = Vectors(keys);
  int64_t v = 0;
  for (; v + kStep <= vectors; v += kStep) {
    FoldVectors<kStep>(p + v * kLanes, weight, rows, mass + v * kLanes);
  }
  for (; v < vectors; ++v) FoldVectors<1>(p + v * kLanes, weight, rows, mass + v * kLanes);
}

// Rows of a query tile: enough to hide the transposition of a key tile (one part in rows / 8 of
// the work), few enough that queries, sums and a key tile stay in the second cache level.
constexpr int64_t kQueryTileRows = 96;

constexpr TileKernels kPacked = {PackQueries, Pack, Attend, Rescore};

}  // namespace

constinit const AttentionKernels kAttentionKernels = {
    .tile_rows = kQueryTileRows,
    .packed = kPacked,
    .in_place = &kInPlaceKernels,
    .in_place_dims = 2 * kLanes,
    .masses = kPacked,
    .row_totals = RowTotals,
    .rescale = Rescale,
    .combine = Combine,
    .fold_mass = FoldMass,
};

}  // namespace infllm::kernels::INFLLM_ISA
