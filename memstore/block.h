// What a block of keys and values is, wherever it is kept.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "kernels/backend.h"
#include "kernels/core/dtype.h"

namespace infllm::memstore {

enum class ContextId : uint64_t {};

// The shape of a context's blocks; fixed when the context is created.
struct Geometry {
  int32_t layers = 0;
  int32_t q_heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int32_t block_tokens = 0;
  // Of keys and values, and of the representatives as they are kept. kF32 or kBF16.
  kernels::DType dtype = kernels::DType::kF32;
  kernels::RepresentativeKind representative = kernels::RepresentativeKind::kMeanKey;

  // One layer's K then V, each [kv_heads, block_tokens, head_dim], row-major.
  size_t payload_bytes() const {
    return size_t{2} * kv_heads * block_tokens * head_dim * kernels::SizeOf(dtype);
  }
  kernels::RepresentativeShape representative_shape() const {
    return kernels::ShapeOf(representative, q_heads, kv_heads);
  }
  // [slots, heads, head_dim] of representative_shape().
  size_t representative_floats() const {
    return static_cast<size_t>(representative_shape().rows() * head_dim);
  }
  // [q_heads, head_dim].
  size_t query_floats() const { return size_t{1} * q_heads * head_dim; }
  friend bool operator==(const Geometry&, const Geometry&) = default;
};

// 128 bits over names, shapes and bytes of all weights (worker/model): blocks of one model are
// never attended by another.
struct Fingerprint {
  uint64_t hi = 0;
  uint64_t lo = 0;
  friend bool operator==(const Fingerprint&, const Fingerprint&) = default;
};

// Read-only bytes of a block, kept in place as long as any copy of the handle lives: a pinned slot
// of the RAM tier, or a slice received over the wire. Copies share the pin. Thread-safe.
class BlockHandle {
 public:
  BlockHandle() = default;
  BlockHandle(std::span<const std::byte> payload, std::shared_ptr<const void> pin)
      : payload_(payload), pin_(std::move(pin)) {}
  std::span<const std::byte> payload() const { return payload_; }
  explicit operator bool() const { return payload_.data() != nullptr; }

 private:
  std::span<const std::byte> payload_;
  std::shared_ptr<const void> pin_;  // shared by all users of the block and the tier
};

}  // namespace infllm::memstore
