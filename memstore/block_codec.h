// The form of a block outside RAM: a header of fixed size that says whose block this is, then the
// payload. Little-endian; all bytes not named are zero. Nothing here depends on how blocks are
// represented for selection, so the geometry's representatives are not in it.
//    0  u64  magic "INFLLMKV"         56  u64  owning context
//    8  u32  format version           64  i64  index
//   12  u32  header bytes             72  i32  layer
//   16  u64  fingerprint, hi          76  u32  tenant bytes
//   24  u64  fingerprint, lo          80  u64  payload bytes
//   32  i32  layers                   88  u32  crc32c over payload, then header without this field
//   36  i32  query heads              92  u32  zero
//   40  i32  KV heads                 96       tenant, 256 bytes
//   44  i32  head dim                352       zero to 384, so that the payload is 64-byte aligned
//   48  i32  block tokens
//   52  u32  dtype
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "memstore/block.h"

namespace infllm::memstore {

inline constexpr uint32_t kBlockFormatVersion = 1;
inline constexpr size_t kBlockHeaderBytes = 384;

// Everything that must agree before stored bytes are attended to.
struct BlockIdentity {
  ContextId context{};  // that appended the block; forks share it
  int32_t layer = 0;
  int64_t index = 0;
  std::string_view tenant;  // at most limits::kMaxTenantBytes
  Fingerprint model;
  Geometry geometry;
};

// "context 12, layer 3, block 7".
std::string Name(const BlockIdentity& identity);

inline size_t EncodedBlockBytes(size_t payload_bytes) { return kBlockHeaderBytes + payload_bytes; }

// Writes header and payload to `out`. `payload_crc` is Crc32c(payload) as of when the payload was
// known to be good: bytes that changed since then fail VerifyBlock.
// REQUIRES: out.size() == EncodedBlockBytes(payload.size()); tenant within its limit.
void EncodeBlock(const BlockIdentity& identity, std::span<const std::byte> payload,
                 uint32_t payload_crc, std::span<std::byte> out);

// OK if `encoded` is exactly the block `expected`, undamaged: its payload then starts at
// kBlockHeaderBytes. Any bytes are safe to pass.
//   DATA_LOSS  names the first thing that differs, both values
absl::Status VerifyBlock(std::span<const std::byte> encoded, const BlockIdentity& expected);

}  // namespace infllm::memstore
