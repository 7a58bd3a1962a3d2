#include <algorithm>
#include <cstring>

#include "kernels/backend.h"
#include "kernels/core/status_macros.h"
#include "kernels/cpu/cpu_attention.h"
#include "kernels/cpu/cpu_linear.h"
#include "kernels/cpu/layer_ops_simd.h"
#include "kernels/host_memory.h"
#include "kernels/validate_args.h"

namespace infllm::kernels {
namespace {

// Elements per chunk of an element-wise op: about 5 us of work, so that waking a thread pays.
constexpr int64_t kChunkElements = 16384;

const LayerKernels& KernelsFor(Isa isa) {
  switch (isa) {
#ifdef INFLLM_X86
    case Isa::kAvx2:
      return avx2::kLayerKernels;
    case Isa::kAvx512:
      return avx512::kLayerKernels;
    case Isa::kAvx512Bf16:
    case Isa::kAmx:  // differs in bf16 products only
      return avx512bf16::kLayerKernels;
#endif
    default:
      return generic::kLayerKernels;
  }
}

class CpuBackend : public Backend {
 public:
  CpuBackend(ThreadPool& pool, Isa isa)
      : pool_(pool), isa_(isa), kernels_(KernelsFor(isa)), linear_(pool, isa) {}

  std::string_view name() const override { return "cpu"; }
  bool host_accessible() const override { return true; }
  DType preferred_dtype() const override { return linear_.has_bf16() ? DType::kBF16 : DType::kF32; }

  absl::StatusOr<Buffer> Allocate(size_t bytes) override { return AllocateHost(bytes); }
  absl::Status Upload(void* device, const void* host, size_t bytes) override {
    return Copy("Upload", device, host, bytes);
  }
  absl::Status Download(void* host, const void* device, size_t bytes) override {
    return Copy("Download", host, device, bytes);
  }
  absl::Status Zero(void* device, size_t bytes) override {
    INFLLM_RETURN_IF_ERROR(ValidateCopy("Zero", device, device, bytes));
    if (bytes > 0) std::memset(device, 0, bytes);
    return absl::OkStatus();
  }
  absl::Status Synchronize() override { return absl::OkStatus(); }

  absl::StatusOr<std::unique_ptr<PackedWeight>> PackWeight(std::span<const WeightSource> sources,
                                                           int64_t in_features,
                                                           DType compute) override {
    INFLLM_RETURN_IF_ERROR(ValidatePackWeight(sources, in_features, compute));
    return linear_.Pack(sources, in_features, compute);
  }
  absl::Status Linear(const LinearArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Validate(args));
    return linear_.Multiply(args);
  }

  absl::Status RmsNorm(const RmsNormArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Validate(args));
    ForRows(args.rows, args.width, [&](int64_t begin, int64_t rows) {
      kernels_.rms_norm(args.x + begin * args.width, args.weight, args.y + begin * args.width, rows,
                        args.width, args.eps);
    });
    return absl::OkStatus();
  }

  absl::Status Rope(const RopeArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Validate(args));
    const int64_t width = args.heads * args.head_dim;
    const int64_t table_stride = args.table_step * args.head_dim;
    ForRows(args.rows, width, [&](int64_t begin, int64_t rows) {
      kernels_.rope(args.x + begin * width, args.table + begin * table_stride, table_stride,
                    args.y + begin * width, rows, args.heads, args.head_dim);
    });
    return absl::OkStatus();
  }

  absl::Status SiluMul(const float* gate_up, float* out, int64_t rows, int64_t width) override {
    INFLLM_RETURN_IF_ERROR(ValidateSiluMul(gate_up, out, rows, width));
    ForRows(rows, width, [&](int64_t begin, int64_t count) {
      kernels_.silu_mul(gate_up + begin * 2 * width, out + begin * width, count, width);
    });
    return absl::OkStatus();
  }

  absl::Status CopyColumns(const float* src, int64_t src_width, int64_t src_column, float* dst,
                           int64_t dst_width, int64_t dst_column, int64_t rows,
                           int64_t width) override {
    INFLLM_RETURN_IF_ERROR(
        ValidateCopyColumns(src, src_width, src_column, dst, dst_width, dst_column, rows, width));
    if (width == 0) return absl::OkStatus();
    ForRows(rows, width, [&](int64_t begin, int64_t count) {
      for (int64_t r = begin; r < begin + count; ++r) {
        std::memcpy(dst + r * dst_width + dst_column, src + r * src_width + src_column,
                    width * sizeof(float));
      }
    });
    return absl::OkStatus();
  }

  absl::Status StorePage(const StorePageArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Validate(args));
    const int64_t dim = args.head_dim;
    ForRows(args.tokens * args.heads, dim, [&](int64_t begin, int64_t count) {
      for (int64_t row = begin; row < begin + count; ++row) {
        const float* src = args.src + row * dim;
        const int64_t to = row % args.heads * args.head_stride + row / args.heads * dim;
        if (args.dtype == DType::kF32) {
          std::memcpy(static_cast<float*>(args.dst) + to, src, dim * sizeof(float));
        } else {
          kernels_.to_bf16(src, dim, static_cast<uint16_t*>(args.dst) + to);
        }
      }
    });
    return absl::OkStatus();
  }

  absl::Status RotatePage(const RotatePageArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Validate(args));
    if (args.dtype == DType::kF32) {
      RotateKeys<float>(args, kernels_.rope);
    } else {
      RotateKeys<uint16_t>(args, kernels_.rope_bf16);
    }
    return absl::OkStatus();
  }

  absl::Status Attention(const AttentionArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Validate(args));
    CpuAttention(pool_, isa_, args);
    return absl::OkStatus();
  }
  absl::Status Representatives(const RepresentativeArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Validate(args));
    CpuRepresentatives(isa_, args);
    return absl::OkStatus();
  }
  absl::Status MeanQuery(const MeanQueryArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Validate(args));
    CpuMeanQuery(pool_, isa_, args);
    return absl::OkStatus();
  }
  absl::Status ScoreBlocks(const ScoreBlocksArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Validate(args));
    CpuScoreBlocks(pool_, isa_, args);
    return absl::OkStatus();
  }
  absl::Status TopK(const float* scores, int64_t n, int64_t k,
                    std::span<int64_t> out_indices) override {
    INFLLM_RETURN_IF_ERROR(ValidateTopK(scores, n, k, out_indices));
    CpuTopK(scores, n, k, out_indices);
    return absl::OkStatus();
  }

 private:
  static absl::Status Copy(const char* op, void* to, const void* from, size_t bytes) {
    INFLLM_RETURN_IF_ERROR(ValidateCopy(op, to, from, bytes));
    if (bytes > 0) std::memcpy(to, from, bytes);
    return absl::OkStatus();
  }

  // T is float, or the bits of bf16.
  template <typename T, typename Rope>
  void RotateKeys(const RotatePageArgs& args, Rope rope) {
    const int64_t tokens = args.tokens, dim = args.head_dim;
    ForRows(args.kv_heads * tokens, dim, [&](int64_t begin, int64_t count) {
      for (int64_t row = begin, end = begin + count; row < end;) {  // a KV head at a time
        const int64_t head = row / tokens, token = row % tokens;
        const int64_t here = std::min(end - row, tokens - token);
        rope(static_cast<const T*>(args.k) + head * args.head_stride + token * dim,
             args.table + token * dim, dim,
             static_cast<T*>(args.out) + head * args.out_head_stride + token * dim, here,
             /*heads=*/1, dim);
        row += here;
      }
    });
  }

  // body(first row, rows) over chunks of about kChunkElements.
  template <typename Body>
  void ForRows(int64_t rows, int64_t width, Body body) {
    const int64_t grain = std::max<int64_t>(1, kChunkElements / width);
    if (rows <= grain) {
      if (rows > 0) body(0, rows);
      return;
    }
    pool_.ParallelFor(rows, grain,
                      [&](int64_t begin, int64_t end, int) { body(begin, end - begin); });
  }

  ThreadPool& pool_;
  const Isa isa_;
  const LayerKernels& kernels_;
  CpuLinear linear_;
};

}  // namespace

std::unique_ptr<Backend> NewCpuBackend(ThreadPool& pool, Isa isa) {
  const std::vector<Isa> supported = SupportedIsas();
  INFLLM_CHECK(std::find(supported.begin(), supported.end(), isa) != supported.end());
  return std::make_unique<CpuBackend>(pool, isa);
}

std::unique_ptr<Backend> NewCpuBackend(ThreadPool& pool) {
  return NewCpuBackend(pool, SupportedIsas().back());
}

}  // namespace infllm::kernels
