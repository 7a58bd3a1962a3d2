// The content of a SentencePiece `tokenizer.model`, as far as encoding and decoding depend on it.
// Field numbers and defaults are those of sentencepiece_model.proto.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace infllm::worker {

// U+2581, which stands for a space in pieces and in normalised text.
inline constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";

// Far above any real model (the largest known has 902,000 pieces in 18 MB); they bound what a
// hostile file can make us allocate.
inline constexpr size_t kMaxModelBytes = size_t{32} << 20;
inline constexpr size_t kMaxPieces = size_t{2} << 20;
inline constexpr size_t kMaxPieceBytes = 8000 - 1;  // the library's limit

enum class PieceType : uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

enum class ModelType : uint8_t { kUnigram = 1, kBpe = 2 };

struct Piece {
  std::string text;  // 1 to kMaxPieceBytes bytes of valid UTF-8
  float score = 0;   // finite
  PieceType type = PieceType::kNormal;
};

struct NormalizerSpec {
  std::string precompiled_charsmap;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

struct ModelProto {
  std::vector<Piece> pieces;  // by id
  NormalizerSpec normalizer;
  // From the trainer's spec:
  ModelType model_type = ModelType::kUnigram;
  bool byte_fallback = false;
  bool treat_whitespace_as_suffix = false;
  std::string bos_piece = "<s>";
  std::string eos_piece = "</s>";
  std::string unk_surface = " \xE2\x81\x87 ";  // what an unknown piece decodes to
};

// Fields that do not bear on encoding or decoding are skipped, a repeated field counts as protobuf
// says: messages merge, of scalars the last wins.
//   INVALID_ARGUMENT  malformed bytes, a limit above is exceeded, or a feature that is not
//   supported
absl::StatusOr<ModelProto> ParseModelProto(std::string_view bytes);

}  // namespace infllm::worker
