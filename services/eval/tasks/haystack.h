// The text that statements are hidden in.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "services/eval/tasks/sample.h"

namespace infllm::services {

// The filler of InfiniteBench and RULER, without its newline.
inline constexpr std::string_view kNoiseLine =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

struct Statement {
  std::string text;
  double depth = 0;  // 0: before the haystack, 1: after it
};

struct HiddenText {
  std::string text;
  std::vector<TextRange> places;  // of the statements, in their order
};

// Immutable. Every haystack begins alike, whatever its size, so texts are equal up to their first
// difference in statements.
class Haystack {
 public:
  // The noise line repeated, a line each.
  static Haystack Noise();
  // `text` repeated, an empty line between; noise if there is nothing but white space in it.
  // Shares the text with the caller: it may be many megabytes.
  static Haystack Of(std::shared_ptr<const std::string> text);

  // The beginning: `bytes` at most, cut back to the end of a sentence (of a line, in noise).
  std::string Take(int64_t bytes) const;

  // `hay`, from Take(), after `before`, and each statement between the two sentences (lines, in
  // noise) nearest to its depth; statements of one place stay in their order.
  HiddenText Hide(std::string_view before, std::string_view hay,
                  std::span<const Statement> statements) const;

 private:
  Haystack(std::shared_ptr<const std::string> text, bool lines);

  std::shared_ptr<const std::string> shared_;
  std::string_view text_;  // of *shared_, without white space around it
  bool lines_;             // boundaries are line ends only
};

}  // namespace infllm::services
