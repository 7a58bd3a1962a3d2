#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "worker/tokenizer/byte_trie.h"
#include "worker/tokenizer/model_proto.h"

namespace infllm::worker {

// The pieces of a model with the look-ups that encoding and decoding need. A piece is either
// *matchable* (normal, user-defined, unused): text can become it; or reserved (control, unknown,
// byte): it never matches text, even text that is spelt like it. Immutable, thread-safe.
class Vocabulary {
 public:
  static constexpr int32_t kNoId = -1;

  //   INVALID_ARGUMENT  a piece is there twice, two are unknown, or byte pieces do not fit
  //                     byte_fallback
  static absl::StatusOr<Vocabulary> Create(ModelProto model);
  // A copy's tables would borrow from the original.
  Vocabulary(const Vocabulary&) = delete;
  Vocabulary& operator=(const Vocabulary&) = delete;
  Vocabulary(Vocabulary&&) = default;
  Vocabulary& operator=(Vocabulary&&) = default;

  int32_t size() const { return static_cast<int32_t>(pieces_.size()); }
  const Piece& piece(int32_t id) const { return pieces_[static_cast<size_t>(id)]; }
  int32_t unk_id() const { return unk_id_; }  // kNoId only with byte fallback
  // kNoId where the model's spec names no control piece of the vocabulary.
  int32_t bos_id() const { return bos_id_; }
  int32_t eos_id() const { return eos_id_; }
  const std::string& unk_surface() const { return unk_surface_; }

  // The matchable piece with this text, or kNoId.
  int32_t FindMatchable(std::string_view text) const;
  // The byte that a byte piece stands for. REQUIRES: piece(id).type is kByte.
  char ByteOf(int32_t id) const;

  // User-defined pieces are cut out of a text before anything else is done to it. Bytes of the
  // longest one that `text` starts with, 0 if none.
  size_t UserDefinedPrefix(std::string_view text) const {
    return user_defined_.empty() ? 0 : LongestMatch(user_defined_, text, kMaxUserDefinedMatches);
  }

  // Appends the ids of a stretch of text that has no piece: byte pieces with byte fallback; without
  // it the unknown id, once for a run of such stretches.
  void AppendUnknown(std::string_view text, std::vector<int32_t>& ids) const;

 private:
  static constexpr size_t kMaxUserDefinedMatches = 64;

  Vocabulary() = default;
  absl::Status AddPiece(int32_t id, bool byte_fallback);

  std::vector<Piece> pieces_;
  // Keys borrow from pieces_.
  absl::flat_hash_map<std::string_view, int32_t> matchable_;
  absl::flat_hash_map<std::string_view, int32_t> reserved_;
  ByteTrie user_defined_;
  std::optional<std::array<int32_t, 256>> byte_ids_;  // with byte fallback
  int32_t unk_id_ = kNoId;
  int32_t bos_id_ = kNoId;
  int32_t eos_id_ = kNoId;
  std::string unk_surface_;
};

}  // namespace infllm::worker
