// The oracle: every op as its formula reads, in double, on one thread. Rounded to float (or to the
// stored dtype) once, at the end.
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "kernels/backend.h"
#include "kernels/core/status_macros.h"
#include "kernels/host_backend.h"
#include "kernels/reference/reference_attention.h"
#include "kernels/reference/reference_sample.h"
#include "kernels/reference/reference_select.h"
#include "kernels/validate_args.h"
#include "kernels/validate_select.h"

namespace infllm::kernels {
namespace {

float ReadElement(const void* data, DType dtype, int64_t i) {
  uint32_t word;
  uint16_t half;
  switch (dtype) {
    case DType::kF32:  // host memory may be a file mapping: no alignment is assumed
      std::memcpy(&word, static_cast<const std::byte*>(data) + i * sizeof(word), sizeof(word));
      return std::bit_cast<float>(word);
    case DType::kBF16:
      std::memcpy(&half, static_cast<const std::byte*>(data) + i * sizeof(half), sizeof(half));
      return std::bit_cast<float>(static_cast<uint32_t>(half) << 16);
    case DType::kF16:
      std::memcpy(&half, static_cast<const std::byte*>(data) + i * sizeof(half), sizeof(half));
      return HalfToFloat(half);
  }
  INFLLM_CHECK(false);
}

void WriteElement(void* data, DType dtype, int64_t i, float value) {
  if (dtype == DType::kF32) {
    static_cast<float*>(data)[i] = value;
  } else {
    static_cast<BF16*>(data)[i] = BF16(value);
  }
}

float RoundToBf16(float x) { return static_cast<float>(BF16(x)); }

// PackedWeight::layout: row-major floats, rounded to the compute dtype already; Linear rounds x to
// it as well.
uint64_t LayoutOf(DType compute) {
  constexpr uint64_t kMark = 0x726566;  // "ref"
  return kMark << 16 | static_cast<uint64_t>(compute);
}

// x, rotated by `angle`: element i of a head.
double Rotated(const float* x, const float* angle, int64_t head_dim, int64_t i) {
  const int64_t half = head_dim / 2;
  const int64_t pair = i % half;
  const double c = angle[pair], s = angle[half + pair];
  return i < half ? x[i] * c - x[half + i] * s : x[i] * c + x[pair] * s;
}

class ReferenceBackend : public HostBackend {
 public:
  std::string_view name() const override { return "reference"; }
  DType preferred_dtype() const override { return DType::kF32; }

  absl::StatusOr<Weight> PackWeight(std::span<const WeightSource> sources, int64_t in_features,
                                    DType compute) override {
    INFLLM_RETURN_IF_ERROR(ValidatePackWeight(sources, in_features, compute));
    int64_t out_features = 0;
    for (const WeightSource& source : sources) out_features += source.out_features;
    INFLLM_ASSIGN_OR_RETURN(Buffer buffer, Allocate(out_features * in_features * sizeof(float)));
    float* to = buffer.as<float>();
    for (const WeightSource& source : sources) {
      for (int64_t i = 0; i < source.out_features * in_features; ++i) {
        const float value = ReadElement(source.host, source.dtype, i);
        *to++ = compute == DType::kBF16 ? RoundToBf16(value) : value;
      }
    }
    const PackedWeight packed = {buffer.data(), out_features, in_features, LayoutOf(compute)};
    return Weight{std::move(buffer), packed};
  }

  absl::Status Linear(Stream, const LinearArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    const bool round = args.weight.layout == LayoutOf(DType::kBF16);
    if (!round && args.weight.layout != LayoutOf(DType::kF32)) {
      return absl::InvalidArgumentError("Linear: weight was packed by another backend");
    }
    const int64_t in = args.weight.in_features, out = args.weight.out_features;
    const auto* w = static_cast<const float*>(args.weight.data);
    const auto* rows = static_cast<const float*>(args.x);
    for (int64_t r = 0; r < args.rows; ++r) {
      for (int64_t o = 0; o < out; ++o) {
        double sum = args.bias != nullptr ? args.bias[o] : 0.0;
        for (int64_t i = 0; i < in; ++i) {
          const float x = rows[r * in + i];
          const double rounded = round ? RoundToBf16(x) : x;
          sum += rounded * w[o * in + i];
        }
        float& y = static_cast<float*>(args.y)[r * out + o];
        y = static_cast<float>(args.accumulate ? y + sum : sum);
      }
    }
    return absl::OkStatus();
  }

  absl::Status RmsNorm(Stream, const RmsNormArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    for (int64_t r = 0; r < args.rows; ++r) {
      const float* x = static_cast<const float*>(args.x) + r * args.width;
      float* y = static_cast<float*>(args.y) + r * args.width;
      double squares = 0;
      for (int64_t i = 0; i < args.width; ++i) squares += static_cast<double>(x[i]) * x[i];
      const double scale = 1 / std::sqrt(squares / args.width + args.eps);
      for (int64_t i = 0; i < args.width; ++i) {
        y[i] = static_cast<float>(x[i] * scale * args.weight[i]);
      }
    }
    return absl::OkStatus();
  }

  absl::Status SiluMul(Stream, const SiluMulArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    for (int64_t r = 0; r < args.rows; ++r) {
      const float* gate_up = static_cast<const float*>(args.gate_up) + r * 2 * args.width;
      float* out = static_cast<float*>(args.out) + r * args.width;
      for (int64_t i = 0; i < args.width; ++i) {
        const double gate = gate_up[i], up = gate_up[args.width + i];
        out[i] = static_cast<float>(gate / (1 + std::exp(-gate)) * up);
      }
    }
    return absl::OkStatus();
  }

  absl::Status GatherRows(Stream, const GatherRowsArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    for (int64_t r = 0; r < args.rows; ++r) {
      for (int64_t i = 0; i < args.width; ++i) {
        static_cast<float*>(args.out)[r * args.width + i] =
            static_cast<const float*>(args.x)[args.index[r] * args.width + i];
      }
    }
    return absl::OkStatus();
  }

  absl::Status RotateAndStore(Stream, const RotateAndStoreArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    const PageShape& page = args.page;
    const int64_t dim = page.head_dim;
    const int64_t width = (args.q_heads + 2 * page.kv_heads) * dim;
    for (int64_t r = 0; r < args.rows; ++r) {
      const float* q = static_cast<const float*>(args.qkv) + r * width;
      const float* k = q + args.q_heads * dim;
      const float* v = k + page.kv_heads * dim;
      const float* angle = args.angles + r * dim;
      for (int64_t i = 0; i < args.q_heads * dim; ++i) {
        const float* head = q + i / dim * dim;
        const int64_t at = r * args.q_heads * dim + i;
        static_cast<float*>(args.q_near)[at] =
            static_cast<float>(Rotated(head, angle, dim, i % dim));
        if (args.far_angle == nullptr) continue;
        static_cast<float*>(args.q_far)[at] =
            static_cast<float>(Rotated(head, args.far_angle, dim, i % dim));
      }
      std::byte* to = args.pages[r] + args.layer_offset;
      const int64_t slot = args.slots[r];
      std::vector<float> kept(k, k + page.kv_heads * dim);
      if (page.rotated_behind && page.dtype == DType::kBF16) {
        for (float& value : kept) value = static_cast<float>(BF16(value));
      }
      for (int64_t h = 0; h < page.kv_heads; ++h) {
        for (int64_t d = 0; d < dim; ++d) {
          const auto rotated = static_cast<float>(Rotated(kept.data() + h * dim, angle, dim, d));
          WriteElement(to, page.dtype, page.key(h, slot) + d, k[h * dim + d]);
          WriteElement(to, page.dtype, page.rotated_key(h, slot) + d, rotated);  // or over the key
          WriteElement(to, page.dtype, page.value(h, slot) + d, v[h * dim + d]);
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status Attention(Stream, const AttentionArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    ReferenceAttention(args);
    return absl::OkStatus();
  }
  absl::Status Representatives(Stream, const RepresentativesArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    ReferenceRepresentatives(args);
    return absl::OkStatus();
  }
  absl::Status MeanQueries(Stream, const MeanQueriesArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    ReferenceMeanQueries(args);
    return absl::OkStatus();
  }
  absl::Status ScoreBlocks(Stream, const ScoreBlocksArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    ReferenceScoreBlocks(args);
    return absl::OkStatus();
  }
  absl::Status TopK(Stream, const TopKArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    ReferenceTopK(args);
    return absl::OkStatus();
  }
  // Scores every block, so it has no use for codes.
  absl::Status EncodeBounds(Stream, const EncodeBoundsArgs& args) override { return Check(args); }
  absl::Status SelectBlocks(Stream, const SelectBlocksArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    ReferenceScoreBlocks(args.score);
    ReferenceTopK(args.best);
    return absl::OkStatus();
  }
  absl::Status LookUpBlocks(Stream, const LookUpBlocksArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    ReferenceLookUpBlocks(args);
    return absl::OkStatus();
  }
  absl::Status Sample(Stream, const SampleArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    ReferenceSample(args);
    return absl::OkStatus();
  }
  absl::Status LogProbs(Stream, const LogProbsArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Check(args));
    ReferenceLogProbs(args);
    return absl::OkStatus();
  }
};

}  // namespace

std::unique_ptr<Backend> NewReferenceBackend() { return std::make_unique<ReferenceBackend>(); }

}  // namespace infllm::kernels
