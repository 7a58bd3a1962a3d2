#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

#include "worker/tokenizer/charsmap.h"
#include "worker/tokenizer/vocabulary.h"

namespace infllm::worker {

struct NormalizerOptions {
  bool add_dummy_prefix = true;
  bool dummy_is_suffix = false;  // the dummy space goes to the end of the text
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;  // a space becomes kSpaceSymbol
};

// Brings a text into the form that a model segments: replacement rules, spaces, dummy prefix.
// Immutable, thread-safe.
class Normalizer {
 public:
  // `vocabulary` must outlive the normaliser; its user-defined pieces are exempt from the rules.
  Normalizer(const NormalizerOptions& options, Charsmap charsmap, const Vocabulary& vocabulary)
      : options_(options), charsmap_(std::move(charsmap)), vocabulary_(vocabulary) {}

  // Any bytes in, valid UTF-8 out: a byte that belongs to no character becomes U+FFFD.
  std::string Normalize(std::string_view text) const;

 private:
  // What the first `length` bytes of a text become.
  struct Step {
    std::string_view replacement;
    size_t length;
  };
  Step FirstStep(std::string_view text) const;

  const NormalizerOptions options_;
  const Charsmap charsmap_;
  const Vocabulary& vocabulary_;
};

}  // namespace infllm::worker
