#include <algorithm>
#include <vector>

#include "kernels/backend.h"
#include "kernels/core/status_macros.h"
#include "kernels/cpu/cpu_attention.h"
#include "kernels/cpu/cpu_linear.h"
#include "kernels/cpu/cpu_sample.h"
#include "kernels/cpu/cpu_select.h"
#include "kernels/cpu/layer_ops_simd.h"
#include "kernels/host_backend.h"
#include "kernels/validate_args.h"
#include "kernels/validate_select.h"

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

class CpuBackend : public HostBackend {
 public:
  CpuBackend(ThreadPool& pool, Isa isa)
      : pool_(pool), isa_(isa), kernels_(KernelsFor(isa)), linear_(pool, isa) {}

  std::string_view name() const override { return "cpu"; }
  DType preferred_dtype() const override { return linear_.has_bf16() ? DType::kBF16 : DType::kF32; }

  absl::StatusOr<Weight> PackWeight(std::span<const WeightSource> sources, int64_t in_features,
                                    DType compute) override {
    INFLLM_RETURN_IF_ERROR(ValidatePackWeight(sources, in_features, compute));
    return linear_.Pack(sources, in_features, compute);
  }
  absl::Status Linear(Stream, const LinearArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    return linear_.Multiply(args);
  }

  absl::Status RmsNorm(Stream, const RmsNormArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    const auto* x = static_cast<const float*>(args.x);
    auto* y = static_cast<float*>(args.y);
    ForRows(args.rows, args.width, [&](int64_t begin, int64_t rows) {
      kernels_.rms_norm(x + begin * args.width, args.weight, y + begin * args.width, rows,
                        args.width, args.eps);
    });
    return absl::OkStatus();
  }

  absl::Status SiluMul(Stream, const SiluMulArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    const auto* gate_up = static_cast<const float*>(args.gate_up);
    auto* out = static_cast<float*>(args.out);
    ForRows(args.rows, args.width, [&](int64_t begin, int64_t rows) {
      kernels_.silu_mul(gate_up + begin * 2 * args.width, out + begin * args.width, rows,
                        args.width);
    });
    return absl::OkStatus();
  }

  absl::Status GatherRows(Stream, const GatherRowsArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    const auto* x = static_cast<const float*>(args.x);
    auto* out = static_cast<float*>(args.out);
    ForRows(args.rows, args.width, [&](int64_t begin, int64_t rows) {
      for (int64_t r = begin; r < begin + rows; ++r) {
        std::copy_n(x + args.index[r] * args.width, args.width, out + r * args.width);
      }
    });
    return absl::OkStatus();
  }

  absl::Status RotateAndStore(Stream, const RotateAndStoreArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    const int64_t width = (args.q_heads + 2 * args.page.kv_heads) * args.page.head_dim;
    ForRows(args.rows, width, [&](int64_t begin, int64_t rows) {
      for (int64_t r = begin; r < begin + rows; ++r) {
        RotateQueries(args, r, width);
        if (args.page.dtype == DType::kF32) {
          StoreKeysAndValues(args, r, width, kernels_.rotate, CopyFloats);
        } else {
          StoreKeysAndValues(args, r, width, kernels_.rotate_to_bf16, kernels_.to_bf16);
        }
      }
    });
    return absl::OkStatus();
  }

  absl::Status Attention(Stream, const AttentionArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    CpuAttention(pool_, isa_, args);
    return absl::OkStatus();
  }
  absl::Status Representatives(Stream, const RepresentativesArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    CpuRepresentatives(pool_, isa_, args);
    return absl::OkStatus();
  }
  absl::Status MeanQueries(Stream, const MeanQueriesArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    CpuMeanQueries(pool_, isa_, args);
    return absl::OkStatus();
  }
  absl::Status ScoreBlocks(Stream, const ScoreBlocksArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    CpuScoreBlocks(pool_, isa_, args);
    return absl::OkStatus();
  }
  absl::Status TopK(Stream, const TopKArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    CpuTopK(pool_, args);
    return absl::OkStatus();
  }
  absl::Status SelectBlocks(Stream, const SelectBlocksArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    CpuSelectBlocks(pool_, isa_, args);
    return absl::OkStatus();
  }
  absl::Status EncodeBounds(Stream, const EncodeBoundsArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    CpuEncodeBounds(pool_, isa_, args);
    return absl::OkStatus();
  }
  absl::Status LookUpBlocks(Stream, const LookUpBlocksArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    CpuLookUpBlocks(args);
    return absl::OkStatus();
  }
  absl::Status Sample(Stream, const SampleArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    CpuSample(pool_, args);
    return absl::OkStatus();
  }
  absl::Status LogProbs(Stream, const LogProbsArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    CpuLogProbs(pool_, args);
    return absl::OkStatus();
  }

 private:
  static void CopyFloats(const float* src, int64_t n, float* dst) { std::copy_n(src, n, dst); }

  void RotateQueries(const RotateAndStoreArgs& args, int64_t row, int64_t width) const {
    const int64_t dim = args.page.head_dim, q_width = args.q_heads * dim;
    const float* q = static_cast<const float*>(args.qkv) + row * width;
    kernels_.rotate(q, args.angles + row * dim, args.q_heads, dim,
                    static_cast<float*>(args.q_near) + row * q_width, dim);
    if (args.far_angle == nullptr) return;
    kernels_.rotate(q, args.far_angle, args.q_heads, dim,
                    static_cast<float*>(args.q_far) + row * q_width, dim);
  }

  // T is float, or the bits of bf16.
  template <typename T>
  void StoreKeysAndValues(const RotateAndStoreArgs& args, int64_t row, int64_t width,
                          void (*rotate)(const float*, const float*, int64_t, int64_t, T*, int64_t),
                          void (*store)(const float*, int64_t, T*)) const {
    const PageShape& page = args.page;
    const int64_t dim = page.head_dim, slot = args.slots[row];
    const float* k = static_cast<const float*>(args.qkv) + row * width + args.q_heads * dim;
    const float* v = k + page.kv_heads * dim;
    auto* to = reinterpret_cast<T*>(args.pages[row] + args.layer_offset);
    for (int64_t h = 0; h < page.kv_heads; ++h) store(v + h * dim, dim, to + page.value(h, slot));
    if (!page.rotated_behind) {
      rotate(k, args.angles + row * dim, page.kv_heads, dim, to + page.rotated_key(0, slot),
             2 * page.head_elements());
      return;
    }
    for (int64_t h = 0; h < page.kv_heads; ++h) store(k + h * dim, dim, to + page.key(h, slot));
    rotate(Kept(k, page), args.angles + row * dim, page.kv_heads, dim,
           to + page.rotated_key(0, slot), page.head_elements());
  }

  // The keys of a row as a page of this dtype keeps them; valid until the thread's next call.
  static const float* Kept(const float* k, const PageShape& page) {
    if (page.dtype == DType::kF32) return k;
    static thread_local std::vector<float> kept;
    kept.assign(k, k + page.kv_heads * page.head_dim);
    for (float& value : kept) value = static_cast<float>(BF16(value));
    return kept.data();
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
