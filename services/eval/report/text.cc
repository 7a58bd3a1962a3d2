#include "services/eval/report/text.h"

#include <cctype>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "worker/tokenizer/utf8.h"

namespace infllm::services {
namespace {

// Calls visit(character) for each; U+FFFD for what a document may not hold. Line ends are "\n".
template <typename Visit>
void ForEachCharacter(std::string_view text, Visit visit) {
  while (!text.empty()) {
    const size_t length = worker::Utf8CharacterLength(text);
    if (length == 0) {
      visit(worker::kReplacementCharacter);
      text.remove_prefix(1);
      continue;
    }
    const char32_t code = worker::FirstCodePoint(text.substr(0, length)).value;
    const bool is_space = code == '\t' || code == '\n' || code == '\r';
    if (text.starts_with("\r\n")) {
      visit(std::string_view("\n"));
      text.remove_prefix(2);
      continue;
    }
    if (code == '\r') {
      visit(std::string_view("\n"));
    } else if ((code < 0x20 && !is_space) || (code >= 0x7F && code < 0xA0) ||
               (code & 0xFFFE) == 0xFFFE) {
      visit(worker::kReplacementCharacter);
    } else {
      visit(text.substr(0, length));
    }
    text.remove_prefix(length);
  }
}

bool IsWordCharacter(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || (c & 0x80) != 0;
}

}  // namespace

std::string FormatLength(int64_t tokens) {
  constexpr int64_t kK = 1024, kM = kK * kK;
  // Multiples of both 1000 and 1024 are written out: 128,000 tokens are not known as 125K.
  if (tokens > 0 && tokens % 1000 != 0) {
    if (tokens % kM == 0) return absl::StrCat(tokens / kM, "M");
    if (tokens % kK == 0) return absl::StrCat(tokens / kK, "K");
  }
  return FormatCount(static_cast<double>(tokens));
}

std::string FormatCount(double value) {
  std::string digits = absl::StrFormat("%.0f", value);
  const size_t first = digits.starts_with('-') ? 1 : 0;
  for (size_t end = digits.size(); end > first + 3; end -= 3) digits.insert(end - 3, ",");
  return digits;
}

std::string FormatPercent(double share) {
  const std::string percent = absl::StrFormat("%.1f", 100 * share);
  return percent == "100.0" ? "100" : percent;
}

std::string FormatPerplexity(double mean_nll) {
  constexpr double kMost = 1e9;
  if (std::isnan(mean_nll)) return "not a number";
  if (mean_nll > std::log(kMost)) return "> 1e9";
  const double perplexity = std::exp(mean_nll);
  return perplexity < 1000 ? absl::StrFormat("%.2f", perplexity) : FormatCount(perplexity);
}

std::string Shorten(std::string_view text, size_t most) {
  std::string head;
  size_t characters = 0, keep = 0;
  ForEachCharacter(text, [&](std::string_view character) {
    if (++characters > most) return;
    if (characters == most) keep = head.size();
    head += character;
  });
  if (characters <= most) return head;
  return head.substr(0, keep) + "…";
}

std::string EscapeXml(std::string_view text) {
  std::string escaped;
  ForEachCharacter(text, [&](std::string_view character) {
    switch (character.front()) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\'':
        escaped += "&#39;";
        break;
      default:
        escaped += character;
    }
  });
  return escaped;
}

std::string EscapeMarkdown(std::string_view text) {
  constexpr std::string_view kMarkup = "\\`*[]|~$#";
  std::string clean;
  ForEachCharacter(text, [&](std::string_view character) {
    clean += character == "\n" || character == "\t" ? std::string_view(" ") : character;
  });
  std::string escaped;
  for (size_t i = 0; i < clean.size(); ++i) {
    const char c = clean[i];
    if (c == '&') {
      escaped += "&amp;";
    } else if (c == '<') {
      escaped += "&lt;";
    } else if (c == '>') {
      escaped += "&gt;";
    } else {
      // Inside of a word, as in niah_single_1, an underscore is no markup.
      const bool in_word = i > 0 && i + 1 < clean.size() && IsWordCharacter(clean[i - 1]) &&
                           IsWordCharacter(clean[i + 1]);
      if (kMarkup.find(c) != std::string_view::npos || (c == '_' && !in_word)) escaped += '\\';
      escaped += c;
    }
  }
  return escaped;
}

}  // namespace infllm::services
