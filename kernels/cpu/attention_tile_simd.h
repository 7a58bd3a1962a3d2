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

// Fetches keys [first, first + count) of the tile that comes next into the second cache level:
// pages are too short for the hardware to follow.
inline void FetchNext(const KeyTile& tile, int64_t first, int64_t count, int64_t row_bytes) {
  if (tile.next == nullptr) return;
  const int64_t end = first + count < tile.next->keys ? first + count : tile.next->keys;
  for (int64_t key = first; key < end; ++key) {
    for (int64_t at = 0; at < row_bytes; at += 64) {
      __builtin_prefetch(static_cast<const char*>(tile.next->k[key]) + at, 0, 2);
      __builtin_prefetch(static_cast<const char*>(tile.next->v[key]) + at, 0, 2);
    }
  }
}

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

}  // namespace infllm::kernels::INFLLM_ISA
