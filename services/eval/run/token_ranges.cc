#include "services/eval/run/token_ranges.h"

#include <algorithm>
#include <memory>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace infllm::services {
namespace {

bool ContinuesCharacter(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

// Characters that are no spaces: tokenizers add spaces and drop them, the rest they keep.
int64_t CountCharacters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char byte) {
    return !ContinuesCharacter(byte) && !absl::ascii_isspace(static_cast<unsigned char>(byte));
  });
}

}  // namespace

std::vector<TokenRange> LocateTokens(const worker::Tokenizer& tokenizer,
                                     std::span<const int32_t> ids, std::string_view text,
                                     std::span<const TextRange> ranges) {
  if (ranges.empty()) return {};
  std::vector<int64_t> characters;  // up to the end of each token
  std::vector<bool> silent;         // tokens that only begin a character, or are none
  characters.reserve(ids.size());
  silent.reserve(ids.size());
  const std::unique_ptr<worker::StreamDecoder> decoder = tokenizer.NewStreamDecoder(false);
  for (const int32_t id : ids) {
    const std::string piece = decoder->Add(id);
    silent.push_back(piece.empty());
    characters.push_back((characters.empty() ? 0 : characters.back()) + CountCharacters(piece));
  }
  const int64_t decoded =
      (characters.empty() ? 0 : characters.back()) + CountCharacters(decoder->Finish());

  std::vector<int64_t> cuts;
  for (const TextRange& range : ranges) cuts.insert(cuts.end(), {range.begin, range.end});
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  // A normaliser may replace one character by several (an ellipsis by three dots): then what counts
  // is what it makes of each part.
  const bool verbatim = decoded == CountCharacters(text);
  std::vector<int64_t> characters_before;  // each cut
  int64_t at = 0, count = 0;
  for (const int64_t cut : cuts) {
    const std::string_view part =
        text.substr(static_cast<size_t>(at), static_cast<size_t>(cut - at));
    count += CountCharacters(verbatim ? part : tokenizer.Decode(tokenizer.Encode(part)));
    characters_before.push_back(count);
    at = cut;
  }
  const auto before = [&](int64_t cut) {
    return characters_before[static_cast<size_t>(std::lower_bound(cuts.begin(), cuts.end(), cut) -
                                                 cuts.begin())];
  };

  std::vector<TokenRange> result;
  for (const TextRange& range : ranges) {
    auto begin = std::upper_bound(characters.begin(), characters.end(), before(range.begin));
    const auto last = std::lower_bound(begin, characters.end(), before(range.end));
    while (begin != characters.begin() &&
           silent[static_cast<size_t>(begin - characters.begin()) - 1]) {
      --begin;
    }
    result.push_back({.begin = begin - characters.begin(),
                      .end = last - characters.begin() + (last == characters.end() ? 0 : 1)});
  }
  return result;
}

std::vector<int32_t> EncodeContinuation(const worker::Tokenizer& tokenizer, std::string_view before,
                                        std::string_view text) {
  constexpr size_t kTailBytes = 32;  // more than any token that could span the seam is likely to be
  size_t at = before.size() - std::min(before.size(), kTailBytes);
  while (at < before.size() && ContinuesCharacter(before[at])) ++at;
  const std::string tail(before.substr(at));
  const std::vector<int32_t> head = tokenizer.Encode(tail);
  std::vector<int32_t> both = tokenizer.Encode(absl::StrCat(tail, std::string(text)));
  if (both.size() < head.size() || !std::equal(head.begin(), head.end(), both.begin())) {
    return tokenizer.Encode(text);
  }
  both.erase(both.begin(), both.begin() + static_cast<std::ptrdiff_t>(head.size()));
  return both;
}

}  // namespace infllm::services
