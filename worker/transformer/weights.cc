#include "worker/transformer/weights.h"

#include <array>
#include <bit>
#include <cstring>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/status_macros.h"
#include "worker/model/available_memory.h"
#include "worker/model/quote.h"

namespace infllm::worker {
namespace {

using kernels::Backend;
using kernels::Buffer;
using kernels::DType;
using kernels::Weight;
using kernels::WeightSource;

// Backends pad matrices to their tiles and keep some scratch memory: one part in this many.
constexpr int64_t kPaddingShare = 16;
// How many names an error message gives before it only counts.
constexpr size_t kNamesShown = 5;

constexpr char kEmbedding[] = "model.embed_tokens.weight";
constexpr char kFinalNorm[] = "model.norm.weight";
constexpr char kLmHead[] = "lm_head.weight";

using Shape = std::vector<int64_t>;

// The widths of a decoder's projections.
struct Widths {
  explicit Widths(const ModelConfig& config)
      : hidden(config.hidden_size),
        q(config.q_heads * config.head_dim),
        kv(config.kv_heads * config.head_dim),
        mlp(config.intermediate_size) {}
  int64_t hidden, q, kv, mlp;
};

std::string LayerName(int64_t layer, std::string_view part) {
  return absl::StrCat("model.layers.", layer, ".", std::string(part));
}

// Every tensor that the model needs, and its shape.
std::vector<std::pair<std::string, Shape>> ExpectedTensors(const ModelConfig& config) {
  const Widths w(config);
  std::vector<std::pair<std::string, Shape>> tensors = {{kEmbedding, {config.vocab_size, w.hidden}},
                                                        {kFinalNorm, {w.hidden}}};
  if (!config.tied_embeddings) tensors.push_back({kLmHead, {config.vocab_size, w.hidden}});
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const auto add = [&](std::string_view part, Shape shape) {
      tensors.push_back({LayerName(layer, part), std::move(shape)});
    };
    add("input_layernorm.weight", {w.hidden});
    add("self_attn.q_proj.weight", {w.q, w.hidden});
    add("self_attn.k_proj.weight", {w.kv, w.hidden});
    add("self_attn.v_proj.weight", {w.kv, w.hidden});
    if (config.qkv_bias) {
      add("self_attn.q_proj.bias", {w.q});
      add("self_attn.k_proj.bias", {w.kv});
      add("self_attn.v_proj.bias", {w.kv});
    }
    add("self_attn.o_proj.weight", {w.hidden, w.q});
    add("post_attention_layernorm.weight", {w.hidden});
    add("mlp.gate_proj.weight", {w.mlp, w.hidden});
    add("mlp.up_proj.weight", {w.mlp, w.hidden});
    add("mlp.down_proj.weight", {w.hidden, w.mlp});
  }
  return tensors;
}

// Tensors that some exports carry and no computation needs: the angles that rope_theta gives
// anyway, and the second copy of a tied embedding.
bool IsRedundant(std::string_view name, const ModelConfig& config) {
  return name.ends_with(".rotary_emb.inv_freq") || (config.tied_embeddings && name == kLmHead);
}

// Collects names, and writes the first few.
class NameList {
 public:
  void Add(std::string_view name) {
    if (++count_ > kNamesShown) return;
    absl::StrAppend(&text_, text_.empty() ? "" : ", ", Quote(name));
  }
  bool empty() const { return count_ == 0; }
  std::string text() const {
    return count_ <= kNamesShown ? text_
                                 : absl::StrCat(text_, " and ", count_ - kNamesShown, " more");
  }

 private:
  std::string text_;
  size_t count_ = 0;
};

// Checks all names and shapes before any work is done.
absl::Status CheckTensors(const ModelConfig& config, const ModelFiles& files) {
  NameList missing;
  std::set<std::string, std::less<>> known;
  for (const auto& [name, shape] : ExpectedTensors(config)) {
    known.insert(name);
    if (!files.Has(name)) {
      missing.Add(name);
    } else {
      INFLLM_RETURN_IF_ERROR(files.Get(name, shape).status());
    }
  }
  if (!missing.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensors that config.json calls for are missing in the weights: ", missing.text()));
  }
  NameList extra;
  for (const std::string& name : files.names()) {
    if (!known.contains(name) && !IsRedundant(name, config)) extra.Add(name);
  }
  if (!extra.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the weights have tensors that a ", config.model_type, " of ", config.layers,
                     " layers does not: ", extra.text(), "; does config.json belong to them?"));
  }
  return absl::OkStatus();
}

// [count] elements of `dtype` at `src`, which need not be aligned, to fp32.
void ToFloat(const std::byte* src, DType dtype, size_t count, float* out) {
  if (dtype == DType::kF32) {
    std::memcpy(out, src, count * sizeof(float));
    return;
  }
  for (size_t i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, src + 2 * i, sizeof(bits));
    out[i] = dtype == DType::kF16
                 ? kernels::HalfToFloat(bits)
                 : std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);  // bf16
  }
}

class Loader {
 public:
  Loader(const ModelConfig& config, const ModelFiles& files, Backend& backend, DType compute)
      : config_(config), widths_(config), files_(files), backend_(backend), compute_(compute) {}

  absl::StatusOr<std::unique_ptr<DecoderWeights>> Load() {
    auto weights = std::make_unique<DecoderWeights>();
    for (int64_t layer = 0; layer < config_.layers; ++layer) {
      INFLLM_ASSIGN_OR_RETURN(LayerWeights loaded, LoadLayer(layer));
      weights->layers.push_back(std::move(loaded));
      files_.DropPages();  // or the files would count beside the packed weights
    }
    INFLLM_ASSIGN_OR_RETURN(weights->final_norm, Vector({{kFinalNorm, widths_.hidden}}));
    INFLLM_ASSIGN_OR_RETURN(
        weights->lm_head,
        Matrix({{config_.tied_embeddings ? kEmbedding : kLmHead, config_.vocab_size}},
               widths_.hidden));
    INFLLM_ASSIGN_OR_RETURN(
        TensorView embedding,
        files_.Get(kEmbedding, std::array{config_.vocab_size, config_.hidden_size}));
    weights->embedding = EmbeddingTable(std::move(embedding));
    weights->packed_bytes = packed_bytes_;
    files_.DropPages();
    return weights;
  }

 private:
  struct Part {
    std::string name;
    int64_t rows;
  };

  absl::StatusOr<LayerWeights> LoadLayer(int64_t layer) {
    const auto name = [layer](std::string_view part) { return LayerName(layer, part); };
    const Widths& w = widths_;
    LayerWeights out;
    INFLLM_ASSIGN_OR_RETURN(out.attention_norm,
                            Vector({{name("input_layernorm.weight"), w.hidden}}));
    INFLLM_ASSIGN_OR_RETURN(out.qkv, Matrix({{name("self_attn.q_proj.weight"), w.q},
                                             {name("self_attn.k_proj.weight"), w.kv},
                                             {name("self_attn.v_proj.weight"), w.kv}},
                                            w.hidden));
    if (config_.qkv_bias) {
      INFLLM_ASSIGN_OR_RETURN(out.qkv_bias, Vector({{name("self_attn.q_proj.bias"), w.q},
                                                    {name("self_attn.k_proj.bias"), w.kv},
                                                    {name("self_attn.v_proj.bias"), w.kv}}));
    }
    INFLLM_ASSIGN_OR_RETURN(out.o, Matrix({{name("self_attn.o_proj.weight"), w.hidden}}, w.q));
    INFLLM_ASSIGN_OR_RETURN(out.mlp_norm,
                            Vector({{name("post_attention_layernorm.weight"), w.hidden}}));
    INFLLM_ASSIGN_OR_RETURN(out.gate_up, Matrix({{name("mlp.gate_proj.weight"), w.mlp},
                                                 {name("mlp.up_proj.weight"), w.mlp}},
                                                w.hidden));
    INFLLM_ASSIGN_OR_RETURN(out.down, Matrix({{name("mlp.down_proj.weight"), w.hidden}}, w.mlp));
    return out;
  }

  // The parts, one after the other, as fp32 in device memory.
  absl::StatusOr<Buffer> Vector(const std::vector<Part>& parts) {
    std::vector<float> values;
    for (const Part& part : parts) {
      INFLLM_ASSIGN_OR_RETURN(const TensorView view, files_.Get(part.name, std::array{part.rows}));
      const size_t offset = values.size();
      values.resize(offset + static_cast<size_t>(part.rows));
      ToFloat(view.data.data(), view.dtype, static_cast<size_t>(part.rows), values.data() + offset);
    }
    const size_t bytes = values.size() * sizeof(float);
    INFLLM_ASSIGN_OR_RETURN(Buffer buffer, backend_.Allocate(bytes));
    INFLLM_RETURN_IF_ERROR(
        backend_.Copy(Backend::kMainStream, buffer.data(), values.data(), bytes));
    INFLLM_RETURN_IF_ERROR(backend_.Synchronize(Backend::kMainStream));
    packed_bytes_ += static_cast<int64_t>(bytes);
    return buffer;
  }

  // The parts, stacked along their rows.
  absl::StatusOr<Weight> Matrix(const std::vector<Part>& parts, int64_t in_features) {
    std::vector<WeightSource> sources;
    std::vector<std::vector<std::byte>> aligned;  // owns copies until packed
    for (const Part& part : parts) {
      INFLLM_ASSIGN_OR_RETURN(const TensorView view,
                              files_.Get(part.name, std::array{part.rows, in_features}));
      const std::byte* data = view.data.data();
      // A file may place tensors at any byte; the safetensors library aligns them.
      if (reinterpret_cast<uintptr_t>(data) % kernels::SizeOf(view.dtype) != 0) {
        data = aligned.emplace_back(view.data.begin(), view.data.end()).data();
      }
      sources.push_back({.host = data, .dtype = view.dtype, .out_features = part.rows});
    }
    INFLLM_ASSIGN_OR_RETURN(Weight packed, backend_.PackWeight(sources, in_features, compute_));
    packed_bytes_ += static_cast<int64_t>(packed.size_bytes());
    return packed;
  }

  const ModelConfig& config_;
  const Widths widths_;
  const ModelFiles& files_;
  Backend& backend_;
  const DType compute_;
  int64_t packed_bytes_ = 0;
};

}  // namespace

void EmbeddingTable::EmbedRow(int32_t token, float* out) const {
  INFLLM_CHECK(token >= 0 && token < rows_.shape[0]);
  const size_t width = static_cast<size_t>(rows_.shape[1]);
  const size_t row_bytes = width * kernels::SizeOf(rows_.dtype);
  ToFloat(rows_.data.data() + static_cast<size_t>(token) * row_bytes, rows_.dtype, width, out);
}

int64_t DecoderWeightBytes(const ModelConfig& config, DType stored) {
  const Widths w(config);
  const int64_t matrices = w.hidden * (w.q + 2 * w.kv) + w.q * w.hidden + 3 * w.hidden * w.mlp;
  const int64_t vectors = 2 * w.hidden + (config.qkv_bias ? w.q + 2 * w.kv : 0);
  const int64_t element = static_cast<int64_t>(kernels::SizeOf(stored));
  return config.layers * (matrices * element + vectors * 4) +
         config.vocab_size * w.hidden * element + w.hidden * 4;
}

absl::Status CheckWeightsFit(int64_t weight_bytes, int64_t available, DType stored) {
  const int64_t needed = weight_bytes + weight_bytes / kPaddingShare;
  if (needed <= available) return absl::OkStatus();
  const auto gib = [](int64_t bytes) {
    return absl::StrFormat("%.2f GiB", static_cast<double>(bytes) / (1 << 30));
  };
  return absl::ResourceExhaustedError(absl::StrCat(
      "the weights need ", gib(needed), " of memory as ", std::string(kernels::Name(stored)),
      ", but only ", gib(available),
      " are available; free memory, raise the container's limit, or use a smaller model",
      stored == DType::kF32
          ? absl::StrCat(", or bf16 on a device that computes in it (", gib(needed / 2), ")")
          : ""));
}

absl::StatusOr<std::unique_ptr<DecoderWeights>> LoadDecoderWeights(const ModelConfig& config,
                                                                   const ModelFiles& files,
                                                                   Backend& backend,
                                                                   DType compute) {
  INFLLM_RETURN_IF_ERROR(CheckTensors(config, files));
  if (backend.host_accessible()) {  // other memory is the backend's to account for
    if (const std::optional<int64_t> available = AvailableMemoryBytes(); available.has_value()) {
      // Devices without bf16 arithmetic keep rounded weights in fp32.
      const DType stored = backend.preferred_dtype() == DType::kBF16 ? compute : DType::kF32;
      INFLLM_RETURN_IF_ERROR(
          CheckWeightsFit(DecoderWeightBytes(config, stored), *available, stored));
    }
  }
  return Loader(config, files, backend, compute).Load();
}

}  // namespace infllm::worker
