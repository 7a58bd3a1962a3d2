// The published scorers: OpenBMB/InfiniteBench src/compute_scores.py, NVIDIA/RULER
// scripts/eval/synthetic/constants.py, booydar/babilong babilong/babilong_utils.py.
#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/status_macros.h"
#include "services/eval/tasks/sample.h"

namespace infllm::services {
namespace {

constexpr std::string_view kDigits = "0123456789";

// The scorers lower-case Unicode, but every answer that a task gives is ASCII.
std::string Lower(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return lower;
}

// The first run of digits; empty if there is none.
std::string_view FirstDigits(std::string_view text) {
  const size_t begin = text.find_first_of(kDigits);
  if (begin == std::string_view::npos) return {};
  const std::string_view rest = text.substr(begin);
  return rest.substr(0, rest.find_first_not_of(kDigits));
}

std::string_view WithoutLeadingZeros(std::string_view digits) {
  const size_t zeros = digits.find_first_not_of('0');
  if (zeros == std::string_view::npos) return digits.substr(0, digits.empty() ? 0 : 1);
  return digits.substr(zeros);
}

// re.search(r"\d+\.\d+|\d+") as an integer, of ASCII digits; empty if there is none, or if it is a
// fraction.
std::string_view FirstInteger(std::string_view text) {
  const std::string_view digits = FirstDigits(text);
  if (digits.empty()) return {};
  const std::string_view after = text.substr(digits.data() + digits.size() - text.data());
  const bool fraction =
      after.size() >= 2 && after[0] == '.' && kDigits.find(after[1]) != kDigits.npos;
  return fraction ? std::string_view() : WithoutLeadingZeros(digits);
}

// Bytes of the white space that `text` starts with, as Python's str.split() sees it; 0 if none.
size_t LeadingSpace(std::string_view text) {
  const auto c = static_cast<unsigned char>(text[0]);
  if (c == ' ' || (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x1F)) return 1;
  // U+0085, U+00A0, U+1680, U+2000..200A, U+2028, U+2029, U+202F, U+205F, U+3000.
  static constexpr std::array<std::string_view, 19> kSpaces = {
      "\xC2\x85",     "\xC2\xA0",     "\xE1\x9A\x80", "\xE2\x80\x80", "\xE2\x80\x81",
      "\xE2\x80\x82", "\xE2\x80\x83", "\xE2\x80\x84", "\xE2\x80\x85", "\xE2\x80\x86",
      "\xE2\x80\x87", "\xE2\x80\x88", "\xE2\x80\x89", "\xE2\x80\x8A", "\xE2\x80\xA8",
      "\xE2\x80\xA9", "\xE2\x80\xAF", "\xE2\x81\x9F", "\xE3\x80\x80"};
  for (const std::string_view space : kSpaces) {
    if (text.starts_with(space)) return space.size();
  }
  return 0;
}

bool HasWord(std::string_view text, std::string_view word) {
  constexpr std::string_view kPunctuation = "\n:\"'.,?!{}";
  size_t begin = 0;  // of the word being read
  size_t at = 0;
  while (at < text.size()) {
    const size_t separator =
        kPunctuation.find(text[at]) != kPunctuation.npos ? 1 : LeadingSpace(text.substr(at));
    if (separator == 0) {
      ++at;
      continue;
    }
    if (at > begin && text.substr(begin, at - begin) == word) return true;
    at += separator;
    begin = at;
  }
  return at > begin && text.substr(begin) == word;
}

// Up to the first full stop, and to where a model starts to make up a further example.
std::string_view FirstSentence(std::string_view lower) {
  for (const std::string_view end : {".", "<context>", "<example>"}) {
    lower = lower.substr(0, lower.find(end));
  }
  return lower;
}

}  // namespace

double Score(Metric metric, std::string_view output, const std::vector<std::string>& answers) {
  const std::string lower = Lower(output);
  const auto right = [&](const std::string& answer) {
    switch (metric) {
      case Metric::kFirstDigits:
        return !answer.empty() && answer == FirstDigits(output);
      case Metric::kFirstInteger:
        return !answer.empty() && WithoutLeadingZeros(answer) == FirstInteger(output);
      case Metric::kWordMatch:
        return HasWord(output, answer);
      case Metric::kAllSubstrings:
      case Metric::kAnySubstring:
        return lower.find(Lower(answer)) != std::string::npos;
      case Metric::kFirstSentence:
        return FirstSentence(lower).find(Lower(answer)) != std::string_view::npos;
    }
    INFLLM_CHECK(false);
  };
  const auto count = std::count_if(answers.begin(), answers.end(), right);
  if (metric != Metric::kAllSubstrings) return count > 0 ? 1 : 0;
  return answers.empty() ? 0 : static_cast<double>(count) / static_cast<double>(answers.size());
}

}  // namespace infllm::services
