#include "memstore/crc32c.h"

#include <array>
#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace infllm::memstore {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // 0x1edc6f41 with its bits reversed

// kTables[k][b]: the checksum register after byte b and then k zero bytes.
constexpr auto kTables = [] {
  std::array<std::array<uint32_t, 256>, 8> tables{};
  for (uint32_t b = 0; b < 256; ++b) {
    uint32_t crc = b;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? kPolynomial : 0);
    tables[0][b] = crc;
  }
  for (size_t k = 1; k < tables.size(); ++k) {
    for (size_t b = 0; b < 256; ++b) {
      const uint32_t previous = tables[k - 1][b];
      tables[k][b] = (previous >> 8) ^ tables[0][previous & 0xff];
    }
  }
  return tables;
}();

uint64_t Load64(const std::byte* p) {
  uint64_t word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

// All functions below work on the register, the complement of the checksum.
uint32_t UpdatePortable(uint32_t crc, const std::byte* p, size_t size) {
  static_assert(std::endian::native == std::endian::little);
  for (; size >= 8; p += 8, size -= 8) {
    const uint64_t word = Load64(p) ^ crc;
    crc = 0;
    for (size_t k = 0; k < 8; ++k) crc ^= kTables[7 - k][(word >> (8 * k)) & 0xff];
  }
  for (; size > 0; ++p, --size) crc = (crc >> 8) ^ kTables[0][(crc ^ uint32_t(*p)) & 0xff];
  return crc;
}

#if defined(__x86_64__)

// The CRC instruction has a latency of three cycles and a throughput of one, so three streams run
// side by side. Appending n zero bytes to a register is linear over GF(2): four table look-ups.
using ShiftTable = std::array<std::array<uint32_t, 256>, 4>;

constexpr ShiftTable MakeShiftTable(size_t zero_bytes) {
  std::array<uint32_t, 32> of_bit{};
  for (int bit = 0; bit < 32; ++bit) {
    uint32_t crc = uint32_t{1} << bit;
    for (size_t i = 0; i < zero_bytes; ++i) crc = (crc >> 8) ^ kTables[0][crc & 0xff];
    of_bit[bit] = crc;
  }
  ShiftTable table{};
  for (int k = 0; k < 4; ++k) {
    for (uint32_t b = 0; b < 256; ++b) {
      for (int bit = 0; bit < 8; ++bit) {
        if (b >> bit & 1) table[k][b] ^= of_bit[8 * k + bit];
      }
    }
  }
  return table;
}

uint32_t Shift(const ShiftTable& table, uint32_t crc) {
  return table[0][crc & 0xff] ^ table[1][crc >> 8 & 0xff] ^ table[2][crc >> 16 & 0xff] ^
         table[3][crc >> 24];
}

// Bytes per stream: long ones make the joining cheap, short ones serve the rest of a block.
constexpr size_t kLong = 4096;
constexpr size_t kShort = 256;

template <size_t kStream>
__attribute__((target("sse4.2"))) void UpdateStreams(uint64_t& crc, const std::byte*& p,
                                                     size_t& size, const ShiftTable& shift) {
  while (size >= 3 * kStream) {
    uint64_t second = 0, third = 0;
    for (const std::byte* end = p + kStream; p < end; p += 8) {
      crc = _mm_crc32_u64(crc, Load64(p));
      second = _mm_crc32_u64(second, Load64(p + kStream));
      third = _mm_crc32_u64(third, Load64(p + 2 * kStream));
    }
    crc = Shift(shift, static_cast<uint32_t>(crc)) ^ second;
    crc = Shift(shift, static_cast<uint32_t>(crc)) ^ third;
    p += 2 * kStream;
    size -= 3 * kStream;
  }
}

__attribute__((target("sse4.2"))) uint32_t UpdateSse42(uint32_t register_value, const std::byte* p,
                                                       size_t size) {
  static const ShiftTable long_shift = MakeShiftTable(kLong);
  static const ShiftTable short_shift = MakeShiftTable(kShort);
  uint64_t crc = register_value;
  UpdateStreams<kLong>(crc, p, size, long_shift);
  UpdateStreams<kShort>(crc, p, size, short_shift);
  for (; size >= 8; p += 8, size -= 8) crc = _mm_crc32_u64(crc, Load64(p));
  for (; size > 0; ++p, --size) crc = _mm_crc32_u8(static_cast<uint32_t>(crc), uint8_t(*p));
  return static_cast<uint32_t>(crc);
}

#endif

using UpdateFunction = uint32_t (*)(uint32_t, const std::byte*, size_t);

UpdateFunction PickUpdate() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("sse4.2")) return &UpdateSse42;
#endif
  return &UpdatePortable;
}

}  // namespace

uint32_t ExtendCrc32c(uint32_t crc, std::span<const std::byte> data) {
  static const UpdateFunction update = PickUpdate();
  return ~update(~crc, data.data(), data.size());
}

uint32_t ExtendCrc32cPortable(uint32_t crc, std::span<const std::byte> data) {
  return ~UpdatePortable(~crc, data.data(), data.size());
}

}  // namespace infllm::memstore
