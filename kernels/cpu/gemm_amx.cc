// Products of bf16 with the tile registers of AMX: see gemm_simd.h for what they compute.
//
// Weights are the panels of the other instruction sets: 16 words of k of half a panel are a tile,
// read with the panel's stride. Packed activations are tiles too, [words / 16, height, 16]. Of
// each y[r, o], TDPBF16PS adds one tile's 16 products of even k and 16 of odd k, each in ascending
// order, then their sum to y: the same for every row, with any number of rows. Subnormals are
// flushed to zero.
#include <cstdint>

#include "kernels/cpu/amx_tiles.h"
#include "kernels/cpu/gemm_simd.h"
#include "kernels/cpu/simd.h"

namespace infllm::kernels::INFLLM_ISA {
namespace {

constexpr int kPanelWidth = 2 * kLanes;
constexpr int64_t kPanelRowBytes = kPanelWidth * sizeof(float);
// Words of k per pass: those of the tiles of a block and of the panels in use and being fetched
// stay in the second cache level.
constexpr int64_t kPassWords = 512;
// Weights are fetched from so many places at once: a core reads several streams of memory faster
// than one.
constexpr int kFetchPlaces = 8;

// Tile registers: 0 to 3 are sums, 4 and 5 activations, 6 and 7 weights.
constexpr int kX = 4, kW = 6;

// [words / 16, height, 16]
void PackRows(const float* src, int64_t stride, int64_t height, int64_t k, float* dst) {
  constexpr int64_t kStep = 2 * kTileWords;
  for (int64_t done = 0; done < k; done += kStep) {
    const int64_t left = k - done;
    const int low = static_cast<int>(left < kLanes ? left : kLanes);
    const int high = static_cast<int>(left < kStep ? left - low : kLanes);
    for (int64_t row = 0; row < height; ++row, dst += kTileWords) {
      const float* from = src + row * stride + done;
      const __m512 first = (__m512)LoadPartial(from, low);
      const __m512 second = high > 0 ? (__m512)LoadPartial(from + low, high) : (__m512)VecF{};
      Store(dst, (VecF)_mm512_cvtne2ps_pbh(second, first));
    }
  }
}

struct BlockArgs {
  const float* x[2];     // packed tiles, at the first word of the pass
  int64_t height[2];     // rows of each; at most tile_height
  int64_t tile_height;   // of the configuration
  const float* weights;  // panels, at the first word of the pass
  int64_t panel_stride;  // floats from one panel to the next
  int64_t steps;         // of 16 words, in this pass
  const float* bias;     // at the first column, or null
  bool load_y;           // start from y: a later pass, or accumulation
  float* y;              // at the first row and column
  int64_t out_features;  // row stride of y
  int64_t columns;       // valid from the first column on
  const float* fetch;    // panels wanted next, from several places at once
  int64_t fetch_stride;  // floats from one place of a panel to the next
  int64_t fetch_lines;   // of each place, per step
};

// A tile of sums in y: row tile `r`, column tile `c`.
struct SumTile {
  SumTile(const BlockArgs& args, int r, int c)
      : y(args.y + (r == 0 ? 0 : args.height[0]) * args.out_features + c * kLanes),
        bias(args.bias == nullptr ? nullptr : args.bias + c * kLanes),
        row_floats(args.out_features),
        height(args.height[r]) {
    const int64_t left = args.columns - c * kLanes;
    columns = static_cast<int>(left <= 0 ? 0 : left < kLanes ? left : kLanes);
    whole = columns == kLanes && height == args.tile_height;
  }
  float* y;
  const float* bias;
  int64_t row_floats;
  int64_t height;
  int columns;
  bool whole;  // what the register holds is all in y
};

template <int kSum>
void LoadSum(const SumTile& sum, bool load_y) {
  if (!load_y && sum.bias == nullptr) return ZeroTile<kSum>();
  if (sum.whole && sum.bias == nullptr) {
    return LoadTile<kSum>(sum.y, sum.row_floats * static_cast<int64_t>(sizeof(float)));
  }
  alignas(64) float rows[kTileRows * kLanes] = {};
  for (int64_t r = 0; r < sum.height; ++r) {
    VecF value = {};
    if (load_y) value = LoadPartial(sum.y + r * sum.row_floats, sum.columns);
    if (sum.bias != nullptr) {
      const VecF bias = LoadPartial(sum.bias, sum.columns);
      value = load_y ? value + bias : bias;
    }
    Store(rows + r * kLanes, value);
  }
  LoadTile<kSum>(rows, kTileRowBytes);
}

template <int kSum>
void StoreSum(const SumTile& sum) {
  if (sum.whole) {
    return StoreTile<kSum>(sum.y, sum.row_floats * static_cast<int64_t>(sizeof(float)));
  }
  alignas(64) float rows[kTileRows * kLanes];
  StoreTile<kSum>(rows, kTileRowBytes);
  for (int64_t r = 0; r < sum.height; ++r) {
    StorePartial(sum.y + r * sum.row_floats, Load(rows + r * kLanes), sum.columns);
  }
}

// kRowTiles x 2 kPanels tiles of sums, at most 4.
template <int kRowTiles, int kPanels>
void MultiplyBlock(const BlockArgs& args) {
  constexpr int kSums = kRowTiles * kPanels * 2;
  const auto tile = [&](int i) {
    return SumTile(args, kRowTiles == 2 ? i / 2 : 0, kRowTiles == 2 ? i % 2 : i);
  };
  LoadSum<0>(tile(0), args.load_y);
  LoadSum<1>(tile(1), args.load_y);
  if constexpr (kSums == 4) {
    LoadSum<2>(tile(2), args.load_y);
    LoadSum<3>(tile(3), args.load_y);
  }

  const float* x0 = args.x[0];
  const float* x1 = args.x[1];
  const float* w = args.weights;
  const char* fetch = reinterpret_cast<const char*>(args.fetch);
  const int64_t x0_step = args.height[0] * kTileWords, x1_step = args.height[1] * kTileWords;
  const int64_t panel_stride = args.panel_stride, lines = args.fetch_lines;
  const int64_t fetch_stride = args.fetch_stride * static_cast<int64_t>(sizeof(float));
  const int64_t panel_bytes = panel_stride * static_cast<int64_t>(sizeof(float));
  for (int64_t step = args.steps; step > 0; --step) {
    for (int f = 0; f < kFetchPlaces; ++f) {
      const char* const from = fetch + f % kPanels * panel_bytes + f / kPanels * fetch_stride;
      for (int64_t i = 0; i < lines; ++i) _mm_prefetch(from + i * 64, _MM_HINT_T0);
    }
    fetch += lines * 64;
    LoadTile<kX>(x0, kTileRowBytes);
    LoadTile<kW>(w, kPanelRowBytes);
    Dot<0, kX, kW>();
    LoadTile<kW + 1>(w + kLanes, kPanelRowBytes);
    Dot<1, kX, kW + 1>();
    if constexpr (kRowTiles == 2) {
      LoadTile<kX + 1>(x1, kTileRowBytes);
      Dot<2, kX + 1, kW>();
      Dot<3, kX + 1, kW + 1>();
      x1 += x1_step;
    } else if constexpr (kPanels == 2) {
      LoadTile<kW>(w + panel_stride, kPanelRowBytes);
      Dot<2, kX, kW>();
      LoadTile<kW + 1>(w + panel_stride + kLanes, kPanelRowBytes);
      Dot<3, kX, kW + 1>();
    }
    x0 += x0_step;
    w += kTileWords * kPanelWidth;
  }

  StoreSum<0>(tile(0));
  StoreSum<1>(tile(1));
  if constexpr (kSums == 4) {
    StoreSum<2>(tile(2));
    StoreSum<3>(tile(3));
  }
}

// kPanels panels from `panel` on for one row, with vectors, which read weights faster than tiles
// do: bit for bit what TDPBF16PS computes (Intel's instruction reference).
constexpr unsigned kFlushSubnormals = 0x8040;  // of the control register: results and operands

template <int kPanels>
void MultiplyRow(const GemmTask& task, int64_t panel) {
  constexpr int kVectors = 2 * kPanels;
  const int64_t column = panel * kPanelWidth;
  const auto lanes = [&](int v) {
    const int64_t left = task.out_features - column - v * kLanes;
    return static_cast<int>(left < 0 ? 0 : left < kLanes ? left : kLanes);
  };
  float* const y = task.y + column;
  VecF sums[kVectors] = {};
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    if (task.accumulate) sums[v] = LoadPartial(y + v * kLanes, lanes(v));
    if (task.bias == nullptr) continue;
    const VecF bias = LoadPartial(task.bias + column + v * kLanes, lanes(v));
    sums[v] = task.accumulate ? sums[v] + bias : bias;
  }
  const int64_t panel_floats = task.words * kPanelWidth;
  const float* w = task.weights + panel * panel_floats;
  const unsigned control = _mm_getcsr();
  _mm_setcsr(control | kFlushSubnormals);
  for (int64_t word = 0; word < task.words; word += kTileWords) {
    VecF even[kVectors] = {}, odd[kVectors] = {};
    for (int64_t i = word; i < word + kTileWords; ++i, w += kPanelWidth) {
      uint32_t pair;  // never a float: it may look like a subnormal one
      std::memcpy(&pair, task.x + i, sizeof(pair));
      const VecU x = VecU{} + pair;
      const VecF x_even = (VecF)(x << 16), x_odd = (VecF)(x & 0xffff0000u);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const VecU words = (VecU)Load(w + v / 2 * panel_floats + v % 2 * kLanes);
        even[v] += x_even * (VecF)(words << 16);
        odd[v] += x_odd * (VecF)(words & 0xffff0000u);
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[v] += even[v] + odd[v];
  }
  _mm_setcsr(control);
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) StorePartial(y + v * kLanes, sums[v], lanes(v));
}

void MultiplyRow(const GemmTask& task) {
  int64_t panel = task.first_panel;
  for (; panel + 4 <= task.end_panel; panel += 4) MultiplyRow<4>(task, panel);
  for (; panel < task.end_panel; ++panel) MultiplyRow<1>(task, panel);
}

void Multiply(const GemmTask& task) {
  if (task.rows == 1) return MultiplyRow(task);
  const int64_t tiles = TileCount(task.rows, kTileRows);
  const int64_t tile_height = (task.rows + tiles - 1) / tiles;  // some have a row less
  const TileConfiguration configuration(tile_height, kW);
  const int64_t pairs = (task.end_tile - task.first_tile + 1) / 2;
  const int64_t panels_at_once = task.end_tile - task.first_tile == 1 ? 2 : 1;
  for (int64_t word = 0; word < task.words; word += kPassWords) {
    const int64_t words = task.words - word < kPassWords ? task.words - word : kPassWords;
    const int64_t next_words = word + words;
    BlockArgs args;
    args.tile_height = tile_height;
    args.panel_stride = task.words * kPanelWidth;
    args.steps = words / kTileWords;
    args.load_y = word > 0 || task.accumulate;
    args.out_features = task.out_features;
    for (int64_t panel = task.first_panel; panel < task.end_panel; panel += panels_at_once) {
      const int64_t column = panel * kPanelWidth;
      args.weights = task.weights + (panel * task.words + word) * kPanelWidth;
      args.bias = word == 0 && task.bias != nullptr ? task.bias + column : nullptr;
      args.columns = task.out_features - column;
      // The panels that come next are fetched meanwhile, each pair of tiles a part of them.
      const bool last = panel + panels_at_once >= task.end_panel;
      args.fetch = last ? task.weights + (task.first_panel * task.words + next_words) * kPanelWidth
                        : args.weights + panels_at_once * args.panel_stride;
      const int64_t places = kFetchPlaces / panels_at_once;  // in a panel
      constexpr int64_t kStepLines = kTileWords * kPanelRowBytes / 64;
      args.fetch_lines = last && next_words == task.words
                             ? 0
                             : (kStepLines + places * pairs - 1) / (places * pairs);
      args.fetch_stride = words / places * kPanelWidth;
      int64_t fetched = 0;  // lines of each place, by the step
      for (int64_t tile = task.first_tile; tile < task.end_tile; tile += 2) {
        const int64_t row = TileStart(task.rows, tiles, tile);
        const bool two_tiles = tile + 1 < task.end_tile;
        const int64_t middle = TileStart(task.rows, tiles, tile + 1);
        const int64_t end = two_tiles ? TileStart(task.rows, tiles, tile + 2) : middle;
        args.height[0] = middle - row;
        args.height[1] = end - middle;
        args.x[0] = task.x + row * task.words + word * args.height[0];
        args.x[1] = task.x + middle * task.words + word * args.height[1];
        args.y = task.y + row * task.out_features + column;
        if (two_tiles) {
          MultiplyBlock<2, 1>(args);
        } else if (panels_at_once == 2 && panel + 1 < task.end_panel) {
          MultiplyBlock<1, 2>(args);
        } else {
          MultiplyBlock<1, 1>(args);
        }
        args.fetch += args.steps * args.fetch_lines * (64 / sizeof(float));
        fetched += args.fetch_lines;
        if (fetched >= kStepLines / places) args.fetch_lines = 0;
      }
    }
  }
}

}  // namespace

GemmFormat Bf16Format(const GemmFormat& simd) {
  GemmFormat format = simd;
  format.word_multiple = kTileWords;
  format.max_tile_rows = kTileRows;
  format.tiles_per_block = 32;
  format.multiply_adds_per_ns = 500;
  format.pack_rows = PackRows;
  format.multiply = Multiply;
  return format;
}

}  // namespace infllm::kernels::INFLLM_ISA
