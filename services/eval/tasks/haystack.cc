#include "services/eval/tasks/haystack.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>
namespace infllm::services {
namespace {

// How far from the wanted place a better kind of boundary is looked for. Text without sentences
// (code, tables) is cut at white space, and text without that between two characters.
constexpr size_t kReach = 4096;

bool IsSpace(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }
bool IsWithinCharacter(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

std::string_view Strip(std::string_view text) {
  while (!text.empty() && IsSpace(text.front())) text.remove_prefix(1);
  while (!text.empty() && IsSpace(text.back())) text.remove_suffix(1);
  return text;
}

// Whether a sentence ends with the last byte of `text`, which is no white space.
bool EndsSentence(std::string_view text) {
  constexpr std::string_view kClosers[] = {"\"", "'", ")", "]", "*", "_", "\u201D", "\u2019"};
  constexpr std::string_view kStops[] = {".", "!", "?", "\u2026"};
  const auto ends_with = [&](std::string_view suffix) { return text.ends_with(suffix); };
  for (int closers = 0; closers < 3; ++closers) {
    const auto* const closer = std::find_if(std::begin(kClosers), std::end(kClosers), ends_with);
    if (closer == std::end(kClosers)) break;
    text.remove_suffix(closer->size());
  }
  return std::any_of(std::begin(kStops), std::end(kStops), ends_with);
}

// Chinese and Japanese sentences follow each other without a space.
bool EndsWideSentence(std::string_view text) {
  constexpr std::string_view kStops[] = {"\u3002", "\uFF01", "\uFF1F"};
  return std::any_of(std::begin(kStops), std::end(kStops),
                     [&](std::string_view stop) { return text.ends_with(stop); });
}

// Whether a sentence or a paragraph begins at `at`.
bool IsSentenceStart(std::string_view text, size_t at) {
  if (EndsWideSentence(text.substr(0, at))) return true;
  if (!IsSpace(text[at - 1]) || IsSpace(text[at])) return false;
  size_t end = at;
  int newlines = 0;
  while (end > 0 && IsSpace(text[end - 1])) newlines += text[--end] == '\n';
  return newlines > 1 || EndsSentence(text.substr(0, end));
}

bool IsWordStart(std::string_view text, size_t at) {
  return IsSpace(text[at - 1]) && !IsSpace(text[at]);
}

bool IsCharacterStart(std::string_view text, size_t at) { return !IsWithinCharacter(text[at]); }

// Whether something may be put before byte `at`, 0 < at < text.size().
using IsStart = bool (*)(std::string_view text, size_t at);

// The best kind of place first.
std::array<IsStart, 3> Starts(bool lines) {
  constexpr IsStart kIsLineStart = [](std::string_view text, size_t at) {
    return text[at - 1] == '\n';
  };
  return {lines ? kIsLineStart : IsSentenceStart, IsWordStart, IsCharacterStart};
}

size_t BoundaryNear(std::string_view hay, size_t wanted, bool lines) {
  if (wanted == 0 || wanted >= hay.size()) return std::min(wanted, hay.size());
  for (const IsStart is_start : Starts(lines)) {
    for (size_t distance = 0; distance <= kReach; ++distance) {
      if (distance == wanted) return 0;
      if (is_start(hay, wanted - distance)) return wanted - distance;
      const size_t after = wanted + distance;
      if (after == hay.size() || is_start(hay, after)) return after;
    }
  }
  return wanted;  // not UTF-8
}

}  // namespace

Haystack::Haystack(std::shared_ptr<const std::string> text, bool lines)
    : shared_(std::move(text)), text_(Strip(*shared_)), lines_(lines) {}

Haystack Haystack::Noise() {
  return Haystack(std::make_shared<const std::string>(kNoiseLine), /*lines=*/true);
}

Haystack Haystack::Of(std::shared_ptr<const std::string> text) {
  if (text == nullptr || Strip(*text).empty()) return Noise();
  return Haystack(std::move(text), /*lines=*/false);
}

std::string Haystack::Take(int64_t bytes) const {
  if (bytes <= 0) return {};
  const auto most = static_cast<size_t>(bytes);
  const std::string_view gap = lines_ ? "\n" : "\n\n";
  std::string hay;
  hay.reserve(most + 1);  // the byte after a boundary tells whether it is one
  while (hay.size() <= most) {
    if (!hay.empty()) hay += gap;
    if (hay.size() <= most) hay += text_.substr(0, most + 1 - hay.size());
  }
  hay.resize(most + 1);
  const auto cut = [&]() -> size_t {
    for (const IsStart is_start : Starts(lines_)) {
      for (size_t distance = 0; distance <= kReach; ++distance) {
        if (distance == most) return 0;
        if (is_start(hay, most - distance)) return most - distance;
      }
    }
    return most;  // not UTF-8
  };
  hay.resize(Strip(std::string_view(hay).substr(0, cut())).size());
  return hay;
}

HiddenText Haystack::Hide(std::string_view before, std::string_view hay,
                          std::span<const Statement> statements) const {
  std::vector<size_t> order(statements.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::vector<size_t> places;
  size_t statement_bytes = 0;
  for (const Statement& statement : statements) {
    const double wanted = statement.depth * static_cast<double>(hay.size());
    places.push_back(BoundaryNear(hay, static_cast<size_t>(std::max(0.0, wanted)), lines_));
    statement_bytes += statement.text.size() + 2;
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return places[a] < places[b]; });

  const char gap = lines_ ? '\n' : ' ';
  HiddenText hidden;
  hidden.text.reserve(before.size() + hay.size() + statement_bytes);
  hidden.text = before;
  hidden.places.resize(statements.size());
  size_t copied = 0;  // bytes of `hay`
  for (const size_t i : order) {
    hidden.text += hay.substr(copied, places[i] - copied);
    copied = places[i];
    if (hidden.text.size() > before.size() && !IsSpace(hidden.text.back())) hidden.text += gap;
    hidden.places[i].begin = static_cast<int64_t>(hidden.text.size());
    hidden.text += statements[i].text;
    hidden.places[i].end = static_cast<int64_t>(hidden.text.size());
    if (copied < hay.size()) hidden.text += gap;
  }
  hidden.text += hay.substr(copied);
  return hidden;
}

}  // namespace infllm::services
