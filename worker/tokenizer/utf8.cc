#include "worker/tokenizer/utf8.h"

#include <cstdint>

namespace infllm::worker {
namespace {

uint8_t ByteAt(std::string_view text, size_t i) { return static_cast<uint8_t>(text[i]); }

bool IsTrail(uint8_t byte) { return (byte & 0xC0) == 0x80; }

// By the lead byte alone; 0 for bytes that lead no character.
size_t LengthFromLead(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;  // a trail byte, or an overlong form of ASCII
  if (lead < 0xE0) return 2;
  if (lead < 0xF0) return 3;
  return lead < 0xF5 ? 4 : 0;
}

}  // namespace

size_t Utf8CharacterLength(std::string_view text) {
  if (text.empty()) return 0;
  const uint8_t lead = ByteAt(text, 0);
  const size_t length = LengthFromLead(lead);
  if (length <= 1) return length;
  if (text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if (!IsTrail(ByteAt(text, i))) return 0;
  }
  const uint8_t second = ByteAt(text, 1);
  if (lead == 0xE0 && second < 0xA0) return 0;   // overlong
  if (lead == 0xED && second >= 0xA0) return 0;  // surrogate
  if (lead == 0xF0 && second < 0x90) return 0;   // overlong
  if (lead == 0xF4 && second >= 0x90) return 0;  // above U+10FFFF
  return length;
}

bool IsValidUtf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = Utf8CharacterLength(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

bool MayBecomeUtf8Character(std::string_view bytes) {
  if (bytes.empty()) return true;
  if (bytes.size() >= LengthFromLead(ByteAt(bytes, 0))) return false;
  for (const char byte : bytes.substr(1)) {
    if (!IsTrail(static_cast<uint8_t>(byte))) return false;
  }
  return true;
}

CodePoint FirstCodePoint(std::string_view text) {
  const uint8_t lead = ByteAt(text, 0);
  if (lead < 0x80) return {.value = lead, .length = 1};
  const size_t length = LengthFromLead(lead);
  char32_t value = lead & (0x7F >> length);
  for (size_t i = 1; i < length; ++i) value = (value << 6) | (ByteAt(text, i) & 0x3F);
  return {.value = value, .length = length};
}

}  // namespace infllm::worker
