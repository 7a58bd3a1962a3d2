// Attention of a few rows: keys and values are read where they lie. All is fp32; a chunk of
// dimensions is a pair of vectors, of bf16 the even and the odd ones.
#include "kernels/cpu/attention_in_place_simd.h"

#include <cstdint>

#include "kernels/cpu/attention_tile_simd.h"
#include "kernels/cpu/simd.h"

namespace infllm::kernels::INFLLM_ISA {
namespace {

constexpr int64_t kChunk = 2 * kLanes;  // dimensions

template <bool kBf16>
inline Pair LoadChunk(const void* row, int64_t dim) {
  if constexpr (kBf16) {
    return LoadPair(static_cast<const uint16_t*>(row) + dim);
  } else {
    return LoadPair(static_cast<const float*>(row) + dim);
  }
}

// Between the order of dimensions in memory and that of LoadChunk.
template <bool kBf16>
inline Pair Split(const float* p) {
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
inline void StoreJoined(float* p, Pair pair) {
  VecF low = pair.first, high = pair.second;
  if constexpr (kBf16) {
    VecI first, second;
    for (int i = 0; i < kLanes; ++i) {
      first[i] = i / 2 + i % 2 * kLanes;
      second[i] = first[i] + kLanes / 2;
    }
    low = __builtin_shuffle(pair.first, pair.second, first);
    high = __builtin_shuffle(pair.first, pair.second, second);
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
        const Pair pair = source.bf16 ? Split<true>(q + d) : Split<false>(q + d);
        Store(packed, pair.first * Set(source.scale));
        Store(packed + kLanes, pair.second * Set(source.scale));
      }
    }
  }
}

// Calls body(key, stream) for every kStep-th of the keys [begin, end), so that kStreams parts of
// them are walked beside each other: a core reads several streams of memory faster than one.
constexpr int kStreams = 4;
template <int kStep, typename Body>
inline void ForKeys(int64_t begin, int64_t end, const Body& body) {
  constexpr int64_t kQuantum = kStreams * kStep;
  const int64_t part = (end - begin + kQuantum - 1) / kQuantum * kStep;
  for (int64_t at = begin; at < begin + part; at += kStep) {
#pragma GCC unroll 8
    for (int stream = 0; stream < kStreams; ++stream) {
      if (const int64_t key = at + stream * part; key < end) body(key, stream);
    }
  }
}

// s[m, 4] = q[m] . k of four keys.
template <bool kBf16, int M>
inline void ScoreFour(const void* const (&keys)[4], const float* q, int64_t head_dim, float* s) {
  VecF sums[M][4] = {};
  for (int64_t d = 0; d < head_dim; d += kChunk) {
    Pair key[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) key[i] = LoadChunk<kBf16>(keys[i], d);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const VecF first = Load(q + m * head_dim + d), second = Load(q + m * head_dim + d + kLanes);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        sums[m][i] += first * key[i].first;
        sums[m][i] += second * key[i].second;
      }
    }
  }
  for (int m = 0; m < M; ++m)
    StorePartial(s + m * kTileKeys, AddLanes(sums[m][0], sums[m][1], sums[m][2], sums[m][3]), 4);
}

// s[m, kTileKeys] = q[m] . k for the vectors of keys in `span`.
template <bool kBf16, int M>
void Scores(const KeyTile& tile, const float* q, Span span, float* s) {
  ForKeys<4>(span.begin * kLanes, span.end * kLanes, [&](int64_t key, int) {
    const void* keys[4];  // those past the last are masked
    for (int i = 0; i < 4; ++i) keys[i] = tile.k[key + i < tile.keys ? key + i : tile.keys - 1];
    constexpr int kFirst = M < 4 ? M : 4;
    ScoreFour<kBf16, kFirst>(keys, q, tile.head_dim, s + key);
    if constexpr (M > kFirst) {
      ScoreFour<kBf16, M - kFirst>(keys, q + kFirst * tile.head_dim, tile.head_dim,
                                   s + kFirst * kTileKeys + key);
    }
  });
}

// out[m] = alpha[m] out[m] + sum over keys of p[m, key] v[key], of C chunks of dimensions.
template <bool kBf16, int M, int C>
void AddValues(const KeyTile& tile, int64_t dim, const float* p, int64_t begin, int64_t end,
               const float* alpha, float* out, int64_t stride) {
  // Few sums would wait for each other: consecutive keys then go to different ones.
  constexpr int kChains = M * C == 1 ? 4 : M * C == 2 ? 2 : 1;
  Pair sums[kChains][M][C] = {};
  for (int m = 0; m < M; ++m) {
    for (int c = 0; c < C; ++c) {
      const Pair before = Split<kBf16>(out + m * stride + dim + c * kChunk);
      sums[0][m][c] = {before.first * Set(alpha[m]), before.second * Set(alpha[m])};
    }
  }
  ForKeys<1>(
      begin, end, [&](int64_t key, int stream) __attribute__((always_inline)) {
        Pair(&to)[M][C] = sums[stream % kChains];
#pragma GCC unroll 2
        for (int c = 0; c < C; ++c) {
          const Pair value = LoadChunk<kBf16>(tile.v[key], dim + c * kChunk);
#pragma GCC unroll 8
          for (int m = 0; m < M; ++m) {
            const VecF weight = Set(p[m * kTileKeys + key]);
            to[m][c].first += weight * value.first;
            to[m][c].second += weight * value.second;
          }
        }
      });
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
  Scores<kBf16, M>(tile, rows.q, span, p);
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
