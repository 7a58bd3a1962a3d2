// From bytes of a text to its tokens.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "services/eval/tasks/sample.h"
#include "worker/tokenizer/tokenizer.h"

namespace infllm::services {

// Tokens [begin, end) of a text.
struct TokenRange {
  int64_t begin = 0;
  int64_t end = 0;
  friend bool operator==(const TokenRange&, const TokenRange&) = default;
};

// The tokens that hold each of `ranges`, which lie in `text`; `ids` are the tokens of the whole
// text, BOS included if it has one. Encodes the text at most once, however many ranges there are.
std::vector<TokenRange> LocateTokens(const worker::Tokenizer& tokenizer,
                                     std::span<const int32_t> ids, std::string_view text,
                                     std::span<const TextRange> ranges);

// The tokens of `text` as they are where it follows `before`: a tokenizer that puts a space before
// every text does not put one between the two. Equal to the end of the tokens of both in one
// unless a token spans the seam.
std::vector<int32_t> EncodeContinuation(const worker::Tokenizer& tokenizer, std::string_view before,
                                        std::string_view text);

}  // namespace infllm::services
