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

// Loads a Word from p + at; where the data is copied, too, stores it at out + at.
template <typename Word, bool kCopy>
inline Word Take(const std::byte* p, std::byte* out, size_t at) {
  Word word;
  std::memcpy(&word, p + at, sizeof(word));
  if constexpr (kCopy) std::memcpy(out + at, &word, sizeof(word));
  return word;
}

// All functions below work on the register, the complement of the checksum. `out` is not used
// unless kCopy.
template <bool kCopy>
uint32_t UpdatePortable(uint32_t crc, const std::byte* p, size_t size, std::byte* out) {
  static_assert(std::endian::native == std::endian::little);
  size_t at = 0;
  for (; at + 8 <= size; at += 8) {
    const uint64_t word = Take<uint64_t, kCopy>(p, out, at) ^ crc;
    crc = 0;
    for (size_t k = 0; k < 8; ++k) crc ^= kTables[7 - k][(word >> (8 * k)) & 0xff];
  }
  for (; at < size; ++at) {
    crc = (crc >> 8) ^ kTables[0][(crc ^ Take<uint8_t, kCopy>(p, out, at)) & 0xff];
  }
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

template <size_t kStream, bool kCopy>
__attribute__((target("sse4.2"))) void UpdateStreams(uint64_t& crc, const std::byte* p, size_t size,
                                                     std::byte* out, size_t& at,
                                                     const ShiftTable& shift) {
  while (size - at >= 3 * kStream) {
    uint64_t second = 0, third = 0;
    for (const size_t end = at + kStream; at < end; at += 8) {
      crc = _mm_crc32_u64(crc, Take<uint64_t, kCopy>(p, out, at));
      second = _mm_crc32_u64(second, Take<uint64_t, kCopy>(p, out, at + kStream));
      third = _mm_crc32_u64(third, Take<uint64_t, kCopy>(p, out, at + 2 * kStream));
    }
    crc = Shift(shift, static_cast<uint32_t>(crc)) ^ second;
    crc = Shift(shift, static_cast<uint32_t>(crc)) ^ third;
    at += 2 * kStream;
  }
}

template <bool kCopy>
__attribute__((target("sse4.2"))) uint32_t UpdateSse42(uint32_t register_value, const std::byte* p,
                                                       size_t size, std::byte* out) {
  static const ShiftTable long_shift = MakeShiftTable(kLong);
  static const ShiftTable short_shift = MakeShiftTable(kShort);
  uint64_t crc = register_value;
  size_t at = 0;
  UpdateStreams<kLong, kCopy>(crc, p, size, out, at, long_shift);
  UpdateStreams<kShort, kCopy>(crc, p, size, out, at, short_shift);
  for (; at + 8 <= size; at += 8) crc = _mm_crc32_u64(crc, Take<uint64_t, kCopy>(p, out, at));
  for (; at < size; ++at) {
    crc = _mm_crc32_u8(static_cast<uint32_t>(crc), Take<uint8_t, kCopy>(p, out, at));
  }
  return static_cast<uint32_t>(crc);
}

#endif

using UpdateFunction = uint32_t (*)(uint32_t, const std::byte*, size_t, std::byte*);

template <bool kCopy>
UpdateFunction PickUpdate() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("sse4.2")) return &UpdateSse42<kCopy>;
#endif
  return &UpdatePortable<kCopy>;
}

}  // namespace

uint32_t ExtendCrc32c(uint32_t crc, std::span<const std::byte> data) {
  static const UpdateFunction update = PickUpdate<false>();
  return ~update(~crc, data.data(), data.size(), nullptr);
}

uint32_t CopyWithCrc32c(std::span<const std::byte> data, std::byte* out) {
  static const UpdateFunction update = PickUpdate<true>();
  return ~update(~uint32_t{0}, data.data(), data.size(), out);
}

uint32_t ExtendCrc32cPortable(uint32_t crc, std::span<const std::byte> data) {
  return ~UpdatePortable<false>(~crc, data.data(), data.size(), nullptr);
}

uint32_t CopyWithCrc32cPortable(std::span<const std::byte> data, std::byte* out) {
  return ~UpdatePortable<true>(~uint32_t{0}, data.data(), data.size(), out);
}

}  // namespace infllm::memstore
