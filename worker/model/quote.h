// Text from a file, made fit for an error message.
#pragma once

#include <string>
#include <string_view>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace infllm::worker {

// `text` without control characters or quotes that could fake another message, and not for pages.
inline std::string Escape(std::string_view text, size_t max_bytes) {
  const std::string_view head = text.substr(0, max_bytes);
  return absl::StrCat(absl::Utf8SafeCHexEscape({head.data(), head.size()}),
                      head.size() < text.size() ? "..." : "");
}

inline std::string Quote(std::string_view text) {
  return absl::StrCat("\"", Escape(text, 100), "\"");
}

}  // namespace infllm::worker
