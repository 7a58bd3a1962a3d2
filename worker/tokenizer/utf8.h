// UTF-8, as strict as SentencePiece reads it: no overlong forms, no surrogates, nothing above
// U+10FFFF.
#pragma once

#include <cstddef>
#include <string_view>

namespace infllm::worker {

// U+FFFD: what each byte that belongs to no character reads as.
inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

// Bytes of the character that `text` starts with; 0 if it starts with none.
size_t Utf8CharacterLength(std::string_view text);

bool IsValidUtf8(std::string_view text);

// Whether `bytes`, which is no whole character, may become one when more bytes follow. May say yes
// where the next byte shows otherwise; never says no wrongly.
bool MayBecomeUtf8Character(std::string_view bytes);

// The code point that `text` starts with, and its length. REQUIRES: valid UTF-8, not empty.
struct CodePoint {
  char32_t value;
  size_t length;
};
CodePoint FirstCodePoint(std::string_view text);

}  // namespace infllm::worker
