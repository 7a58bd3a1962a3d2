// What an evaluation asks: a long text, and questions about it with their right answers.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace infllm::services {

// How an output is compared with the right answers. All give a score in [0, 1].
enum class Metric : uint8_t {
  kFirstDigits,   // the first run of digits equals the answer (InfiniteBench passkey)
  kFirstInteger,  // the first integer, a sign included, equals the answer (Math.Find)
  kWordMatch,  // newline : " ' . , ? ! { } become spaces; a word equals the answer (KV retrieval)
  kAllSubstrings,  // share of the answers that the lower-cased output contains (RULER niah, vt,
                   // ...)
  kAnySubstring,   // whether it contains one of them, lower-cased (RULER qa, bAbI)
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
  double depth = -1;                // of the first evidence, 0 at the start, 1 at the end; -1: none
  std::string label;                // what is asked for, for reports: the key's name
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
