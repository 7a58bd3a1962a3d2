#include "worker/tokenizer/model_proto.h"

#include <cmath>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "worker/tokenizer/utf8.h"
#include "worker/tokenizer/wire_reader.h"

namespace infllm::worker {
namespace {

// Field numbers of sentencepiece_model.proto.
namespace model_field {
enum : uint32_t { kPieces = 1, kTrainerSpec = 2, kNormalizerSpec = 3, kDenormalizerSpec = 5 };
}
namespace piece_field {
enum : uint32_t { kPiece = 1, kScore = 2, kType = 3 };
}
namespace trainer_field {
enum : uint32_t {
  kModelType = 3,
  kTreatWhitespaceAsSuffix = 24,
  kByteFallback = 35,
  kUnkSurface = 44,
  kBosPiece = 46,
  kEosPiece = 47,
};
}
namespace normalizer_field {
enum : uint32_t {
  kPrecompiledCharsmap = 2,
  kAddDummyPrefix = 3,
  kRemoveExtraWhitespaces = 4,
  kEscapeWhitespaces = 5,
};
}

absl::StatusOr<PieceType> ToPieceType(uint64_t value) {
  if (value < static_cast<uint64_t>(PieceType::kNormal) ||
      value > static_cast<uint64_t>(PieceType::kByte)) {
    return absl::InvalidArgumentError(
        absl::StrCat("type ", value, " is not one of the known types 1 to 6"));
  }
  return static_cast<PieceType>(value);
}

absl::StatusOr<ModelType> ToModelType(uint64_t value) {
  switch (value) {
    case 1:
      return ModelType::kUnigram;
    case 2:
      return ModelType::kBpe;
    case 3:
      return absl::InvalidArgumentError(
          "model type WORD is not supported; BPE and UNIGRAM models are");
    case 4:
      return absl::InvalidArgumentError(
          "model type CHAR is not supported; BPE and UNIGRAM models are");
    default:
      return absl::InvalidArgumentError(absl::StrCat("model type ", value, " is not known"));
  }
}

absl::Status ParsePieceFields(WireReader reader, Piece& piece) {
  while (!reader.AtEnd()) {
    INFLLM_ASSIGN_OR_RETURN(const WireField field, reader.Next());
    switch (field.number) {
      case piece_field::kPiece: {
        INFLLM_ASSIGN_OR_RETURN(const std::string_view text, field.AsBytes());
        if (text.size() > kMaxPieceBytes) {
          return absl::InvalidArgumentError(
              absl::StrCat("it is ", text.size(), " bytes long; the limit is ", kMaxPieceBytes));
        }
        piece.text = text;
        break;
      }
      case piece_field::kScore: {
        INFLLM_ASSIGN_OR_RETURN(piece.score, field.AsFloat());
        break;
      }
      case piece_field::kType: {
        INFLLM_ASSIGN_OR_RETURN(const uint64_t value, field.AsVarint());
        INFLLM_ASSIGN_OR_RETURN(piece.type, ToPieceType(value));
        break;
      }
      default:
        break;
    }
  }
  if (piece.text.empty()) return absl::InvalidArgumentError("it is empty");
  if (!IsValidUtf8(piece.text)) return absl::InvalidArgumentError("it is not valid UTF-8");
  if (!std::isfinite(piece.score)) {
    return absl::InvalidArgumentError(absl::StrCat("its score is ", piece.score));
  }
  return absl::OkStatus();
}

absl::Status ParseTrainerSpec(WireReader reader, ModelProto& model) {
  while (!reader.AtEnd()) {
    INFLLM_ASSIGN_OR_RETURN(const WireField field, reader.Next());
    switch (field.number) {
      case trainer_field::kModelType: {
        INFLLM_ASSIGN_OR_RETURN(const uint64_t value, field.AsVarint());
        INFLLM_ASSIGN_OR_RETURN(model.model_type, ToModelType(value));
        break;
      }
      case trainer_field::kTreatWhitespaceAsSuffix: {
        INFLLM_ASSIGN_OR_RETURN(model.treat_whitespace_as_suffix, field.AsBool());
        break;
      }
      case trainer_field::kByteFallback: {
        INFLLM_ASSIGN_OR_RETURN(model.byte_fallback, field.AsBool());
        break;
      }
      case trainer_field::kUnkSurface: {
        INFLLM_ASSIGN_OR_RETURN(model.unk_surface, field.AsBytes());
        if (!IsValidUtf8(model.unk_surface)) {
          return absl::InvalidArgumentError("unk_surface is not valid UTF-8");
        }
        break;
      }
      // An empty name means the default, as in the library.
      case trainer_field::kBosPiece: {
        INFLLM_ASSIGN_OR_RETURN(const std::string_view text, field.AsBytes());
        model.bos_piece = text.empty() ? "<s>" : text;
        break;
      }
      case trainer_field::kEosPiece: {
        INFLLM_ASSIGN_OR_RETURN(const std::string_view text, field.AsBytes());
        model.eos_piece = text.empty() ? "</s>" : text;
        break;
      }
      default:
        break;
    }
  }
  return absl::OkStatus();
}

absl::Status ParseNormalizerSpec(WireReader reader, NormalizerSpec& spec) {
  while (!reader.AtEnd()) {
    INFLLM_ASSIGN_OR_RETURN(const WireField field, reader.Next());
    switch (field.number) {
      case normalizer_field::kPrecompiledCharsmap: {
        INFLLM_ASSIGN_OR_RETURN(spec.precompiled_charsmap, field.AsBytes());
        break;
      }
      case normalizer_field::kAddDummyPrefix: {
        INFLLM_ASSIGN_OR_RETURN(spec.add_dummy_prefix, field.AsBool());
        break;
      }
      case normalizer_field::kRemoveExtraWhitespaces: {
        INFLLM_ASSIGN_OR_RETURN(spec.remove_extra_whitespaces, field.AsBool());
        break;
      }
      case normalizer_field::kEscapeWhitespaces: {
        INFLLM_ASSIGN_OR_RETURN(spec.escape_whitespaces, field.AsBool());
        break;
      }
      default:
        break;
    }
  }
  return absl::OkStatus();
}

absl::Status In(const std::string& part, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(part, ": ", status.message()));
}

}  // namespace

absl::StatusOr<ModelProto> ParseModelProto(std::string_view bytes) {
  if (bytes.size() > kMaxModelBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the model is ", bytes.size(), " bytes long; the limit is ", kMaxModelBytes));
  }
  ModelProto model;
  NormalizerSpec denormalizer;
  WireReader reader(bytes);
  while (!reader.AtEnd()) {
    INFLLM_ASSIGN_OR_RETURN(const WireField field, reader.Next());
    if (field.number > model_field::kDenormalizerSpec) continue;  // an extension
    INFLLM_ASSIGN_OR_RETURN(const std::string_view value, field.AsBytes());
    const WireReader message(value, field.value_position);
    switch (field.number) {
      case model_field::kPieces: {
        if (model.pieces.size() == kMaxPieces) {
          return absl::InvalidArgumentError(
              absl::StrCat("there are more than ", kMaxPieces, " pieces"));
        }
        Piece piece;
        INFLLM_RETURN_IF_ERROR(
            In(absl::StrCat("piece ", model.pieces.size()), ParsePieceFields(message, piece)));
        model.pieces.push_back(std::move(piece));
        break;
      }
      case model_field::kTrainerSpec:
        INFLLM_RETURN_IF_ERROR(In("trainer_spec", ParseTrainerSpec(message, model)));
        break;
      case model_field::kNormalizerSpec:
        INFLLM_RETURN_IF_ERROR(
            In("normalizer_spec", ParseNormalizerSpec(message, model.normalizer)));
        break;
      case model_field::kDenormalizerSpec:
        INFLLM_RETURN_IF_ERROR(In("denormalizer_spec", ParseNormalizerSpec(message, denormalizer)));
        break;
      default:
        break;
    }
  }
  if (!denormalizer.precompiled_charsmap.empty()) {
    return absl::InvalidArgumentError("denormalizer_spec holds rules, which are not supported");
  }
  if (model.pieces.empty()) {
    return absl::InvalidArgumentError("it holds no pieces; is it a SentencePiece model?");
  }
  return model;
}

}  // namespace infllm::worker
