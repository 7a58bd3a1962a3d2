// Readers of the benchmarks' own files. None trusts what it reads: DATA_LOSS names the line and
// what is wrong with it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace infllm::services {

// A whole file, unpacked if it is gzip. NOT_FOUND, or DATA_LOSS for what cannot be unpacked or is
// larger than 1 GiB.
absl::StatusOr<std::string> ReadTaskFile(const std::string& path);

// DachengLi1/LongChat longeval lines: JSON lines with `random_idx`, `expected_number`, `prompt`.
struct LongChatRecord {
  std::string before;              // the instruction
  std::vector<std::string> lines;  // without newlines
  size_t asked = 0;                // of `lines`
  std::string name;                // of the asked line
  std::string answer;
};
absl::StatusOr<std::vector<LongChatRecord>> ParseLongChatLines(std::string_view text);

// nelson-liu/lost-in-the-middle: JSON lines with `ordered_kv_records`, `key`, `value`.
struct KeyValueRecord {
  std::vector<std::pair<std::string, std::string>> pairs;  // at least 2
  size_t asked = 0;                                        // of `pairs`
};
absl::StatusOr<std::vector<KeyValueRecord>> ParseKeyValueRecords(std::string_view text);

// bAbI: "1 John went home." lines, and "2 Where is John?\thome\t1" with the facts it rests on.
struct BabiQuestion {
  std::vector<std::string> facts;  // all of the story up to the question
  std::vector<size_t> supporting;  // of `facts`
  std::string question;
  std::string answer;
};
absl::StatusOr<std::vector<BabiQuestion>> ParseBabi(std::string_view text);

}  // namespace infllm::services
