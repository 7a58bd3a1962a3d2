#include "worker/tokenizer/vocabulary.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/status_macros.h"

namespace infllm::worker {
namespace {

// Some converters add this piece besides <0x00>; the library ignores it, and so do we.
constexpr std::string_view kNullPiece("\0", 1);

constexpr std::string_view kHexDigits = "0123456789ABCDEF";

// The byte of "<0x41>"; nothing if `text` is not written exactly like that.
std::optional<uint8_t> ParseBytePiece(std::string_view text) {
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return std::nullopt;
  const size_t high = kHexDigits.find(text[3]);
  const size_t low = kHexDigits.find(text[4]);
  if (high == std::string_view::npos || low == std::string_view::npos) return std::nullopt;
  return static_cast<uint8_t>(high * 16 + low);
}

absl::Status PieceError(int32_t id, std::string_view text, const std::string& what) {
  return absl::InvalidArgumentError(
      absl::StrCat("piece ", id, " \"", std::string(text), "\": ", what));
}

}  // namespace

absl::StatusOr<Vocabulary> Vocabulary::Create(ModelProto model) {
  Vocabulary vocabulary;
  vocabulary.pieces_ = std::move(model.pieces);
  vocabulary.unk_surface_ = std::move(model.unk_surface);
  if (model.byte_fallback) vocabulary.byte_ids_.emplace().fill(kNoId);
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    INFLLM_RETURN_IF_ERROR(vocabulary.AddPiece(id, model.byte_fallback));
  }

  if (vocabulary.unk_id_ == kNoId && !model.byte_fallback) {
    return absl::InvalidArgumentError("there is neither an unknown piece nor byte_fallback");
  }
  if (vocabulary.byte_ids_.has_value()) {
    for (int byte = 0; byte < 256; ++byte) {
      if ((*vocabulary.byte_ids_)[byte] != kNoId) continue;
      return absl::InvalidArgumentError(
          absl::StrFormat("byte_fallback is set, and the byte piece <0x%02X> is missing", byte));
    }
  }
  // The BPE model of the library has one table for both kinds.
  if (model.model_type == ModelType::kBpe) {
    for (const auto& [text, id] : vocabulary.reserved_) {
      if (vocabulary.FindMatchable(text) == kNoId) continue;
      return PieceError(id, text, "it is in the vocabulary twice");
    }
  }

  const auto find_control = [&vocabulary](const std::string& text) {
    const auto found = vocabulary.reserved_.find(text);
    if (found == vocabulary.reserved_.end()) return kNoId;
    return vocabulary.piece(found->second).type == PieceType::kControl ? found->second : kNoId;
  };
  vocabulary.bos_id_ = find_control(model.bos_piece);
  vocabulary.eos_id_ = find_control(model.eos_piece);

  std::vector<ByteTrie::Entry> user_defined;
  for (const auto& [text, id] : vocabulary.matchable_) {
    if (vocabulary.piece(id).type == PieceType::kUserDefined) user_defined.emplace_back(text, id);
  }
  vocabulary.user_defined_ = ByteTrie(std::move(user_defined));
  return vocabulary;
}

absl::Status Vocabulary::AddPiece(int32_t id, bool byte_fallback) {
  Piece& piece = pieces_[static_cast<size_t>(id)];
  if (piece.text == kNullPiece && (byte_fallback || piece.type == PieceType::kUnused)) {
    piece.type = PieceType::kUnused;
    return absl::OkStatus();
  }
  if (piece.text.find('\0') != std::string::npos) {
    return PieceError(id, piece.text, "it contains a NUL character");
  }
  switch (piece.type) {
    case PieceType::kNormal:
    case PieceType::kUserDefined:
    case PieceType::kUnused:
      if (!matchable_.emplace(piece.text, id).second) {
        return PieceError(id, piece.text, "it is in the vocabulary twice");
      }
      return absl::OkStatus();
    case PieceType::kUnknown:
      if (unk_id_ != kNoId) {
        return PieceError(id, piece.text, absl::StrCat("piece ", unk_id_, " is unknown already"));
      }
      unk_id_ = id;
      break;
    case PieceType::kByte: {
      const std::optional<uint8_t> byte = ParseBytePiece(piece.text);
      if (!byte.has_value()) return PieceError(id, piece.text, "not a byte piece as <0x41> is one");
      if (!byte_ids_.has_value()) {
        return PieceError(id, piece.text, "a byte piece, and byte_fallback is not set");
      }
      (*byte_ids_)[*byte] = id;
      break;
    }
    case PieceType::kControl:
      break;
  }
  if (!reserved_.emplace(piece.text, id).second) {
    return PieceError(id, piece.text, "it is in the vocabulary twice");
  }
  return absl::OkStatus();
}

int32_t Vocabulary::FindMatchable(std::string_view text) const {
  const auto found = matchable_.find(text);
  return found == matchable_.end() ? kNoId : found->second;
}

char Vocabulary::ByteOf(int32_t id) const {
  return static_cast<char>(*ParseBytePiece(piece(id).text));
}

void Vocabulary::AppendUnknown(std::string_view text, std::vector<int32_t>& ids) const {
  if (byte_ids_.has_value()) {
    for (const char byte : text) ids.push_back((*byte_ids_)[static_cast<uint8_t>(byte)]);
  } else if (ids.empty() || ids.back() != unk_id_) {
    ids.push_back(unk_id_);
  }
}

}  // namespace infllm::worker
