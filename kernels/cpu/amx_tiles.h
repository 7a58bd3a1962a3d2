// The tile registers of AMX, for sources compiled with it. A tile has up to 16 rows of 16 words of
// 4 bytes: floats, or pairs of bf16.
#pragma once

#include <cstdint>

#include "kernels/cpu/simd.h"

namespace infllm::kernels::INFLLM_ISA {

inline constexpr int kTileRows = 16;   // the hardware's
inline constexpr int kTileWords = 16;  // of a row
inline constexpr int64_t kTileRowBytes = kTileWords * sizeof(float);

// In assembly since the intrinsics of GCC 12 neither say that a load reads memory nor take a
// template's tile number.
template <int kTile>
inline void LoadTile(const void* p, int64_t row_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(row_bytes), "i"(kTile) : "memory");
}
template <int kTile>
inline void StoreTile(void* p, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(row_bytes), "i"(kTile) : "memory");
}
template <int kTile>
inline void ZeroTile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
// sum[m, n] += over words w of rows[m, w] . columns[w, n], a word being a pair of bf16.
template <int kSum, int kRows, int kColumns>
inline void Dot() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kRows), "i"(kColumns));
}

// The tile configuration of this thread while it lives. Given back at the end of each task, so
// that a thread carries no tile state while it does other things.
class TileConfiguration {
 public:
  // Tiles before `first_whole` have `height` rows, the others all of them.
  TileConfiguration(int64_t height, int first_whole) {
    struct alignas(64) {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int tile = 0; tile < 8; ++tile) {
      config.row_bytes[tile] = kTileRowBytes;
      config.rows[tile] = static_cast<uint8_t>(tile < first_whole ? height : kTileRows);
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~TileConfiguration() { asm volatile("tilerelease"); }
  TileConfiguration(const TileConfiguration&) = delete;
  TileConfiguration& operator=(const TileConfiguration&) = delete;
};

}  // namespace infllm::kernels::INFLLM_ISA
