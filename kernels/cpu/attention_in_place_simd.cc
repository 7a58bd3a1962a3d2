// Attention of a few rows: keys and values are read once, where they lie. All is fp32; halves of a
// chunk are two vectors of dimensions, of bf16 the even and the odd ones.
#include "kernels/cpu/attention_in_place_simd.h"

#include <cstdint>

#include "kernels/cpu/attention_tile_simd.h"
#include "kernels/cpu/simd.h"

namespace infllm::kernels::INFLLM_ISA {
namespace {

constexpr int64_t kChunk = 2 * kLanes;  // dimensions

struct Halves {
  VecF first;
  VecF second;
};

template <bool kBf16>
inline Halves LoadChunk(const void* row, int64_t dim) {
  if constexpr (kBf16) {
    VecU words;
    std::memcpy(&words, static_cast<const uint16_t*>(row) + dim, sizeof(words));
    return {(VecF)(words << 16), (VecF)(words & 0xffff0000u)};
  } else {
    const float* p = static_cast<const float*>(row) + dim;
    return {Load(p), Load(p + kLanes)};
  }
}

// Between the order of dimensions in memory and that of LoadChunk.
template <bool kBf16>
inline Halves Split(const float* p) {
  const VecF low = Load(p), high = Load(p + kLanes);
  if constexpr (!kBf16) return {low, high};
  VecI even, odd;
  for (int i = 0; i < kLanes; ++i) {
    even[i] = 2 * i;
    odd[i] = 2 * i + 1;
  }
  return {__builtin_shuffle(low, high, even), __builtin_shuffle(low, high, odd)};
}
template <bool kBf16>
inline void StoreJoined(float* p, Halves halves) {
  VecF low = halves.first, high = halves.second;
  if constexpr (kBf16) {
    VecI first, second;
    for (int i = 0; i < kLanes; ++i) {
      first[i] = i / 2 + i % 2 * kLanes;
      second[i] = first[i] + kLanes / 2;
    }
    low = __builtin_shuffle(halves.first, halves.second, first);
    high = __builtin_shuffle(halves.first, halves.second, second);
  }
  Store(p, low);
  Store(p + kLanes, high);
}

// [rows, head_dim], times the softmax scale, in the order of LoadChunk.
void PackQueries(const QuerySource& source, float* packed) {
  const int64_t head_dim = source.head_dim;
  for (int64_t head = 0; head < source.heads; ++head) {
    for (int64_t token = 0; token < source.tokens; ++token) {
      const float* q = source.q + token * source.token_stride + head * head_dim;
      for (int64_t d = 0; d < head_dim; d += kChunk, packed += kChunk) {
        const Halves halves = source.bf16 ? Split<true>(q + d) : Split<false>(q + d);
        Store(packed, halves.first * Set(source.scale));
        Store(packed + kLanes, halves.second * Set(source.scale));
      }
    }
  }
}

// Lane i is the sum of the lanes of v[i]. A level adds lanes whose numbers differ in one bit.
template <int kBit>
inline VecF AddLanes(const VecF* v) {
  VecF a, b;
  if constexpr (kBit == 1) {
    a = v[0];
    b = v[1];
  } else {
    a = AddLanes<kBit / 2>(v);
    b = AddLanes<kBit / 2>(v + kBit);
  }
  VecI without, with;
  for (int i = 0; i < kLanes; ++i) {
    const int from = (i & kBit) != 0 ? kLanes : 0;
    without[i] = from + (i & ~kBit);
    with[i] = from + (i | kBit);
  }
  return __builtin_shuffle(a, b, without) + __builtin_shuffle(a, b, with);
}

// sums[i] += q . keys[i] over C chunks of dimensions.
template <bool kBf16, int C>
inline void Multiply(const float* q, const void* const* keys, int64_t dim, VecF* sums) {
  Halves queries[C];
  for (int c = 0; c < C; ++c) {
    queries[c] = {Load(q + dim + c * kChunk), Load(q + dim + c * kChunk + kLanes)};
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
#pragma GCC unroll 2
    for (int c = 0; c < C; ++c) {
      const Halves key = LoadChunk<kBf16>(keys[i], dim + c * kChunk);
      sums[i] += queries[c].first * key.first;
      sums[i] += queries[c].second * key.second;
    }
  }
}

// s[row, kTileKeys] = q . k for the vectors of keys in `span`.
template <bool kBf16>
void Scores(const KeyTile& tile, const QueryRows& rows, Span span, float* s) {
  for (int64_t v = span.begin; v < span.end; ++v) {
    const void* keys[kLanes];  // those past the last are masked
    for (int64_t i = 0; i < kLanes; ++i) {
      const int64_t key = v * kLanes + i;
      keys[i] = tile.k[key < tile.keys ? key : tile.keys - 1];
    }
    for (int64_t r = 0; r < rows.rows; ++r) {
      const float* q = rows.q + r * tile.head_dim;
      VecF sums[kLanes] = {};
      int64_t d = 0;
      for (; d + 2 * kChunk <= tile.head_dim; d += 2 * kChunk) {
        Multiply<kBf16, 2>(q, keys, d, sums);
      }
      if (d < tile.head_dim) Multiply<kBf16, 1>(q, keys, d, sums);
      Store(s + r * kTileKeys + v * kLanes, AddLanes<kLanes / 2>(sums));
    }
  }
}

// out[m] = alpha[m] out[m] + sum over keys of p[m, key] v[key], of C chunks of dimensions.
template <bool kBf16, int M, int C>
void AddValues(const KeyTile& tile, int64_t dim, const float* p, int64_t begin, int64_t end,
               const float* alpha, float* out, int64_t stride) {
  // Few sums would wait for each other: consecutive keys then go to different ones.
  constexpr int kChains = M * C == 1 ? 4 : M * C == 2 ? 2 : 1;
  Halves sums[kChains][M][C] = {};
  for (int m = 0; m < M; ++m) {
    for (int c = 0; c < C; ++c) {
      const Halves before = Split<kBf16>(out + m * stride + dim + c * kChunk);
      sums[0][m][c] = {before.first * Set(alpha[m]), before.second * Set(alpha[m])};
    }
  }
  const auto add = [&](Halves(&to)[M][C], int64_t key) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int c = 0; c < C; ++c) {
      const Halves value = LoadChunk<kBf16>(tile.v[key], dim + c * kChunk);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const VecF weight = Set(p[m * kTileKeys + key]);
        to[m][c].first += weight * value.first;
        to[m][c].second += weight * value.second;
      }
    }
  };
  int64_t key = begin;
  for (; key + kChains <= end; key += kChains) {
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) add(sums[c], key + c);
  }
  for (; key < end; ++key) add(sums[0], key);
  for (int m = 0; m < M; ++m) {
    for (int c = 0; c < C; ++c) {
      for (int i = 1; i < kChains; ++i) {
        sums[0][m][c].first += sums[i][m][c].first;
        sums[0][m][c].second += sums[i][m][c].second;
      }
      StoreJoined<kBf16>(out + m * stride + dim + c * kChunk, sums[0][m][c]);
    }
  }
}

template <bool kBf16, int M>
void AttendRows(const KeyTile& tile, const QueryRows& rows, float* p) {
  const TokenSpan tokens = TokensOf(rows.token, M);
  const Span span = SeenBy(tile, tokens);
  if (span.begin == span.end) return;
  Scores<kBf16>(tile, rows, span, p);
  MaskScores(tile, rows.token, M, tokens, span, p);
  float alpha[kMaxLanes];
  Softmax<M>(rows, 0, p, span, tile.bias, alpha);
  const int64_t begin = span.begin * kLanes;
  const int64_t end = span.end * kLanes < tile.keys ? span.end * kLanes : tile.keys;
  const int64_t stride = PaddedDim(tile.head_dim);
  constexpr int kChunks = M <= 4 ? 2 : 1;  // the sums leave registers for a key's values
  int64_t d = 0;
  for (; d + kChunks * kChunk <= tile.head_dim; d += kChunks * kChunk) {
    AddValues<kBf16, M, kChunks>(tile, d, p, begin, end, alpha, rows.out, stride);
  }
  if (d < tile.head_dim) AddValues<kBf16, M, 1>(tile, d, p, begin, end, alpha, rows.out, stride);
}

template <bool kBf16>
void AttendFew(const KeyTile& tile, const QueryRows& rows, float* p) {
  static_assert(kInPlaceRows == 8);
  switch (rows.rows) {
    case 1:
      return AttendRows<kBf16, 1>(tile, rows, p);
    case 2:
      return AttendRows<kBf16, 2>(tile, rows, p);
    case 3:
      return AttendRows<kBf16, 3>(tile, rows, p);
    case 4:
      return AttendRows<kBf16, 4>(tile, rows, p);
    case 5:
      return AttendRows<kBf16, 5>(tile, rows, p);
    case 6:
      return AttendRows<kBf16, 6>(tile, rows, p);
    case 7:
      return AttendRows<kBf16, 7>(tile, rows, p);
    default:
      return AttendRows<kBf16, 8>(tile, rows, p);
  }
}

void Attend(const KeyTile& tile, const QueryRows& rows, float* p) {
  if (tile.bf16) {
    AttendFew<true>(tile, rows, p);
  } else {
    AttendFew<false>(tile, rows, p);
  }
}

}  // namespace

constinit const TileKernels kInPlaceKernels = {PackQueries, PackMasks, Attend, nullptr};

}  // namespace infllm::kernels::INFLLM_ISA
