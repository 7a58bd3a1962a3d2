#include "services/eval/report/text.h"

#include <cctype>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "services/common/progress.h"
#include "worker/tokenizer/utf8.h"

namespace infllm::services {
namespace {

// U+FFFD for what a document may not hold. Line ends are "\n".
std::string Clean(std::string_view text) {
  std::string clean;
  while (!text.empty()) {
    const size_t length = worker::Utf8CharacterLength(text);
    const char32_t code =
        length > 0 ? worker::FirstCodePoint(text.substr(0, length)).value : char32_t{0};
    if (code == '\r') {
      if (!text.starts_with("\r\n")) clean += '\n';
    } else if ((code < 0x20 && code != '\t' && code != '\n') || (code >= 0x7F && code < 0xA0) ||
               (code & 0xFFFE) == 0xFFFE) {
      clean += worker::kReplacementCharacter;
    } else {
      clean += text.substr(0, length);
    }
    text.remove_prefix(std::max<size_t>(length, 1));
  }
  return clean;
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
  return WithThousands(tokens);
}

std::string FormatNumber(double value) {
  constexpr double kMost = 1e15;
  return std::abs(value) < 100 || std::abs(value) > kMost ? absl::StrFormat("%.3g", value)
                                                          : WithThousands(std::llround(value));
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
  return perplexity < 1000 ? absl::StrFormat("%.2f", perplexity) : FormatNumber(perplexity);
}

std::string Shorten(std::string_view text, size_t most) {
  const std::string clean = Clean(text);
  size_t characters = 0, keep = 0;
  for (size_t i = 0; i < clean.size(); ++i) {
    if ((clean[i] & 0xC0) == 0x80) continue;  // inside of a character
    if (++characters == most) keep = i;
  }
  return characters <= most ? clean : clean.substr(0, keep) + "…";
}

std::string EscapeXml(std::string_view text) {
  return absl::StrReplaceAll(
      Clean(text),
      {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}, {"'", "&#39;"}});
}

std::string EscapeMarkdown(std::string_view text) {
  constexpr std::string_view kMarkup = "\\`*[]|~$#";
  const std::string clean = Clean(text);
  std::string escaped;
  for (size_t i = 0; i < clean.size(); ++i) {
    // Inside of a word, as in niah_single_1, an underscore is no markup.
    const bool in_word = i > 0 && i + 1 < clean.size() && IsWordCharacter(clean[i - 1]) &&
                         IsWordCharacter(clean[i + 1]);
    if (kMarkup.find(clean[i]) != std::string_view::npos || (clean[i] == '_' && !in_word)) {
      escaped += '\\';
    }
    escaped += clean[i];
  }
  return absl::StrReplaceAll(
      escaped, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\n", " "}, {"\t", " "}});
}

}  // namespace infllm::services
