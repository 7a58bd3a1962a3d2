#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace infllm::memstore {

// CRC-32C (Castagnoli; RFC 3720 B.4) of `data` appended to bytes whose checksum is `crc`.
// Uses the CPU's instruction where there is one: RocksDB's own runs in software in the usual
// packages, ten times slower than this.
uint32_t ExtendCrc32c(uint32_t crc, std::span<const std::byte> data);
inline uint32_t Crc32c(std::span<const std::byte> data) { return ExtendCrc32c(0, data); }

// Copies `data` to `out`, which must not overlap it, and returns the Crc32c of what was written, in
// one pass. Every byte is read once: whatever else changes `data` meanwhile, the checksum is that
// of the copy.
uint32_t CopyWithCrc32c(std::span<const std::byte> data, std::byte* out);

// The table-driven forms, on any CPU.
uint32_t ExtendCrc32cPortable(uint32_t crc, std::span<const std::byte> data);
uint32_t CopyWithCrc32cPortable(std::span<const std::byte> data, std::byte* out);

}  // namespace infllm::memstore
