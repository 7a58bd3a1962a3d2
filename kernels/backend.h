// The operations of a decoder and of its block memory, on some device. The seam between what the
// model computes and how: `reference` (plain loops in double, the oracle), `cpu` (SIMD), `cuda`.
//
// Conventions of every op:
//  * Tensors are row-major; a pointer's comment gives its shape. Pointers are to device memory.
//  * Activations are fp32 on every device. An op may round inside to the dtype of its weights.
//  * Ops run in the order of the calls and may return before they are done: Synchronize() (or
//    Download()) waits. Zero rows are valid and do nothing.
//  * INVALID_ARGUMENT names what is unsupported or inconsistent (value and limit);
//    INTERNAL is a device failure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/core/dtype.h"
#include "kernels/core/thread_pool.h"
#include "kernels/cpu/isa.h"

namespace infllm::kernels {

// Owns one allocation of a backend. 64-byte aligned. Must not outlive its backend.
class Buffer {
 public:
  Buffer() = default;
  Buffer(void* data, size_t size_bytes, std::function<void(void*)> free)
      : data_(data), size_bytes_(size_bytes), free_(std::move(free)) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) {
      Release();
      data_ = std::exchange(other.data_, nullptr);
      size_bytes_ = std::exchange(other.size_bytes_, 0);
      free_ = std::move(other.free_);
    }
    return *this;
  }
  ~Buffer() { Release(); }

  std::byte* data() const { return static_cast<std::byte*>(data_); }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t size_bytes() const { return size_bytes_; }

 private:
  void Release() {
    if (data_ != nullptr) free_(data_);
    data_ = nullptr;
  }
  void* data_ = nullptr;
  size_t size_bytes_ = 0;
  std::function<void(void*)> free_;
};

// A weight in the layout that its backend multiplies fastest. Made by Backend::PackWeight.
class PackedWeight {
 public:
  virtual ~PackedWeight() = default;
  virtual int64_t out_features() const = 0;
  virtual int64_t in_features() const = 0;
  virtual size_t size_bytes() const = 0;
};

// y[r, o] = sum_i x[r, i] w[o, i] + bias[o] (+ y[r, o] if accumulate)
struct LinearArgs {
  const float* x = nullptr;  // [rows, in_features]
  const PackedWeight* weight = nullptr;
  const float* bias = nullptr;  // [out_features], or null
  float* y = nullptr;           // [rows, out_features]
  int64_t rows = 0;
  bool accumulate = false;
};

// y = x / sqrt(mean(x^2) + eps) * weight, per row.
struct RmsNormArgs {
  const float* x = nullptr;       // [rows, width]
  const float* weight = nullptr;  // [width]
  float* y = nullptr;             // [rows, width]; may be x
  int64_t rows = 0;
  int64_t width = 0;
  float eps = 0;
};

// Rotary embedding, half-split (NeoX) form: for i < head_dim/2, with c, s of the row's position,
//   y[i] = x[i] c[i] - x[i + D/2] s[i];  y[i + D/2] = x[i + D/2] c[i] + x[i] s[i]
// `table` is [positions, head_dim]: D/2 cosines, then D/2 sines. Row t of x uses table row
// t * table_step: 1 for consecutive positions, 0 for one angle shared by all rows.
struct RopeArgs {
  const float* x = nullptr;      // [rows, heads, head_dim]
  const float* table = nullptr;  // [rows or 1, head_dim]
  float* y = nullptr;            // [rows, heads, head_dim]; may be x
  int64_t rows = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;
  int64_t table_step = 1;
};

// dst[h * head_stride + t * head_dim + d] = dtype(src[t, h, d]): writes token-major projections
// into a head-major page of keys or values.
struct StorePageArgs {
  const float* src = nullptr;  // [tokens, heads, head_dim]
  void* dst = nullptr;         // first token row of head 0
  DType dtype = DType::kF32;   // kF32 or kBF16
  int64_t head_stride = 0;     // elements
  int64_t tokens = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;
};

// A run of consecutive tokens whose keys and values lie together, usually (a part of) one page:
// k and v point at the first token of KV head 0 and hold [kv_heads, tokens, head_dim] with
// `head_stride` elements from one head to the next. Nothing is gathered: attention reads here.
struct KvSegment {
  const void* k = nullptr;
  const void* v = nullptr;
  int64_t head_stride = 0;
  int64_t position = 0;  // of the first token in the context
  int64_t tokens = 0;
  // Optional: the attention probability that each of the tokens draws, summed over all queries of
  // the call, is added here. [q_heads, tokens], `mass_stride` elements between heads.
  float* mass = nullptr;
  int64_t mass_stride = 0;
};

// One softmax over near and far keys (InfLLM paper sec. 3.1; streaming baselines likewise).
// Query row t is at position p = first_position + t. A near key at position j takes part iff
// 0 <= p - j < window, scored against q_near. A far key takes part iff p - j >= window, scored
// against q_far. `far_unmasked` (the published code's double counting) lets every far key in.
//   out[t, h] = sum_j softmax_j(scale * q . k_j) v_j;   query head h reads KV head h/(H/Hkv)
// A row that sees no key is zero.
struct AttentionArgs {
  const float* q_near = nullptr;  // [tokens, q_heads, head_dim]
  const float* q_far = nullptr;   // [tokens, q_heads, head_dim]; may be null if far is empty
  float* out = nullptr;           // [tokens, q_heads, head_dim]
  std::span<const KvSegment> near;
  std::span<const KvSegment> far;
  // Optional [far.size()]: probability mass drawn by each far segment, summed over heads, queries
  // and tokens, is added here.
  float* far_segment_mass = nullptr;
  int64_t tokens = 0;
  int64_t q_heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t first_position = 0;
  int64_t window = 0;
  float scale = 1;
  DType kv_dtype = DType::kF32;
  bool far_unmasked = false;
};

// What stands for a block when blocks are scored: [slots, heads, head_dim] raw keys or bounds.
enum class RepresentativeKind : uint8_t {
  // 1 slot, query heads: the mean key of the `top` tokens that drew most attention (the paper's).
  kMeanKey,
  // 2 slots, KV heads: the least and the largest key in each channel, over all tokens of the
  // block; their score is an upper bound of q . k (Quest, arXiv 2406.10774).
  kBounds,
};
// [slots, heads] of the representative of a block.
struct RepresentativeShape {
  int64_t slots = 0;
  int64_t heads = 0;
  int64_t rows() const { return slots * heads; }
};
constexpr RepresentativeShape ShapeOf(RepresentativeKind kind, int64_t q_heads, int64_t kv_heads) {
  switch (kind) {
    case RepresentativeKind::kMeanKey:
      return {1, q_heads};
    case RepresentativeKind::kBounds:
      return {2, kv_heads};
  }
  return {};
}

// The representative of one block. The `top` tokens with the largest mass are taken per query
// head; ties go to the earlier token.
struct RepresentativeArgs {
  RepresentativeKind kind = RepresentativeKind::kMeanKey;
  const void* k = nullptr;      // [kv_heads, block_tokens, head_dim], head_stride between heads
  const float* mass = nullptr;  // [q_heads, block_tokens], mass_stride; not read by kBounds
  float* out = nullptr;         // [slots, heads, head_dim] of ShapeOf(kind, ...)
  DType kv_dtype = DType::kF32;
  int64_t head_stride = 0;
  int64_t mass_stride = 0;
  int64_t block_tokens = 0;
  int64_t q_heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t top = 0;
};

// out[h, d] = mean over t of q[t, h, d].
struct MeanQueryArgs {
  const float* q = nullptr;  // [tokens, q_heads, head_dim]
  float* out = nullptr;      // [q_heads, head_dim]
  int64_t tokens = 0;
  int64_t q_heads = 0;
  int64_t head_dim = 0;
};

// How the logits of the query heads become the score of a block. The logit of head h and block b is
//   kMeanKey  q_h . r_bh
//   kBounds   sum over d of max(q_hd min_bgd, q_hd max_bgd), g the KV head of h; min <= max
enum class Scoring : uint8_t {
  kMean,      // sum over heads of the logits: the paper's
  kHeadVote,  // sum over heads of softmax over all blocks of scale * logit
};

// Scores every block of a layer against each of some queries, in one pass over the representatives.
// Chunks hold those of consecutive blocks. A query's scores do not depend on what else is scored
// with it.
struct RepresentativeChunk {
  const void* data = nullptr;  // [blocks, slots, heads, head_dim]
  int64_t blocks = 0;
};
struct ScoreBlocksArgs {
  const float* query = nullptr;  // [queries, q_heads, head_dim]
  std::span<const RepresentativeChunk> chunks;
  float* out = nullptr;  // [queries, blocks of all chunks]
  RepresentativeKind kind = RepresentativeKind::kMeanKey;
  DType dtype = DType::kF32;  // of the chunks: kF32 or kBF16
  int64_t q_heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t queries = 1;
  float scale = 1;  // used by kHeadVote only: the mean form's ranking does not depend on it
  Scoring scoring = Scoring::kMean;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const = 0;
  // True if the host may read and write device memory directly.
  virtual bool host_accessible() const = 0;
  // Weight dtypes this device computes at full speed; kF32 is always possible.
  virtual DType preferred_dtype() const = 0;

  // RESOURCE_EXHAUSTED: the device has no `bytes` left. Contents are undefined.
  virtual absl::StatusOr<Buffer> Allocate(size_t bytes) = 0;
  virtual absl::Status Upload(void* device, const void* host, size_t bytes) = 0;
  virtual absl::Status Download(void* host, const void* device, size_t bytes) = 0;
  virtual absl::Status Zero(void* device, size_t bytes) = 0;
  virtual absl::Status Synchronize() = 0;

  // Converts `rows` of host memory, [out_features, in_features] of `source` dtype, for Linear in
  // `compute` dtype (kF32 or kBF16). Several sources of equal in_features are stacked along
  // out_features, so that e.g. Q, K and V are one product. `host` may be freed afterwards.
  struct WeightSource {
    const void* host = nullptr;
    DType dtype = DType::kF32;
    int64_t out_features = 0;
  };
  virtual absl::StatusOr<std::unique_ptr<PackedWeight>> PackWeight(
      std::span<const WeightSource> sources, int64_t in_features, DType compute) = 0;

  virtual absl::Status Linear(const LinearArgs& args) = 0;
  virtual absl::Status RmsNorm(const RmsNormArgs& args) = 0;
  virtual absl::Status Rope(const RopeArgs& args) = 0;
  // out[r, i] = silu(gate_up[r, i]) * gate_up[r, width + i]; gate_up is [rows, 2 * width].
  virtual absl::Status SiluMul(const float* gate_up, float* out, int64_t rows, int64_t width) = 0;
  // dst[r, dst_column + i] = src[r, src_column + i] for i < width: splits stacked projections.
  virtual absl::Status CopyColumns(const float* src, int64_t src_width, int64_t src_column,
                                   float* dst, int64_t dst_width, int64_t dst_column, int64_t rows,
                                   int64_t width) = 0;
  virtual absl::Status StorePage(const StorePageArgs& args) = 0;
  virtual absl::Status Attention(const AttentionArgs& args) = 0;
  virtual absl::Status Representatives(const RepresentativeArgs& args) = 0;
  virtual absl::Status MeanQuery(const MeanQueryArgs& args) = 0;
  virtual absl::Status ScoreBlocks(const ScoreBlocksArgs& args) = 0;
  // Host indices of the min(k, n) largest of scores[n], best first; ties go to the smaller index.
  // Waits for the device.
  virtual absl::Status TopK(const float* scores, int64_t n, int64_t k,
                            std::span<int64_t> out_indices) = 0;
};

// Plain double-precision loops, one thread. The oracle of the contract tests; never optimised.
std::unique_ptr<Backend> NewReferenceBackend();

// SIMD for `isa`, which must be one of SupportedIsas(); the shorter form takes the best of them.
// `pool` is shared, not owned.
std::unique_ptr<Backend> NewCpuBackend(ThreadPool& pool, Isa isa);
std::unique_ptr<Backend> NewCpuBackend(ThreadPool& pool);

}  // namespace infllm::kernels
