// What a block of keys and values is, wherever it is kept. README.md defines the words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "kernels/backend.h"
#include "kernels/core/dtype.h"

namespace infllm::memstore {

// 128 random bits, brought by whoever makes the context: so that making one can be repeated, that
// no id can be guessed, and that an id means the same on every shard.
struct ContextId {
  uint64_t hi = 0;
  uint64_t lo = 0;
  friend bool operator==(const ContextId&, const ContextId&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const ContextId& id) {
    return H::combine(std::move(h), id.hi, id.lo);
  }
};
// From the system's source of randomness.
ContextId NewContextId();
// 32 hexadecimal digits.
std::string ToString(const ContextId& id);

// The name of a block.
struct BlockKey {
  ContextId context;  // that it was appended to; forks share it
  int32_t layer = 0;
  int64_t index = 0;
  friend bool operator==(const BlockKey&, const BlockKey&) = default;
};
// "context 0123456789abcdef0123456789abcdef, layer 3, block 7".
std::string ToString(const BlockKey& key);

// The shape of a context's blocks; fixed when the context is created.
struct Geometry {
  int32_t layers = 0;
  int32_t q_heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int32_t block_tokens = 0;
  // Of keys and values, and of the representatives as they are kept. kF32 or kBF16.
  kernels::DType dtype = kernels::DType::kF32;
  kernels::RepresentativeKind representative = kernels::RepresentativeKind::kBounds;

  // Of a record of kernels/ops/attention.h: [kv_heads][K|V][block_tokens][head_dim], keys not
  // rotated.
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
  // Of a representative as it is kept.
  size_t representative_bytes() const { return representative_floats() * kernels::SizeOf(dtype); }
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
