// The oracle: every op as its formula reads, in double, on one thread. Rounded to float (or to the
// stored dtype) once, at the end.
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/core/status_macros.h"
#include "kernels/host_memory.h"
#include "kernels/reference/reference_attention.h"
#include "kernels/validate_args.h"

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

// Row-major floats, rounded to `compute` already; Linear rounds x to it as well.
class ReferenceWeight : public PackedWeight {
 public:
  ReferenceWeight(std::vector<float> values, int64_t in_features, DType compute)
      : values_(std::move(values)), in_features_(in_features), compute_(compute) {}
  int64_t out_features() const override {
    return static_cast<int64_t>(values_.size()) / in_features_;
  }
  int64_t in_features() const override { return in_features_; }
  size_t size_bytes() const override { return values_.size() * sizeof(float); }
  DType compute() const { return compute_; }
  const float* row(int64_t o) const { return values_.data() + o * in_features_; }

 private:
  std::vector<float> values_;
  int64_t in_features_;
  DType compute_;
};

class ReferenceBackend : public Backend {
 public:
  std::string_view name() const override { return "reference"; }
  bool host_accessible() const override { return true; }
  DType preferred_dtype() const override { return DType::kF32; }

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
    std::vector<float> values;
    for (const WeightSource& source : sources) {
      for (int64_t i = 0; i < source.out_features * in_features; ++i) {
        const float value = ReadElement(source.host, source.dtype, i);
        values.push_back(compute == DType::kBF16 ? RoundToBf16(value) : value);
      }
    }
    return std::make_unique<ReferenceWeight>(std::move(values), in_features, compute);
  }

  absl::Status Linear(const LinearArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Validate(args));
    const auto* weight = dynamic_cast<const ReferenceWeight*>(args.weight);
    if (weight == nullptr) {
      return absl::InvalidArgumentError("Linear: weight was packed by another backend");
    }
    const int64_t in = weight->in_features(), out = weight->out_features();
    for (int64_t r = 0; r < args.rows; ++r) {
      for (int64_t o = 0; o < out; ++o) {
        double sum = args.bias != nullptr ? args.bias[o] : 0.0;
        for (int64_t i = 0; i < in; ++i) {
          const float x = args.x[r * in + i];
          const double rounded = weight->compute() == DType::kBF16 ? RoundToBf16(x) : x;
          sum += rounded * weight->row(o)[i];
        }
        float& y = args.y[r * out + o];
        y = static_cast<float>(args.accumulate ? y + sum : sum);
      }
    }
    return absl::OkStatus();
  }

  absl::Status RmsNorm(const RmsNormArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Validate(args));
    for (int64_t r = 0; r < args.rows; ++r) {
      const float* x = args.x + r * args.width;
      double squares = 0;
      for (int64_t i = 0; i < args.width; ++i) squares += static_cast<double>(x[i]) * x[i];
      const double scale = 1 / std::sqrt(squares / args.width + args.eps);
      for (int64_t i = 0; i < args.width; ++i) {
        args.y[r * args.width + i] = static_cast<float>(x[i] * scale * args.weight[i]);
      }
    }
    return absl::OkStatus();
  }

  absl::Status Rope(const RopeArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Validate(args));
    const int64_t half = args.head_dim / 2;
    for (int64_t r = 0; r < args.rows; ++r) {
      const float* table = args.table + r * args.table_step * args.head_dim;
      for (int64_t h = 0; h < args.heads; ++h) {
        const int64_t head = (r * args.heads + h) * args.head_dim;
        for (int64_t i = 0; i < half; ++i) {
          const double c = table[i], s = table[half + i];
          const double low = args.x[head + i], high = args.x[head + half + i];
          args.y[head + i] = static_cast<float>(low * c - high * s);
          args.y[head + half + i] = static_cast<float>(high * c + low * s);
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status SiluMul(const float* gate_up, float* out, int64_t rows, int64_t width) override {
    INFLLM_RETURN_IF_ERROR(ValidateSiluMul(gate_up, out, rows, width));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < width; ++i) {
        const double gate = gate_up[r * 2 * width + i], up = gate_up[r * 2 * width + width + i];
        out[r * width + i] = static_cast<float>(gate / (1 + std::exp(-gate)) * up);
      }
    }
    return absl::OkStatus();
  }

  absl::Status CopyColumns(const float* src, int64_t src_width, int64_t src_column, float* dst,
                           int64_t dst_width, int64_t dst_column, int64_t rows,
                           int64_t width) override {
    INFLLM_RETURN_IF_ERROR(
        ValidateCopyColumns(src, src_width, src_column, dst, dst_width, dst_column, rows, width));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < width; ++i) {
        dst[r * dst_width + dst_column + i] = src[r * src_width + src_column + i];
      }
    }
    return absl::OkStatus();
  }

  absl::Status StorePage(const StorePageArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Validate(args));
    for (int64_t h = 0; h < args.heads; ++h) {
      for (int64_t t = 0; t < args.tokens; ++t) {
        for (int64_t d = 0; d < args.head_dim; ++d) {
          const float value = args.src[(t * args.heads + h) * args.head_dim + d];
          const int64_t to = h * args.head_stride + t * args.head_dim + d;
          WriteElement(args.dst, args.dtype, to, value);
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status Attention(const AttentionArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Validate(args));
    ReferenceAttention(args);
    return absl::OkStatus();
  }
  absl::Status Representatives(const RepresentativeArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Validate(args));
    ReferenceRepresentatives(args);
    return absl::OkStatus();
  }
  absl::Status MeanQuery(const MeanQueryArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Validate(args));
    ReferenceMeanQuery(args);
    return absl::OkStatus();
  }
  absl::Status ScoreBlocks(const ScoreBlocksArgs& args) override {
    INFLLM_RETURN_IF_ERROR(Validate(args));
    ReferenceScoreBlocks(args);
    return absl::OkStatus();
  }
  absl::Status TopK(const float* scores, int64_t n, int64_t k,
                    std::span<int64_t> out_indices) override {
    INFLLM_RETURN_IF_ERROR(ValidateTopK(scores, n, k, out_indices));
    ReferenceTopK(scores, n, k, out_indices);
    return absl::OkStatus();
  }

 private:
  static absl::Status Copy(const char* op, void* to, const void* from, size_t bytes) {
    INFLLM_RETURN_IF_ERROR(ValidateCopy(op, to, from, bytes));
    if (bytes > 0) std::memcpy(to, from, bytes);
    return absl::OkStatus();
  }
};

}  // namespace

std::unique_ptr<Backend> NewReferenceBackend() { return std::make_unique<ReferenceBackend>(); }

}  // namespace infllm::kernels
