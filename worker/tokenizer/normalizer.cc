#include "worker/tokenizer/normalizer.h"

#include "worker/tokenizer/model_proto.h"
#include "worker/tokenizer/utf8.h"

namespace infllm::worker {

std::string Normalizer::Normalize(std::string_view text) const {
  // Spaces at the start, before or after replacement. What is only spaces gets no dummy either.
  if (options_.remove_extra_whitespaces) {
    while (!text.empty()) {
      const Step step = FirstStep(text);
      if (step.replacement != " ") break;
      text.remove_prefix(step.length);
    }
  }
  std::string normalized;
  if (text.empty()) return normalized;
  normalized.reserve(text.size() + text.size() / 2);

  const std::string_view space = options_.escape_whitespaces ? kSpaceSymbol : " ";
  if (options_.add_dummy_prefix && !options_.dummy_is_suffix) normalized += space;

  bool after_space = options_.remove_extra_whitespaces;
  while (!text.empty()) {
    const Step step = FirstStep(text);
    text.remove_prefix(step.length);
    std::string_view replacement = step.replacement;
    while (after_space && replacement.starts_with(' ')) replacement.remove_prefix(1);
    if (replacement.empty()) continue;
    after_space = options_.remove_extra_whitespaces && replacement.ends_with(' ');
    for (size_t found = replacement.find(' '); found != std::string_view::npos;
         found = replacement.find(' ')) {
      normalized += replacement.substr(0, found);
      normalized += space;
      replacement.remove_prefix(found + 1);
    }
    normalized += replacement;
  }

  if (options_.remove_extra_whitespaces) {
    while (std::string_view(normalized).ends_with(space)) {
      normalized.resize(normalized.size() - space.size());
    }
  }
  if (options_.add_dummy_prefix && options_.dummy_is_suffix) normalized += space;
  return normalized;
}

Normalizer::Step Normalizer::FirstStep(std::string_view text) const {
  if (const size_t length = vocabulary_.UserDefinedPrefix(text); length > 0) {
    return {text.substr(0, length), length};
  }
  if (const Charsmap::Match match = charsmap_.LongestMatch(text); match.length > 0) {
    return {match.replacement, match.length};
  }
  const size_t length = Utf8CharacterLength(text);
  if (length == 0) return {kReplacementCharacter, 1};
  return {text.substr(0, length), length};
}

}  // namespace infllm::worker
