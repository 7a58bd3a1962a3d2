// The form of a block outside RAM: a header of fixed size that says whose block this is, then the
// payload. Little-endian; all bytes not named are zero. Nothing here depends on how blocks are
// represented for selection, so the geometry's representatives are not in it.
//    0  u64  magic "INFLLMKV"         72  i32  layer
//    8  u32  format version           76  i32  layers
//   12  u32  header bytes             80  i32  query heads
//   16  u64  fingerprint, hi          84  i32  KV heads
//   24  u64  fingerprint, lo          88  i32  head dim
//   32  u64  recipe, hi               92  i32  block tokens
//   40  u64  recipe, lo               96  u32  dtype
//   48  u64  owning context, hi      100  u32  record layout
//   56  u64  owning context, lo      104  u64  payload bytes
//   64  i64  index                   112  u32  crc32c over payload, then header without this field
//                                    116  u32  tenant bytes
//                                    120       tenant, 256 bytes; zero to 384, so that the payload
//                                              is 64-byte aligned
// The recipe is XXH3-128 of its text. The checksum begins with the payload, so that of the whole is
// made from the one that was taken while the payload was copied: nobody reads it for that again.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "memstore/block.h"

namespace infllm::memstore {

inline constexpr uint32_t kBlockFormatVersion = 2;
// [kv_heads][K|V][block_tokens][head_dim]; 0 was [K|V][kv_heads][block_tokens][head_dim].
inline constexpr uint32_t kRecordLayout = 1;
inline constexpr size_t kBlockHeaderBytes = 384;
using BlockHeader = std::array<std::byte, kBlockHeaderBytes>;

// Everything that must agree before stored bytes are attended to.
struct BlockIdentity {
  BlockKey key;
  std::string_view tenant;  // at most limits::kMaxTenantBytes
  Fingerprint model;
  std::string_view recipe;  // ContextOptions::recipe
  Geometry geometry;
};

inline size_t EncodedBlockBytes(size_t payload_bytes) { return kBlockHeaderBytes + payload_bytes; }

// What goes before the payload. `payload_crc` is its Crc32c as of when it was known to be good:
// bytes that changed since then fail VerifyBlock.
// REQUIRES: tenant within its limit.
BlockHeader EncodeHeader(const BlockIdentity& identity, uint32_t payload_crc);

// OK if `encoded` is exactly the block `expected`, undamaged: its payload then starts at
// kBlockHeaderBytes. Any bytes are safe to pass.
//   DATA_LOSS  names the first thing that differs, both values
absl::Status VerifyBlock(std::span<const std::byte> encoded, const BlockIdentity& expected);

}  // namespace infllm::memstore
