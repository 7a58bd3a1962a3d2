#pragma once

#include <string_view>

#include "absl/status/status.h"

namespace infllm::worker {

// Files of models nest a handful of levels. The JSON library copies, compares and prints values by
// recursion, so that a deep one would overflow the stack: every reader of JSON that a user brings
// checks the text with this before it parses it.
inline constexpr int kMaxJsonDepth = 64;

//   INVALID_ARGUMENT  objects and arrays are nested deeper than kMaxJsonDepth
// Whether `text` is valid JSON at all is left to the parser.
absl::Status CheckJsonDepth(std::string_view text);

}  // namespace infllm::worker
