// What an evaluation writes down: one JSON object a line, so that a run can be resumed and
// reported.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace infllm::services {

// Task of the ingests and skips of perplexity runs, whose results are PerplexityRecords.
inline constexpr std::string_view kPerplexityTask = "perplexity";

// Whether the memory found what was asked for, apart from what the model made of it.
struct Retrieval {
  bool in_window = false;  // the evidence was in the window when the answer began
  // That selected a block of the evidence while answering; none unless each passage of it that had
  // left the window was selected by some layer.
  std::vector<int32_t> layers;
  int64_t best_rank = 0;  // among the selected blocks, 1 is best; 0: never selected
  // Share of the answer's tokens for which some layer had selected a block of the evidence. To copy
  // a number it must be selected for each digit, not once.
  double kept = 0;
  bool hit() const { return in_window || !layers.empty(); }
  friend bool operator==(const Retrieval&, const Retrieval&) = default;
};

// One question answered.
struct AnswerRecord {
  std::string config;  // name of the policy and its options: "infllm/head-vote"
  std::string task;
  int64_t length = 0;
  std::string sample;  // Sample::id
  int32_t question = 0;
  std::string label;
  double depth = -1;
  std::string output;
  std::vector<std::string> answers;
  double score = 0;  // [0, 1]
  int64_t text_tokens = 0;
  double seconds = 0;  // from the question to the end of the answer
  std::optional<Retrieval> retrieval;
  int64_t cache_hits = 0;    // blocks selected while answering that were in the block cache
  int64_t cache_misses = 0;  // and that came from the memory store
  int64_t miss_bytes = 0;    // payload of the misses
};

// Mean negative log-likelihood of the tokens at positions [begin, end) of a text.
struct PerplexityRecord {
  std::string config;
  std::string text;  // name of the text
  int64_t length = 0;
  int64_t begin = 0;
  int64_t end = 0;
  double mean_nll = 0;  // nats per token; what is not finite is written as null and read as NaN
};

// Reading of one text by one configuration.
struct IngestRecord {
  std::string config;
  std::string task;
  int64_t length = 0;
  std::string sample;
  int64_t tokens_read = 0;  // less than the text where a prefix was shared with another sample
  double seconds = 0;
  int64_t ram_bytes = 0;  // of the store after it
  int64_t cold_bytes = 0;
  int64_t peak_rss_bytes = 0;
};

// A configuration that could not be run at a length, and why: also a result.
struct SkipRecord {
  std::string config;
  std::string task;
  int64_t length = 0;
  std::string reason;
};

struct Records {
  std::vector<AnswerRecord> answers;
  std::vector<PerplexityRecord> perplexities;
  std::vector<IngestRecord> ingests;
  std::vector<SkipRecord> skips;
};

// One line, without the newline. Bytes that are no UTF-8 become U+FFFD; all else reads back as it
// was. REQUIRES: numbers within the ranges that ParseRecords() accepts.
std::string ToJsonLine(const AnswerRecord& record);
std::string ToJsonLine(const PerplexityRecord& record);
std::string ToJsonLine(const IngestRecord& record);
std::string ToJsonLine(const SkipRecord& record);
// Blank lines and fields with other names are skipped. A last line cut short (the run was killed)
// is dropped: before appending to such a file, cut it after its last newline.
//   DATA_LOSS  any other bad line: its number, the field and what it must be
absl::StatusOr<Records> ParseRecords(std::string_view lines);

}  // namespace infllm::services
