// What the inner loops of attention have in common, whatever makes their products.
#pragma once

#include <cstdint>

#include "kernels/cpu/attention_simd.h"
#include "kernels/cpu/simd.h"

namespace infllm::kernels::INFLLM_ISA {

inline constexpr int kTileVectors = kTileKeys / kLanes;
inline constexpr float kNegInf = -__builtin_inff();

inline int64_t Vectors(int64_t n) { return (n + kLanes - 1) / kLanes; }

// A row that has seen no key has max -inf; e^(-inf - 0) is the zero that it needs.
inline VecF FiniteMax(VecF max) { return max == Set(kNegInf) ? VecF{} : max; }

inline void PackMasks(KeyTile& tile) {
  tile.masked = !tile.all_visible || tile.keys % kLanes != 0;
  if (!tile.masked) return;
  const int64_t vectors = Vectors(tile.keys);
  for (int64_t i = tile.keys; i < vectors * kLanes; ++i) {  // no one sees the padding
    tile.first_token[i] = INT32_MAX;
    tile.end_token[i] = 0;
  }
  for (int64_t v = 0; v < vectors; ++v) {
    int32_t some_first = INT32_MAX, some_end = 0, all_first = 0, all_end = INT32_MAX;
    for (int i = 0; i < kLanes; ++i) {
      const int32_t first = tile.first_token[v * kLanes + i];
      const int32_t end = tile.end_token[v * kLanes + i];
      some_first = first < some_first ? first : some_first;
      some_end = end > some_end ? end : some_end;
      all_first = first > all_first ? first : all_first;
      all_end = end < all_end ? end : all_end;
    }
    tile.some_first[v] = some_first;
    tile.some_end[v] = some_end;
    tile.all_first[v] = all_first;
    tile.all_end[v] = all_end;
  }
}

// Tokens of a block of rows: [lowest, highest].
struct TokenSpan {
  int32_t lowest;
  int32_t highest;
};
inline TokenSpan TokensOf(const int32_t* token, int64_t rows) {
  TokenSpan span{token[0], token[0]};
  for (int64_t r = 1; r < rows; ++r) {
    span.lowest = token[r] < span.lowest ? token[r] : span.lowest;
    span.highest = token[r] > span.highest ? token[r] : span.highest;
  }
  return span;
}

// The vectors of a tile that a block of rows sees at least a part of.
struct Span {
  int64_t begin;
  int64_t end;
};
inline Span SeenBy(const KeyTile& tile, TokenSpan tokens) {
  Span span{0, Vectors(tile.keys)};
  if (!tile.masked) return span;
  const auto unseen = [&](int64_t v) {
    return tile.some_first[v] > tokens.highest || tile.some_end[v] <= tokens.lowest;
  };
  while (span.begin < span.end && unseen(span.begin)) ++span.begin;
  while (span.end > span.begin && unseen(span.end - 1)) --span.end;
  return span;
}

// s[rows, kTileKeys]: scores of keys that a row does not see become -inf.
inline void MaskScores(const KeyTile& tile, const int32_t* token, int64_t rows, TokenSpan tokens,
                       Span span, float* s) {
  if (!tile.masked) return;
  for (int64_t v = span.begin; v < span.end; ++v) {
    if (tile.all_first[v] <= tokens.lowest && tile.all_end[v] > tokens.highest) continue;
    VecI first, end;
    std::memcpy(&first, tile.first_token + v * kLanes, sizeof(first));
    std::memcpy(&end, tile.end_token + v * kLanes, sizeof(end));
    for (int64_t r = 0; r < rows; ++r) {
      const VecI at = VecI{} + token[r];
      float* scores = s + r * kTileKeys + v * kLanes;
      Store(scores, (first <= at) & (end > at) ? Load(scores) : Set(kNegInf));
    }
  }
}

// p = e^(p - max) in place; returns the sum over lanes of each.
inline VecF Exponentials(float* p, float max, Span span) {
  const VecF shift = Set(max);
  VecF sum = {};
  for (int64_t v = span.begin; v < span.end; ++v) {
    const VecF e = Exp(Load(p + v * kLanes) - shift);
    Store(p + v * kLanes, e);
    sum += e;
  }
  return sum;
}

// Turns scores into e^(s + bias - max), and brings max and sum of the rows up to date. alpha[m] is
// what the sums so far have to be multiplied with.
template <int M>
inline void Softmax(const QueryRows& rows, int64_t row, float* p, Span span, float bias,
                    float* alpha) {
  constexpr int kPadded = (M + kLanes - 1) / kLanes * kLanes;
  float shift[kPadded] = {};  // first the best score, then what is taken from the scores
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
    VecF best = Set(kNegInf);
    for (int64_t v = span.begin; v < span.end; ++v) {
      best = Max(best, Load(p + m * kTileKeys + v * kLanes));
    }
    shift[m] = ReduceMax(best);
  }
  for (int i = 0; i < kPadded; i += kLanes) {
    const VecF old = Load(rows.max + row + i);
    const VecF updated = Max(old, Load(shift + i) + Set(bias));
    const VecF max = FiniteMax(updated);
    Store(alpha + i, Exp(old - max));
    Store(shift + i, max - Set(bias));
    const int here = M - i < kLanes ? M - i : kLanes;
    if (here > 0) StorePartial(rows.max + row + i, updated, here);
  }
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
    float* sum = rows.sum + (row + m) * kMaxLanes;
    Store(sum, Load(sum) * Set(alpha[m]) + Exponentials(p + m * kTileKeys, shift[m], span));
  }
}

}  // namespace infllm::kernels::INFLLM_ISA
