#include "memstore/crc32c.h"

#include <algorithm>
#include <numeric>
#include <string_view>
#include <vector>

#include "gmock/gmock.h"
#include "tests/memstore/test_blocks.h"

namespace infllm::memstore {
namespace {

std::span<const std::byte> AsBytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// RFC 3720 B.4, and the check value of the CRC catalogue.
TEST(Crc32c, KnownAnswers) {
  const std::vector<std::byte> zeros(32), ones(32, std::byte{0xff});
  std::vector<uint8_t> up(32);
  std::iota(up.begin(), up.end(), uint8_t{0});
  const std::vector<uint8_t> down(up.rbegin(), up.rend());
  for (const auto extend : {&ExtendCrc32c, &ExtendCrc32cPortable}) {
    EXPECT_EQ(extend(0, {}), 0u);
    EXPECT_EQ(extend(0, AsBytes("123456789")), 0xe3069283u);
    EXPECT_EQ(extend(0, AsBytes("a")), 0xc1d04330u);
    EXPECT_EQ(extend(0, zeros), 0x8a9136aau);
    EXPECT_EQ(extend(0, ones), 0x62a8ab43u);
    EXPECT_EQ(extend(0, std::as_bytes(std::span(up))), 0x46dd794eu);
    EXPECT_EQ(extend(0, std::as_bytes(std::span(down))), 0x113fdb5cu);
  }
}

// All the ways through the streams of the fast form, at odd sizes and addresses.
TEST(Crc32c, FastFormEqualsPortable) {
  const std::vector<std::byte> data = Payloads(0, 0, 20);
  for (const size_t size : {0, 1, 7, 8, 9, 255, 256, 767, 768, 769, 4096, 12287, 12288, 12289,
                            13056, 24576, 40000, 65536}) {
    for (const size_t offset : {0, 1, 3, 8}) {
      const auto bytes = std::span(data).subspan(offset, size);
      ASSERT_EQ(Crc32c(bytes), ExtendCrc32cPortable(0, bytes)) << size << " at " << offset;
    }
  }
}

TEST(Crc32c, ExtendingIsAppending) {
  const std::vector<std::byte> data = Payloads(0, 1, 10);
  const std::span<const std::byte> all(data);
  for (const size_t split : {size_t{0}, size_t{1}, size_t{1000}, size_t{20001}, all.size()}) {
    EXPECT_EQ(ExtendCrc32c(Crc32c(all.first(split)), all.subspan(split)), Crc32c(all));
  }
}

// At odd sizes and addresses on both sides, and nothing is written beside.
TEST(Crc32c, CopyingIsCopyingAndChecking) {
  const std::vector<std::byte> data = Payloads(0, 2, 17);
  for (const auto copy : {&CopyWithCrc32c, &CopyWithCrc32cPortable}) {
    for (const size_t size : {0, 1, 7, 8, 9, 767, 768, 4096, 12287, 12288, 12290, 40000, 65536}) {
      for (const size_t offset : {0, 1, 3, 8}) {
        const auto bytes = std::span(data).subspan(offset, size);
        std::vector<std::byte> out(size + 16, std::byte{0x5a});
        ASSERT_EQ(copy(bytes, out.data() + 8 - offset), Crc32c(bytes)) << size << " at " << offset;
        std::vector<std::byte> expected(size + 16, std::byte{0x5a});
        std::copy(bytes.begin(), bytes.end(), expected.begin() + 8 - offset);
        ASSERT_EQ(out, expected) << size << " at " << offset;
      }
    }
  }
}

}  // namespace
}  // namespace infllm::memstore
