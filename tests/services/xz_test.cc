#include "services/common/xz.h"

#include <lzma.h>

#include "tests/support/status_matchers.h"

namespace infllm::services {
namespace {

using ::infllm::testing::StatusIs;
using ::testing::HasSubstr;

std::string Pack(const std::string& text) {
  std::string packed(lzma_stream_buffer_bound(text.size()), '\0');
  size_t size = 0;
  EXPECT_EQ(lzma_easy_buffer_encode(
                1, LZMA_CHECK_CRC64, nullptr, reinterpret_cast<const uint8_t*>(text.data()),
                text.size(), reinterpret_cast<uint8_t*>(packed.data()), &size, packed.size()),
            LZMA_OK);
  packed.resize(size);
  return packed;
}

TEST(XzTest, UnpacksWhatWasPacked) {
  for (const size_t size : {0, 1, 1000, 5000000}) {
    std::string text(size, 'x');
    for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>((i * i) >> 7);
    const std::string packed = Pack(text);
    EXPECT_TRUE(IsXz(packed));
    ASSERT_OK_AND_ASSIGN(const std::string unpacked, UnpackXz(packed));
    EXPECT_EQ(unpacked, text);
  }
  ASSERT_OK_AND_ASSIGN(const std::string both, UnpackXz(Pack("one ") + Pack("two")));
  EXPECT_EQ(both, "one two");
  EXPECT_FALSE(IsXz("plain text"));
  EXPECT_FALSE(IsXz(""));
}

TEST(XzTest, DamageIsFound) {
  const std::string packed = Pack(std::string(1000, 'a') + "some text");
  for (size_t size = 0; size < packed.size(); ++size) {
    EXPECT_THAT(UnpackXz(packed.substr(0, size)), StatusIs(absl::StatusCode::kDataLoss)) << size;
  }
  for (size_t i = 0; i < packed.size(); ++i) {
    std::string bad = packed;
    bad[i] = static_cast<char>(bad[i] ^ 0x10);
    EXPECT_THAT(UnpackXz(bad), StatusIs(absl::StatusCode::kDataLoss)) << i;
  }
  EXPECT_THAT(UnpackXz("plain text"), StatusIs(absl::StatusCode::kDataLoss));
}

TEST(XzTest, ASmallArchiveCannotFillTheMemory) {
  const std::string packed = Pack(std::string(4 << 20, '\0'));
  EXPECT_LT(packed.size(), 10000u);
  EXPECT_OK(UnpackXz(packed, 4 << 20));
  EXPECT_THAT(UnpackXz(packed, (4 << 20) - 1),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("more than 4 MiB")));
}

}  // namespace
}  // namespace infllm::services
