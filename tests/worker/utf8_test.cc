#include "worker/tokenizer/utf8.h"

#include <cstdint>
#include <string>

#include "gtest/gtest.h"

namespace infllm::worker {
namespace {

bool IsScalar(char32_t value) { return value < 0xD800 || (value > 0xDFFF && value <= 0x10FFFF); }

// By the definition, without the shortcuts of the code under test: 2 to 4 bytes that spell `value`.
std::string Spell(char32_t value, int bytes) {
  constexpr int kLead[] = {0, 0, 0xC0, 0xE0, 0xF0};
  std::string text(static_cast<size_t>(bytes), '\0');
  for (int i = bytes - 1; i > 0; --i, value >>= 6)
    text[i] = static_cast<char>(0x80 | (value & 0x3F));
  text[0] = static_cast<char>(kLead[bytes] | value);
  return text;
}

TEST(Utf8, AcceptsExactlyTheShortestFormOfScalarValues) {
  for (char32_t value = 0; value < 0x200000; ++value) {
    const int shortest = value < 0x80 ? 1 : value < 0x800 ? 2 : value < 0x10000 ? 3 : 4;
    for (int bytes = 2; bytes <= 4; ++bytes) {
      if (value >> (bytes == 2 ? 11 : bytes == 3 ? 16 : 21) != 0) continue;
      const std::string text = Spell(value, bytes);
      const bool valid = bytes == shortest && IsScalar(value);
      ASSERT_EQ(Utf8CharacterLength(text), valid ? bytes : 0) << uint32_t{value} << " in " << bytes;
      if (!valid) continue;
      ASSERT_EQ(FirstCodePoint(text).value, value);
      ASSERT_EQ(FirstCodePoint(text).length, bytes);
      for (int cut = 1; cut < bytes; ++cut) {
        const std::string_view part = std::string_view(text).substr(0, cut);
        ASSERT_EQ(Utf8CharacterLength(part), 0);
        ASSERT_TRUE(MayBecomeUtf8Character(part));
      }
    }
  }
}

TEST(Utf8, KnowsWhatNoByteCanComplete) {
  for (const char* text :
       {"\x80", "\xC0", "\xC1", "\xF5", "\xFF", "a", "\xC3(", "\xE2\x96(", "\xE2("}) {
    EXPECT_FALSE(MayBecomeUtf8Character(text)) << text;
  }
  EXPECT_TRUE(MayBecomeUtf8Character(""));
}

TEST(Utf8, ValidatesWholeTexts) {
  EXPECT_TRUE(IsValidUtf8(""));
  EXPECT_TRUE(IsValidUtf8(std::string("a\0\u00E9\u65E5\U0001F600", 11)));
  EXPECT_FALSE(IsValidUtf8("a\xE2\x96"));
  EXPECT_FALSE(IsValidUtf8("\xED\xA0\x80"));
}

}  // namespace
}  // namespace infllm::worker
