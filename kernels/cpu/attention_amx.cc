// Attention over bf16 pages with the tile registers of AMX: see attention_simd.h for the frame.
//
// Queries meet keys in blocks of up to 16 rows. Everything that tiles are loaded from is packed as
// whole tiles of 1 KiB:
//   queries  [row block][step][16 rows][16 words]          a word: two dimensions of one row
//   keys     [vector of 16 keys][step][16 words][16 keys]  likewise, of one key
//   values   [32 keys][16 dimensions][16 words][16]        a word: one dimension of two keys
// where a step is 32 dimensions, the last one padded with zeros. A row's sums are one fixed order
// of operations over dimensions and keys, whatever the rows beside it.
#include <cstdint>
#include <utility>

#include "kernels/cpu/amx_tiles.h"
#include "kernels/cpu/attention_simd.h"
#include "kernels/cpu/attention_tile_simd.h"
#include "kernels/cpu/simd.h"

namespace infllm::kernels::INFLLM_ISA {
namespace {

constexpr int64_t kTileFloats = kTileRows * kTileWords;
constexpr int64_t kStepDims = 2 * kTileWords;  // dimensions, or keys, of one word row
constexpr int64_t kStepKeys = 2 * kTileRows;
constexpr int64_t kWeightWords = kTileKeys / 2;  // of a row of weights in bf16
// Rows of a query tile. Packing costs more than with vectors, beside products that cost less.
constexpr int64_t kQueryTileRows = 256;
constexpr float kLog2E = 1.44269504f;

// Tile registers: 0 to 3 are sums, 4 the rows, 5 to 7 keys or values.
constexpr int kRowsTile = 4, kColumnsTile = 5;

int64_t Steps(int64_t head_dim) { return (head_dim + kStepDims - 1) / kStepDims; }

// The first n (<= 32) words of 2 bytes; zero beyond.
inline __m512i LoadHalves(const void* p, int64_t n) {
  const __mmask32 mask = n >= 32 ? ~__mmask32{0} : (__mmask32{1} << n) - 1;
  return _mm512_maskz_loadu_epi16(mask, p);
}

// ---- Packing ----

void PackQueries(const QuerySource& source, float* packed) {
  const int64_t head_dim = source.head_dim;
  const int64_t steps = Steps(head_dim);
  const int64_t block_floats = steps * kTileFloats;
  const auto at = [&](int64_t row) {
    return packed + row / kTileRows * block_floats + row % kTileRows * kTileWords;
  };
  int64_t row = 0;
  for (int64_t head = 0; head < source.heads; ++head) {
    for (int64_t token = 0; token < source.tokens; ++token, ++row) {
      const float* q = source.q + token * source.token_stride + head * head_dim;
      float* out = at(row);
      for (int64_t d = 0; d < head_dim; d += kStepDims, out += kTileFloats) {
        const int64_t left = head_dim - d;
        const int low = static_cast<int>(left < kLanes ? left : kLanes);
        const int high = static_cast<int>(left < kStepDims ? left - low : kLanes);
        const VecF first = LoadPartial(q + d, low);
        const VecF second = high > 0 ? LoadPartial(q + d + low, high) : VecF{};
        Store(out, (VecF)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
      }
    }
  }
  for (; row % kTileRows != 0; ++row) {
    for (int64_t step = 0; step < steps; ++step) Store(at(row) + step * kTileFloats, VecF{});
  }
}

// 16 keys from `key` on.
void PackKeys(const KeyTile& tile, int64_t key, int64_t head_dim) {
  const int64_t present = tile.keys - key < kLanes ? tile.keys - key : kLanes;
  const int64_t steps = Steps(head_dim);
  float* out = tile.packed_keys + key / kLanes * steps * kTileFloats;
  for (int64_t step = 0; step < steps; ++step, out += kTileFloats) {
    const int64_t done = step * kStepDims;
    VecF words[kLanes];  // moved, never computed with
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      words[i] = i < present
                     ? (VecF)LoadHalves(static_cast<const uint16_t*>(tile.k[key + i]) + done,
                                        head_dim - done)
                     : VecF{};
    }
    Transpose(words);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) Store(out + i * kTileWords, words[i]);
  }
}

// 32 keys from `key` on.
void PackValues(const KeyTile& tile, int64_t key, int64_t head_dim) {
  // Word i of the low half: halves i of both operands; of the high half: halves 16 + i.
  alignas(64) uint16_t order[2][32];
  for (uint16_t i = 0; i < 16; ++i) {
    order[0][2 * i] = i;
    order[0][2 * i + 1] = static_cast<uint16_t>(32 + i);
    order[1][2 * i] = static_cast<uint16_t>(16 + i);
    order[1][2 * i + 1] = static_cast<uint16_t>(48 + i);
  }
  const __m512i low = _mm512_load_si512(order[0]), high = _mm512_load_si512(order[1]);
  const int64_t dim_tiles = PaddedDim(head_dim) / kTileWords;
  float* const out = tile.packed_values + key / kStepKeys * dim_tiles * kTileFloats;
  for (int64_t pair = 0; pair < kTileRows; ++pair) {
    const int64_t a = key + 2 * pair, b = a + 1;
    for (int64_t d = 0; d < head_dim; d += kStepDims) {
      const auto load = [&](int64_t i) {
        return i < tile.keys ? LoadHalves(static_cast<const uint16_t*>(tile.v[i]) + d, head_dim - d)
                             : _mm512_maskz_set1_epi32(0xffff, 0);
      };
      const __m512i first = load(a), second = load(b);
      float* const words = out + d / kTileWords * kTileFloats + pair * kTileWords;
      Store(words, (VecF)_mm512_maskz_permutex2var_epi16(~__mmask32{0}, first, low, second));
      if (head_dim - d > kTileWords) {
        Store(words + kTileFloats,
              (VecF)_mm512_maskz_permutex2var_epi16(~__mmask32{0}, first, high, second));
      }
    }
  }
}

void Pack(KeyTile& tile) {
  const int64_t head_dim = tile.head_dim;
  for (int64_t key = 0; key < tile.keys; key += kStepKeys) {
    PackKeys(tile, key, head_dim);
    if (key + kLanes < tile.keys) PackKeys(tile, key + kLanes, head_dim);
    PackValues(tile, key, head_dim);
  }
  PackMasks(tile);
}

// ---- One block of up to 16 rows against one tile ----

// Calls body(integral constant i) for i < N.
template <int N, typename Body>
inline void ForTiles(const Body& body) {
  [&]<int... i>(std::integer_sequence<int, i...>) { (body.template operator()<i>(), ...); }
  (std::make_integer_sequence<int, N>());
}

// Tiles of 16 rows, a step of words each: the next step's is `step` floats on.
struct RowTiles {
  const float* at;
  int64_t step;
  int64_t row_bytes;
};
// Packed tiles of 16 columns; the next columns' is `next` floats on.
struct ColumnTiles {
  const float* at;
  int64_t step;
  int64_t next;
};

// Adds rows . columns, over `steps` of both, to N tiles of sums side by side.
template <int N>
inline void AddProducts(RowTiles rows, ColumnTiles columns, int64_t steps) {
  constexpr int kColumnTiles = 3;
  for (int64_t step = 0; step < steps; ++step) {
    LoadTile<kRowsTile>(rows.at, rows.row_bytes);
    ForTiles<N>([&]<int i>() {
      constexpr int kColumns = kColumnsTile + i % kColumnTiles;
      LoadTile<kColumns>(columns.at + i * columns.next, kTileRowBytes);
      Dot<i, kRowsTile, kColumns>();
    });
    rows.at += rows.step;
    columns.at += columns.step;
  }
}

// s[row, vector of 16 keys] = q . k for kVectors vectors.
template <int kVectors>
void ScoreVectors(const float* q, const float* k, int64_t steps, float* s) {
  constexpr int64_t kRowBytes = kTileKeys * sizeof(float);
  ForTiles<kVectors>([]<int i>() { ZeroTile<i>(); });
  AddProducts<kVectors>({.at = q, .step = kTileFloats, .row_bytes = kTileRowBytes},
                        {.at = k, .step = kTileFloats, .next = steps * kTileFloats}, steps);
  ForTiles<kVectors>([&]<int i>() { StoreTile<i>(s + i * kLanes, kRowBytes); });
}

// out[row, tile of 16 dimensions] += weights . values for kDims tiles of dimensions, over the steps
// [begin, end) of keys.
template <int kDims>
void AddValues(const float* weights, const float* values, int64_t dim_tiles, Span steps, float* out,
               int64_t out_bytes) {
  const int64_t value_step = dim_tiles * kTileFloats;
  ForTiles<kDims>([&]<int i>() { LoadTile<i>(out + i * kTileWords, out_bytes); });
  AddProducts<kDims>(
      {.at = weights + steps.begin * kTileWords,
       .step = kTileWords,
       .row_bytes = kWeightWords * static_cast<int64_t>(sizeof(float))},
      {.at = values + steps.begin * value_step, .step = value_step, .next = kTileFloats},
      steps.end - steps.begin);
  ForTiles<kDims>([&]<int i>() { StoreTile<i>(out + i * kTileWords, out_bytes); });
}

// Calls body(integral constant N, first) for groups of N <= 4 of [begin, end).
template <typename Body>
inline void ForGroups(int64_t begin, int64_t end, const Body& body) {
  int64_t at = begin;
  for (; at + 4 <= end; at += 4) body.template operator()<4>(at);
  switch (end - at) {
    case 3:
      return body.template operator()<3>(at);
    case 2:
      return body.template operator()<2>(at);
    case 1:
      return body.template operator()<1>(at);
    default:
      return;
  }
}

// Scores without their scale, [16, kTileKeys]; -inf where a row does not see a key.
Span Scores(const KeyTile& tile, const QueryRows& rows, int64_t row, int64_t count, float* s) {
  const TokenSpan tokens = TokensOf(rows.token + row, count);
  const Span span = SeenBy(tile, tokens);
  const int64_t steps = Steps(tile.head_dim);
  const float* q = rows.q + row * steps * kTileWords;
  ForGroups(span.begin, span.end, [&]<int N>(int64_t v) {
    ScoreVectors<N>(q, tile.packed_keys + v * steps * kTileFloats, steps, s + v * kLanes);
  });
  MaskScores(tile, rows.token + row, count, tokens, span, s);
  return span;
}

// 2^t to 2e-7; zero below 2^-126, NaN for NaN.
//   t = n + f, |f| <= 1/2;  2^t = 2^n 2^f, the latter by a polynomial
inline VecF Exp2(VecF t) {
  constexpr __mmask16 kAll = 0xffff;
  const __mmask16 counts = _mm512_cmp_ps_mask((__m512)t, (__m512)Set(-126.0f), _CMP_NLT_UQ);
  const VecF n = (VecF)_mm512_maskz_roundscale_ps(kAll, (__m512)t,
                                                  _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const VecF f = t - n;
  VecF p = Set(1.3333558146e-3f);
  p = p * f + Set(9.6181291076e-3f);
  p = p * f + Set(5.5504108665e-2f);
  p = p * f + Set(2.4022650696e-1f);
  p = p * f + Set(6.9314718056e-1f);
  p = p * f + Set(1.0f);
  return (VecF)_mm512_maskz_scalef_ps(counts, (__m512)p, (__m512)n);
}

// Brings the maxima of the rows up to date. shift[r]: what is taken from scale * s, alpha[r]: what
// the sums so far have to be multiplied with.
void UpdateMax(const QueryRows& rows, int64_t row, int64_t count, const float* s, Span span,
               float bias, float* shift, float* alpha) {
  alignas(64) float best[kTileRows] = {};
  for (int64_t r = 0; r < count; ++r) {
    VecF max = Set(kNegInf);
    for (int64_t v = span.begin; v < span.end; ++v) {
      max = Max(max, Load(s + r * kTileKeys + v * kLanes));
    }
    best[r] = ReduceMax(max);
  }
  const int lanes = static_cast<int>(count);
  const VecF old = LoadPartial(rows.max + row, lanes);
  const VecF updated = Max(old, Load(best) * Set(rows.scale) + Set(bias));
  const VecF max = FiniteMax(updated);
  Store(alpha, Exp2((old - max) * Set(kLog2E)));
  Store(shift, max - Set(bias));
  StorePartial(rows.max + row, updated, lanes);
}

struct Weights {
  float scale;  // of s, and
  float shift;  // taken from it, as powers of 2
  VecF operator()(const float* s) const { return Exp2(Load(s) * Set(scale) - Set(shift)); }
};

void AttendBlock(const KeyTile& tile, const QueryRows& rows, int64_t row, int64_t count,
                 float* scratch) {
  float* const s = scratch;
  float* const weights = scratch + kTileRows * kTileKeys;  // [16, kTileKeys] of bf16
  const Span span = Scores(tile, rows, row, count, s);
  if (span.begin == span.end) return;
  alignas(64) float shift[kTileRows], alpha[kTileRows];
  UpdateMax(rows, row, count, s, span, tile.bias, shift, alpha);

  const int64_t stride = PaddedDim(tile.head_dim);
  const Span steps{span.begin / 2, (span.end + 1) / 2};
  for (int64_t r = 0; r < count; ++r) {
    const Weights weight{rows.scale * kLog2E, shift[r] * kLog2E};
    const float* scores = s + r * kTileKeys;
    VecF sum = {};
    for (int64_t step = steps.begin; step < steps.end; ++step) {
      const int64_t v = 2 * step;
      const VecF low = v >= span.begin ? weight(scores + v * kLanes) : VecF{};
      const VecF high = v + 1 < span.end ? weight(scores + (v + 1) * kLanes) : VecF{};
      sum += low + high;
      Store(weights + r * kWeightWords + step * kTileWords,
            (VecF)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
    }
    float* total = rows.sum + (row + r) * kMaxLanes;
    Store(total, Load(total) * Set(alpha[r]) + sum);
    if (alpha[r] == 1) continue;
    float* out = rows.out + (row + r) * stride;
    for (int64_t d = 0; d < stride; d += kLanes) Store(out + d, Load(out + d) * Set(alpha[r]));
  }

  const int64_t dim_tiles = stride / kTileWords;
  ForGroups(0, dim_tiles, [&]<int N>(int64_t d) {
    AddValues<N>(weights, tile.packed_values + d * kTileFloats, dim_tiles, steps,
                 rows.out + row * stride + d * kTileWords,
                 stride * static_cast<int64_t>(sizeof(float)));
  });
}

// Calls body(first row, how many) for blocks of up to 16 rows.
template <typename Body>
inline void ForRowBlocks(int64_t rows, const Body& body) {
  const TileConfiguration configuration(rows < kTileRows ? rows : kTileRows, kColumnsTile);
  for (int64_t row = 0; row < rows; row += kTileRows) {
    body(row, rows - row < kTileRows ? rows - row : kTileRows);
  }
}

void Attend(const KeyTile& tile, const QueryRows& rows, float* scratch) {
  ForRowBlocks(rows.rows,
               [&](int64_t row, int64_t count) { AttendBlock(tile, rows, row, count, scratch); });
}

void Rescore(const KeyTile& tile, const QueryRows& rows, const float* max, float* p) {
  ForRowBlocks(rows.rows, [&](int64_t row, int64_t count) {
    float* const s = p + row * kTileKeys;
    const Span span = Scores(tile, rows, row, count, s);
    for (int64_t r = 0; r < count; ++r) {
      const float shift = (max[row + r] == kNegInf ? 0.0f : max[row + r]) - tile.bias;
      const Weights weight{rows.scale * kLog2E, shift * kLog2E};
      for (int64_t v = 0; v < Vectors(tile.keys); ++v) {
        float* at = s + r * kTileKeys + v * kLanes;
        Store(at, v >= span.begin && v < span.end ? weight(at) : VecF{});
      }
    }
  });
}

}  // namespace

AttentionKernels Bf16Attention(const AttentionKernels& avx512bf16) {
  AttentionKernels kernels = avx512bf16;
  kernels.tile_rows = kQueryTileRows;
  kernels.packed = {PackQueries, Pack, Attend, Rescore};
  return kernels;
}

}  // namespace infllm::kernels::INFLLM_ISA
