#include "worker/tokenizer/charsmap.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "worker/tokenizer/utf8.h"

namespace infllm::worker {
namespace {

// The library looks at this many of the matching rules, shortest first.
constexpr size_t kMaxMatches = 32;

// A unit of a double-array trie as Darts-clone writes it. A node's children lie at
// node ^ Offset(node) ^ byte, its value, if it has one, at node ^ Offset(node).
bool HasLeaf(uint32_t unit) { return ((unit >> 8) & 1) != 0; }
bool IsLeaf(uint32_t unit) { return (unit >> 31) != 0; }
uint32_t Value(uint32_t leaf) { return leaf & 0x7FFFFFFF; }
// The byte that leads to the unit; of a leaf it equals no byte.
uint32_t Label(uint32_t unit) { return unit & 0x800000FF; }
size_t Offset(uint32_t unit) { return size_t{unit >> 10} << ((unit & 0x200) >> 6); }

uint32_t ReadUint32(std::string_view bytes) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) {
    value |= static_cast<uint32_t>(static_cast<uint8_t>(bytes[i])) << (8 * i);
  }
  return value;
}

}  // namespace

absl::StatusOr<Charsmap> Charsmap::Parse(std::string_view blob) {
  Charsmap map;
  if (blob.empty()) return map;
  constexpr size_t kHeaderBytes = 4;
  // The children of a node share a block of 256 units.
  constexpr size_t kBlockBytes = 256 * 4;
  if (blob.size() <= kHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("precompiled_charsmap has ", blob.size(), " bytes, too few for its header"));
  }
  const size_t trie_bytes = ReadUint32(blob);
  blob.remove_prefix(kHeaderBytes);
  if (trie_bytes == 0 || trie_bytes % kBlockBytes != 0 || trie_bytes >= blob.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "precompiled_charsmap claims a trie of ", trie_bytes, " bytes where ", blob.size(),
        " bytes follow; it must be a multiple of ", kBlockBytes, " and leave some for the rules"));
  }
  map.units_.resize(trie_bytes / 4);
  for (size_t i = 0; i < map.units_.size(); ++i) map.units_[i] = ReadUint32(blob.substr(4 * i));
  map.replacements_ = blob.substr(trie_bytes);
  INFLLM_RETURN_IF_ERROR(map.CheckReplacements());
  INFLLM_RETURN_IF_ERROR(map.CheckTrie());
  return map;
}

absl::Status Charsmap::CheckReplacements() const {
  if (replacements_.back() != '\0') {
    return absl::InvalidArgumentError("the replacements of precompiled_charsmap do not end in NUL");
  }
  if (!IsValidUtf8(replacements_)) {
    return absl::InvalidArgumentError(
        "the replacements of precompiled_charsmap are not valid UTF-8");
  }
  for (size_t begin = 0; begin < replacements_.size();) {
    const size_t end = replacements_.find('\0', begin);
    if (end - begin > kMaxReplacementBytes) {
      return absl::InvalidArgumentError(absl::StrCat("a replacement of precompiled_charsmap is ",
                                                     end - begin, " bytes long; the limit is ",
                                                     kMaxReplacementBytes));
    }
    begin = end + 1;
  }
  return absl::OkStatus();
}

// After this LongestMatch() needs no bounds checks: from unit 0 or any unit with a byte for a label
// all children are inside, and every leaf points to the start of a character.
absl::Status Charsmap::CheckTrie() const {
  const auto children_inside = [this](size_t node) {
    return ((node ^ Offset(units_[node])) | 0xFF) < units_.size();
  };
  if (Label(units_[0]) != 0 || HasLeaf(units_[0]) || Offset(units_[0]) == 0 ||
      !children_inside(0)) {
    return absl::InvalidArgumentError("the trie of precompiled_charsmap has a broken root");
  }
  for (size_t node = 1; node < units_.size(); ++node) {
    const uint32_t unit = units_[node];
    if (IsLeaf(unit)) {
      const size_t value = Value(unit);
      if (value >= replacements_.size() ||
          (static_cast<uint8_t>(replacements_[value]) & 0xC0) == 0x80) {
        return absl::InvalidArgumentError(
            absl::StrCat("leaf ", node, " of the trie of precompiled_charsmap points to byte ",
                         value, " of ", replacements_.size(), ", which starts no replacement"));
      }
    } else if (!children_inside(node) || (HasLeaf(unit) && !IsLeaf(units_[node ^ Offset(unit)]))) {
      return absl::InvalidArgumentError(
          absl::StrCat("node ", node, " of the trie of precompiled_charsmap points outside"));
    }
  }
  return absl::OkStatus();
}

Charsmap::Match Charsmap::LongestMatch(std::string_view text) const {
  if (units_.empty()) return {};
  Match match;
  size_t value = 0;
  size_t matches = 0;
  size_t node = Offset(units_[0]);
  for (size_t i = 0; i < text.size() && matches < kMaxMatches; ++i) {
    const uint8_t byte = static_cast<uint8_t>(text[i]);
    node ^= byte;
    const uint32_t unit = units_[node];
    if (Label(unit) != byte) break;
    node ^= Offset(unit);
    if (!HasLeaf(unit)) continue;
    value = Value(units_[node]);
    match.length = i + 1;
    ++matches;
  }
  if (match.length > 0) match.replacement = replacements_.c_str() + value;
  return match;
}

}  // namespace infllm::worker
