#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace infllm::worker {

// The replacement rules of a normaliser: NormalizerSpec.precompiled_charsmap, which is
//   uint32 trie bytes | double-array trie (uint32 units, see charsmap.cc) | NUL-ended replacements
// with little-endian integers. The trie maps a character sequence to an offset in the replacements.
// Immutable, thread-safe.
class Charsmap {
 public:
  // A rule that makes more of a few bytes is refused: it would blow up a text beyond measure.
  static constexpr size_t kMaxReplacementBytes = 1024;

  // No rules.
  Charsmap() = default;
  // An empty `blob` holds no rules.
  //   INVALID_ARGUMENT  the sizes disagree, or the trie or a rule points outside
  static absl::StatusOr<Charsmap> Parse(std::string_view blob);

  // The longest rule that applies at the start of `text`.
  struct Match {
    size_t length = 0;             // bytes of `text`; 0 if no rule applies
    std::string_view replacement;  // valid UTF-8; lives as long as this object
  };
  Match LongestMatch(std::string_view text) const;

  bool empty() const { return units_.empty(); }

 private:
  absl::Status CheckTrie() const;
  absl::Status CheckReplacements() const;

  std::vector<uint32_t> units_;
  std::string replacements_;
};

}  // namespace infllm::worker
