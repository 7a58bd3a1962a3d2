#include "worker/tokenizer/stream_decoder.h"

#include <string_view>

#include "worker/tokenizer/model_proto.h"
#include "worker/tokenizer/utf8.h"

namespace infllm::worker {

std::string SentencePieceStreamDecoder::Add(int32_t token) {
  std::string text;
  const bool is_known = token >= 0 && token < vocabulary_.size();
  if (is_known && vocabulary_.piece(token).type == PieceType::kByte) {
    bytes_ += vocabulary_.ByteOf(token);
    TakeBytes(/*more_may_follow=*/true, text);
  } else {
    TakeBytes(/*more_may_follow=*/false, text);
    if (!text.empty()) at_start_ = false;
    if (is_known) {
      AppendPiece(token, text);
    } else {
      text += vocabulary_.unk_surface();
    }
  }
  if (!text.empty()) at_start_ = false;
  return text;
}

std::string SentencePieceStreamDecoder::Finish() {
  std::string text;
  TakeBytes(/*more_may_follow=*/false, text);
  if (!text.empty()) at_start_ = false;
  return text;
}

void SentencePieceStreamDecoder::TakeBytes(bool more_may_follow, std::string& text) {
  std::string_view bytes = bytes_;
  while (!bytes.empty()) {
    const size_t length = Utf8CharacterLength(bytes);
    if (length == 0 && more_may_follow && MayBecomeUtf8Character(bytes)) break;
    text += length == 0 ? kReplacementCharacter : bytes.substr(0, length);
    bytes.remove_prefix(length == 0 ? 1 : length);
  }
  bytes_.erase(0, bytes_.size() - bytes.size());
}

void SentencePieceStreamDecoder::AppendPiece(int32_t token, std::string& text) {
  const Piece& piece = vocabulary_.piece(token);
  if (piece.type == PieceType::kControl) return;
  std::string_view rest = piece.text;
  if (at_start_ && (rule_.drop_first || rule_.drop_all) && rest.starts_with(kSpaceSymbol)) {
    rest.remove_prefix(kSpaceSymbol.size());
    if (!rule_.drop_all) at_start_ = false;
  }
  if (piece.type == PieceType::kUnknown) {
    text += vocabulary_.unk_surface();
    return;
  }
  for (size_t found = rest.find(kSpaceSymbol); found != std::string_view::npos;
       found = rest.find(kSpaceSymbol)) {
    text += rest.substr(0, found);
    text += ' ';
    rest.remove_prefix(found + kSpaceSymbol.size());
  }
  text += rest;
}

}  // namespace infllm::worker
