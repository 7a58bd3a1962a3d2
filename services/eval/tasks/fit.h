// Makes samples as long as they may be.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "services/eval/tasks/sample.h"
#include "services/eval/tasks/task.h"

namespace infllm::services {

// A sample's size is what its task can grow it by: bytes of haystack, lines, pairs, words. Tokens
// must not fall as it grows.
struct SizeRange {
  int64_t smallest = 0;
  int64_t largest = 0;
  int64_t step = 1;  // about a thousand tokens: the first guess
};
using BuildSample = std::function<Sample(int64_t index, int64_t size)>;

// Tokens of the text, of its longest question, and of an answer.
int64_t TotalTokens(const TaskRequest& request, const Sample& sample);

// `count` samples of one size: the largest, nearly, at which none has more than request.length
// tokens in all. The text is tokenised a few times for the first sample and once for each other.
// INVALID_ARGUMENT if the smallest is too long already.
absl::StatusOr<std::vector<Sample>> FitSamples(const TaskRequest& request, std::string_view task,
                                               int64_t count, const SizeRange& sizes,
                                               const BuildSample& build);

}  // namespace infllm::services
