// What an evaluation asks: a long text, and questions about it with their right answers.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace infllm::services {

// How an output is compared with the right answers, as the published scorers do. All give a score
// in [0, 1]; but for kAllSubstrings it is 1 if one of the answers is met.
enum class Metric : uint8_t {
  kFirstDigits,    // the first run of digits is the answer, as a string (InfiniteBench passkey)
  kFirstInteger,   // the first number equals the answer: 007 is 7, 7.5 is not; no sign (Math.Find)
  kWordMatch,      // newline : " ' . , ? ! { } become spaces; a word is the answer (KV retrieval)
  kAllSubstrings,  // share of the answers that the lower-cased output contains (RULER niah, vt...)
  kAnySubstring,   // the lower-cased output contains the answer (lost-in-the-middle KV)
  kFirstSentence,  // the output's first sentence, lower-cased, contains the answer (BABILong)
};
double Score(Metric metric, std::string_view output, const std::vector<std::string>& answers);

// Bytes [begin, end) of Sample::text.
struct TextRange {
  int64_t begin = 0;
  int64_t end = 0;
};

struct Question {
  std::string prompt;  // follows the text; ends with the answer's prefix where the task has one
  std::vector<std::string> answers;
  std::vector<TextRange> evidence;  // where the text gives the answer; empty if not in one place
  double depth = -1;  // wanted, else of the first evidence; 0: start of the text, 1: end, -1: none
  std::string label;  // what is asked for, for reports: the key's name
};

// Read once; each question is asked of a fork of what was read.
struct Sample {
  std::string id;  // unique within (task, length, seed)
  std::string text;
  std::vector<Question> questions;
  Metric metric = Metric::kAllSubstrings;
  int64_t max_new_tokens = 32;
};

}  // namespace infllm::services
