#include "kernels/cpu/gemm_simd.h"

#include "kernels/cpu/simd.h"

namespace infllm::kernels::INFLLM_ISA {
namespace {

// A tile of accumulators is kTileRows x 2 vectors: 24 of 32 registers with AVX-512, else 12 of 16.
constexpr int kPanelVectors = 2;
constexpr int kPanelWidth = kPanelVectors * kLanes;
constexpr int kTileRows = kLanes == 16 ? 12 : 6;
constexpr int kAccumulators = kTileRows * kPanelVectors;
// Words of k per pass when several tiles meet a panel: what a tile and a panel hold of them stays
// in the first two cache levels.
constexpr int64_t kPassWords = 256;

// Low tiles take several panels at once: enough independent chains to hide the latency of a
// multiply-add, and more than one stream of weights from memory.
constexpr int PanelsAtOnce(int height) {
  return height * kPanelVectors * 4 <= kAccumulators   ? 4
         : height * kPanelVectors * 2 <= kAccumulators ? 2
                                                       : 1;
}

inline VecF BroadcastWord(const float* p) {
  int32_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return (VecF)(VecI{} + bits);
}

struct F32 {
  static constexpr int kValuesPerWord = 1;
  static VecF MultiplyAdd(VecF acc, VecF x, VecF w) { return acc + x * w; }
  static VecF LoadWords(const float* p) { return Load(p); }
  // With `left` values readable; the others are zero.
  static VecF LoadPartialWords(const float* p, int64_t left) {
    return LoadPartial(p, static_cast<int>(left < kLanes ? left : kLanes));
  }
};

#if defined(__AVX512BF16__)
struct Bf16 {
  static constexpr int kValuesPerWord = 2;
  static VecF MultiplyAdd(VecF acc, VecF x, VecF w) {
    return (VecF)_mm512_dpbf16_ps((__m512)acc, (__m512bh)x, (__m512bh)w);
  }
  static VecF Join(VecF low, VecF high) {
    return (VecF)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  }
  static VecF LoadWords(const float* p) { return Join(Load(p), Load(p + kLanes)); }
  static VecF LoadPartialWords(const float* p, int64_t left) {
    const VecF low = F32::LoadPartialWords(p, left);
    return Join(low, left > kLanes ? F32::LoadPartialWords(p + kLanes, left - kLanes) : VecF{});
  }
};
#endif

// One block of kLanes words of up to kLanes rows, `lanes` of them wanted: dst[i * height + lane].
template <typename Format, bool kWhole>
inline void PackBlock(const float* src, int64_t stride, int64_t left, int lanes, int64_t height,
                      float* dst) {
  VecF v[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    // Beyond the last row: that row again, since what is read there is not wanted.
    const float* row = src + (i < lanes ? i : lanes - 1) * stride;
    v[i] = kWhole ? Format::LoadWords(row) : Format::LoadPartialWords(row, left);
  }
  Transpose(v);
  const int64_t words = (left + Format::kValuesPerWord - 1) / Format::kValuesPerWord;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (!kWhole && i >= words) break;
    // A whole vector also where its surplus falls on words of this block that are written later.
    const bool surplus_is_overwritten = lanes == height && (kLanes - i) * height >= kLanes;
    if (lanes == kLanes || (kWhole && surplus_is_overwritten)) {
      Store(dst + i * height, v[i]);
    } else {
      StorePartial(dst + i * height, v[i], lanes);
    }
  }
}

template <typename Format>
void Pack(const float* src, int64_t stride, int64_t height, int64_t k, float* dst) {
  constexpr int64_t kBlock = kLanes * Format::kValuesPerWord;
  for (int64_t done = 0; done < k; done += kBlock, dst += kLanes * height) {
    const int64_t left = k - done;
    if (height == 1) {
      const int64_t words = (left + Format::kValuesPerWord - 1) / Format::kValuesPerWord;
      StorePartial(dst, Format::LoadPartialWords(src + done, left),
                   static_cast<int>(words < kLanes ? words : kLanes));
      continue;
    }
    for (int64_t top = 0; top < height; top += kLanes) {
      const float* from = src + top * stride + done;
      const int lanes = static_cast<int>(height - top < kLanes ? height - top : kLanes);
      if (left >= kBlock) {
        PackBlock<Format, true>(from, stride, left, lanes, height, dst + top);
      } else {
        PackBlock<Format, false>(from, stride, left, lanes, height, dst + top);
      }
    }
  }
}

struct TileArgs {
  const float* x;        // [words, height], at the first word of the pass
  const float* weights;  // panels, at the first word of the pass
  int64_t panel_stride;  // floats from one panel to the next
  int64_t words;         // of the pass
  const float* bias;     // at the first column, or null
  bool load_y;           // start from y: a later pass, or accumulation
  float* y;              // at the first row and column
  int64_t out_features;  // row stride of y
  int64_t columns;       // valid from the first column on
};

template <typename Format, int kHeight, int kPanels>
void MultiplyTile(const TileArgs& args) {
  constexpr int kVectors = kPanels * kPanelVectors;
  VecF acc[kHeight][kVectors];
  const bool whole = args.columns >= kVectors * kLanes;
  const auto lanes = [&](int v) {
    const int64_t left = args.columns - v * kLanes;
    return static_cast<int>(left <= 0 ? 0 : left < kLanes ? left : kLanes);
  };
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    VecF bias = {};
    if (args.bias != nullptr) {
      bias = whole ? Load(args.bias + v * kLanes) : LoadPartial(args.bias + v * kLanes, lanes(v));
    }
#pragma GCC unroll 16
    for (int r = 0; r < kHeight; ++r) acc[r][v] = bias;
  }
  if (args.load_y) {
#pragma GCC unroll 16
    for (int r = 0; r < kHeight; ++r) {
      const float* y = args.y + r * args.out_features;
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        acc[r][v] += whole ? Load(y + v * kLanes) : LoadPartial(y + v * kLanes, lanes(v));
      }
    }
  }

  const float* x = args.x;
  const float* w[kPanels];
#pragma GCC unroll 16
  for (int p = 0; p < kPanels; ++p) w[p] = args.weights + p * args.panel_stride;
  for (int64_t i = 0; i < args.words; ++i) {
    VecF row[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      row[v] = Load(w[v / kPanelVectors] + i * kPanelWidth + v % kPanelVectors * kLanes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kHeight; ++r) {
      const VecF value = BroadcastWord(x + i * kHeight + r);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        acc[r][v] = Format::MultiplyAdd(acc[r][v], value, row[v]);
      }
    }
  }

#pragma GCC unroll 16
  for (int r = 0; r < kHeight; ++r) {
    float* y = args.y + r * args.out_features;
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      if (whole) {
        Store(y + v * kLanes, acc[r][v]);
      } else {
        StorePartial(y + v * kLanes, acc[r][v], lanes(v));
      }
    }
  }
}

// Calls MultiplyTile for a height known at run time.
template <typename Format, int kHeight = 1>
inline void MultiplyTiles(int64_t height, int64_t panels, TileArgs args) {
  if constexpr (kHeight < kTileRows) {
    if (height != kHeight) return MultiplyTiles<Format, kHeight + 1>(height, panels, args);
  }
  const auto step = [&](int64_t by) {
    panels -= by;
    args.weights += by * args.panel_stride;
    args.y += by * kPanelWidth;
    args.columns -= by * kPanelWidth;
    if (args.bias != nullptr) args.bias += by * kPanelWidth;
  };
  constexpr int kAtOnce = PanelsAtOnce(kHeight);
  for (; panels >= kAtOnce; step(kAtOnce)) MultiplyTile<Format, kHeight, kAtOnce>(args);
  if constexpr (kAtOnce > 1) {
    for (; panels > 0; step(1)) MultiplyTile<Format, kHeight, 1>(args);
  }
}

template <typename Format>
void Multiply(const GemmTask& task) {
  const int64_t tiles = TileCount(task.rows, kTileRows);
  const int64_t pass_words = task.end_tile - task.first_tile > 1 ? kPassWords : task.words;
  constexpr int64_t kMaxPanels = PanelsAtOnce(1);
  for (int64_t word = 0; word < task.words; word += pass_words) {
    const int64_t words = task.words - word < pass_words ? task.words - word : pass_words;
    for (int64_t panel = task.first_panel; panel < task.end_panel; panel += kMaxPanels) {
      const int64_t left = task.end_panel - panel;
      const int64_t column = panel * kPanelWidth;
      for (int64_t tile = task.first_tile; tile < task.end_tile; ++tile) {
        const int64_t row = TileStart(task.rows, tiles, tile);
        const int64_t height = TileStart(task.rows, tiles, tile + 1) - row;
        TileArgs args;
        args.x = task.x + row * task.words + word * height;
        args.weights = task.weights + (panel * task.words + word) * kPanelWidth;
        args.panel_stride = task.words * kPanelWidth;
        args.words = words;
        args.bias = word == 0 && task.bias != nullptr ? task.bias + column : nullptr;
        args.load_y = word > 0 || task.accumulate;
        args.y = task.y + row * task.out_features + column;
        args.out_features = task.out_features;
        args.columns = task.out_features - column;
        MultiplyTiles<Format>(height, left < kMaxPanels ? left : kMaxPanels, args);
      }
    }
  }
}

// IEEE half bits to float, exact: the exponent is moved by a multiplication, which also
// normalises subnormals; infinity and NaN get the largest exponent back.
inline VecF HalfBitsToFloat(VecU h) {
  const VecU magnitude = (h & 0x7fffu) << 13;
  const VecF scaled = (VecF)magnitude * Set(0x1p112f);
  const VecU special = (VecU)(magnitude >= (0x1fu << 23)) & 0x7f800000u;
  return (VecF)((VecU)scaled | special | ((h & 0x8000u) << 16));
}

void ToFloat(const void* src, DType dtype, int64_t n, bool round_to_bf16, float* dst) {
  const char* bytes = static_cast<const char*>(src);
  const int64_t size = dtype == DType::kF32 ? 4 : 2;
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t here = n - i < kLanes ? n - i : kLanes;
    VecF v = {};
    if (dtype == DType::kF32) {
      std::memcpy(&v, bytes + i * size, static_cast<size_t>(here * size));
    } else {
      VecH h = {};
      std::memcpy(&h, bytes + i * size, static_cast<size_t>(here * size));
      const VecU wide = __builtin_convertvector(h, VecU);
      v = dtype == DType::kBF16 ? (VecF)(wide << 16) : HalfBitsToFloat(wide);
    }
    if (round_to_bf16) v = (VecF)(__builtin_convertvector(ToBf16(v), VecU) << 16);
    StorePartial(dst + i, v, static_cast<int>(here));
  }
}

template <typename Format>
constexpr GemmFormat FormatOf() {
  return {.values_per_word = Format::kValuesPerWord,
          .word_multiple = 1,
          .max_tile_rows = kTileRows,
          .tiles_per_block = 20,
          .multiply_adds_per_ns = 50,
          .pack_weights = Pack<Format>,
          .pack_rows = Pack<Format>,
          .multiply = Multiply<Format>};
}

}  // namespace

const GemmKernels kGemmKernels = {kPanelWidth, FormatOf<F32>(),
#if defined(__AVX512BF16__)
                                  FormatOf<Bf16>(),
#else
                                  GemmFormat{},
#endif
                                  ToFloat};

}  // namespace infllm::kernels::INFLLM_ISA
