#include "kernels/cpu/cpu_linear.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/core/status_macros.h"
#include "kernels/cpu/gemm_simd.h"
#include "kernels/host_memory.h"

namespace infllm::kernels {
namespace {

// Floats past the last packed row that a multiply may read, without using them.
constexpr int64_t kTileOverrun = 16;

#ifdef INFLLM_X86
const GemmKernels& AmxKernels() {
  static const GemmKernels kernels = [] {
    GemmKernels k = avx512bf16::kGemmKernels;
    k.bf16 = amx::Bf16Format(k.bf16);
    return k;
  }();
  return kernels;
}
#endif

const GemmKernels& KernelsFor(Isa isa) {
  switch (isa) {
#ifdef INFLLM_X86
    case Isa::kAvx2:
      return avx2::kGemmKernels;
    case Isa::kAvx512:
      return avx512::kGemmKernels;
    case Isa::kAvx512Bf16:
      return avx512bf16::kGemmKernels;
    case Isa::kAmx:
      return AmxKernels();
#endif
    default:
      return generic::kGemmKernels;
  }
}

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Of a packed row of `values`, padding included.
int64_t Words(const GemmFormat& format, int64_t values) {
  return CeilDiv(CeilDiv(values, format.values_per_word), format.word_multiple) *
         format.word_multiple;
}

// Packs one panel of the stacked sources, `first_row` being its first output feature.
void PackPanel(const GemmKernels& kernels, const GemmFormat& format,
               std::span<const WeightSource> sources, int64_t in_features, bool round,
               int64_t first_row, float* panel) {
  constexpr int64_t kPiece = 512;  // columns: the converted piece stays in the first cache level
  std::vector<float> piece(kernels.panel_width * kPiece);  // rows past the last stay zero
  for (int64_t k = 0; k < in_features; k += kPiece) {
    const int64_t columns = std::min(kPiece, in_features - k);
    int64_t filled = 0, source_first = 0;
    for (const WeightSource& source : sources) {
      const auto* host = static_cast<const std::byte*>(source.host);
      while (filled < kernels.panel_width &&
             first_row + filled < source_first + source.out_features) {
        const int64_t row = first_row + filled - source_first;
        const int64_t offset = (row * in_features + k) * static_cast<int64_t>(SizeOf(source.dtype));
        kernels.to_float(host + offset, source.dtype, columns, round,
                         piece.data() + filled * kPiece);
        ++filled;
      }
      source_first += source.out_features;
    }
    format.pack_weights(piece.data(), kPiece, kernels.panel_width, columns,
                        panel + k / format.values_per_word * kernels.panel_width);
  }
  const int64_t filled_words = CeilDiv(in_features, format.values_per_word);
  std::fill(panel + filled_words * kernels.panel_width,
            panel + Words(format, in_features) * kernels.panel_width, 0.0f);
}

// A rough time of the product on one thread. Below about the price of waking a thread it runs on
// the caller's: what it would wait for is not worth it.
bool IsSmall(const GemmFormat& format, int64_t rows, int64_t words, int64_t out_features) {
  constexpr int64_t kWordsPerNs = 5;  // weights streamed, 20 GB/s
  constexpr int64_t kSmallNs = 8000;
  const int64_t weights = words * out_features;
  return weights / kWordsPerNs + weights * rows / format.multiply_adds_per_ns < kSmallNs;
}

}  // namespace

CpuLinear::CpuLinear(ThreadPool& pool, Isa isa)
    : pool_(pool), isa_(isa), kernels_(KernelsFor(isa)) {}

bool CpuLinear::has_bf16() const { return kernels_.bf16.multiply != nullptr; }

uint64_t CpuLinear::LayoutOf(const GemmFormat& format) const {
  constexpr uint64_t kMark = 0x637075;  // "cpu"
  return kMark << 16 | static_cast<uint64_t>(isa_) << 8 | (&format == &kernels_.bf16 ? 1 : 0);
}

absl::StatusOr<Weight> CpuLinear::Pack(std::span<const WeightSource> sources, int64_t in_features,
                                       DType compute) {
  const GemmFormat& format = compute == DType::kBF16 && has_bf16() ? kernels_.bf16 : kernels_.f32;
  const bool round = compute == DType::kBF16;
  int64_t out_features = 0;
  for (const WeightSource& source : sources) out_features += source.out_features;
  const int64_t panels = CeilDiv(out_features, kernels_.panel_width);
  const int64_t panel_floats = Words(format, in_features) * kernels_.panel_width;
  INFLLM_ASSIGN_OR_RETURN(Buffer data, AllocateHost(panels * panel_floats * sizeof(float)));
  float* const packed = data.as<float>();
  pool_.ParallelFor(panels, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t panel = begin; panel < end; ++panel) {
      PackPanel(kernels_, format, sources, in_features, round, panel * kernels_.panel_width,
                packed + panel * panel_floats);
    }
  });
  const PackedWeight weight = {packed, out_features, in_features, LayoutOf(format)};
  return Weight{std::move(data), weight};
}

absl::StatusOr<float*> CpuLinear::Scratch(int64_t floats) {
  const size_t bytes = static_cast<size_t>(floats) * sizeof(float);
  if (packed_x_.size_bytes() < bytes) {
    packed_x_ = Buffer();
    INFLLM_ASSIGN_OR_RETURN(packed_x_, AllocateHost(bytes));
  }
  return packed_x_.as<float>();
}

absl::Status CpuLinear::Multiply(const LinearArgs& args) {
  const PackedWeight& weight = args.weight;
  const bool is_bf16 = has_bf16() && weight.layout == LayoutOf(kernels_.bf16);
  if (!is_bf16 && weight.layout != LayoutOf(kernels_.f32)) {
    return absl::InvalidArgumentError(
        "Linear: weight was packed by another backend or for another instruction set");
  }
  if (args.rows == 0) return absl::OkStatus();
  const GemmFormat& format = is_bf16 ? kernels_.bf16 : kernels_.f32;
  const auto* x = static_cast<const float*>(args.x);
  const int64_t in = weight.in_features, words = Words(format, in);
  const int64_t tiles = TileCount(args.rows, format.max_tile_rows);
  const int64_t panels = CeilDiv(weight.out_features, kernels_.panel_width);
  const bool small = IsSmall(format, args.rows, words, weight.out_features);

  GemmTask whole;
  whole.weights = static_cast<const float*>(weight.data);
  whole.bias = args.bias;
  whole.y = static_cast<float*>(args.y);
  whole.rows = args.rows;
  whole.words = words;
  whole.out_features = weight.out_features;
  whole.accumulate = args.accumulate;
  whole.first_tile = 0;
  whole.end_tile = tiles;
  whole.first_panel = 0;
  whole.end_panel = panels;

  std::lock_guard lock(mutex_);
  if (args.rows == 1 && format.values_per_word == 1) {
    whole.x = x;  // is its own packed tile
  } else {
    INFLLM_ASSIGN_OR_RETURN(float* const packed, Scratch(args.rows * words + kTileOverrun));
    const auto pack = [&](int64_t begin, int64_t end, int) {
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t row = TileStart(args.rows, tiles, tile);
        const int64_t height = TileStart(args.rows, tiles, tile + 1) - row;
        format.pack_rows(x + row * in, in, height, in, packed + row * words);
      }
    };
    // About 10 us of packing per chunk.
    const int64_t grain = std::max<int64_t>(1, 32768 / (format.max_tile_rows * in));
    if (small) {
      pack(0, tiles, 0);
    } else {
      pool_.ParallelFor(tiles, grain, pack);
    }
    whole.x = packed;
  }
  if (small) {
    format.multiply(whole);
    return absl::OkStatus();
  }

  // Blocks of rows whose packed values of one pass fit the second cache level, times groups of
  // panels, as many as give each thread several: the last to finish then costs little.
  constexpr int64_t kTasksPerThread = 3;
  constexpr int64_t kPanelQuantum = 4;  // what a low tile takes at once
  const int64_t blocks = CeilDiv(tiles, format.tiles_per_block);
  int64_t group = std::max<int64_t>(1, panels * blocks / (pool_.threads() * kTasksPerThread));
  if (tiles == 1 || group > kPanelQuantum) group = CeilDiv(group, kPanelQuantum) * kPanelQuantum;
  const int64_t groups = CeilDiv(panels, group);
  pool_.ParallelFor(blocks * groups, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      GemmTask task = whole;
      // Row blocks vary fastest: threads share the weights that come from memory.
      task.first_tile = i % blocks * tiles / blocks;
      task.end_tile = (i % blocks + 1) * tiles / blocks;
      task.first_panel = i / blocks * group;
      task.end_panel = std::min(panels, task.first_panel + group);
      format.multiply(task);
    }
  });
  return absl::OkStatus();
}

}  // namespace infllm::kernels
