// Writes the bytes of small SentencePiece models, sound and broken ones.
#pragma once

#include <bit>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

namespace infllm::worker {

inline std::string Varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes + static_cast<char>(value);
}

inline std::string Uint32(uint32_t value) {
  std::string bytes;
  for (int i = 0; i < 4; ++i) bytes += static_cast<char>(value >> (8 * i));
  return bytes;
}

// Fields of wire types 0, 2 and 5.
inline std::string IntField(uint64_t number, uint64_t value) {
  return Varint(number << 3) + Varint(value);
}
inline std::string BytesField(uint64_t number, std::string_view value) {
  return Varint(number << 3 | 2) + Varint(value.size()) + std::string(value);
}
inline std::string FloatField(uint64_t number, float value) {
  return Varint(number << 3 | 5) + Uint32(std::bit_cast<uint32_t>(value));
}

// Types of pieces and models, as in sentencepiece_model.proto.
enum : int { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };
enum : int { kUnigramModel = 1, kBpeModel = 2, kWordModel = 3, kCharModel = 4 };

inline std::string PieceField(std::string_view text, float score, int type) {
  return BytesField(
      1, BytesField(1, text) + FloatField(2, score) + IntField(3, static_cast<uint64_t>(type)));
}
inline std::string TrainerField(std::string_view fields) { return BytesField(2, fields); }
inline std::string NormalizerField(std::string_view fields) { return BytesField(3, fields); }
inline std::string ModelTypeField(int type) { return IntField(3, static_cast<uint64_t>(type)); }
inline std::string ByteFallbackField() { return IntField(35, 1); }

// <unk> and control pieces <s> and </s>: ids 0, 1, 2.
inline std::string SpecialPieces() {
  return PieceField("<unk>", 0, kUnknown) + PieceField("<s>", 0, kControl) +
         PieceField("</s>", 0, kControl);
}

inline std::string BytePieces() {
  std::string fields;
  for (int byte = 0; byte < 256; ++byte) {
    char text[8];
    std::snprintf(text, sizeof(text), "<0x%02X>", byte);
    fields += PieceField(text, 0, kByte);
  }
  return fields;
}

}  // namespace infllm::worker
