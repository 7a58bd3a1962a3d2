#include "services/eval/tasks/fit.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"

namespace infllm::services {
namespace {

// A length is met when fewer tokens than this are left, or a part in a thousand of it: a sentence
// is longer than the first, and each try at the second costs a tokenisation of the text.
constexpr int64_t kSlackTokens = 8;
constexpr int64_t kSlackPart = 1000;
constexpr int kMostTries = 12;

class Fitter {
 public:
  Fitter(const TaskRequest& request, std::string_view task, const SizeRange& sizes,
         const BuildSample& build)
      : request_(request), task_(task), sizes_(sizes), build_(build) {}

  absl::StatusOr<std::vector<Sample>> Fit(int64_t count) {
    Sample first = build_(0, sizes_.smallest);
    smallest_tokens_ = TotalTokens(request_, first);
    if (smallest_tokens_ > request_.length) return TooShort(smallest_tokens_);
    int64_t size = LargestThatFits();
    std::vector<Sample> samples;
    int restarts = 0;
    while (static_cast<int64_t>(samples.size()) < count) {
      const auto index = static_cast<int64_t>(samples.size());
      Sample sample = build_(index, size);
      const int64_t tokens = TotalTokens(request_, sample);
      if (tokens <= request_.length) {
        samples.push_back(std::move(sample));
        continue;
      }
      // This one's statements are longer than those of the first. All shall share one haystack.
      if (size == sizes_.smallest) return TooShort(tokens);
      const int64_t back = BackOff(tokens - request_.length, restarts++);
      size = std::max(sizes_.smallest, size - back);
      samples.clear();
    }
    return samples;
  }

 private:
  absl::Status TooShort(int64_t tokens) const {
    return absl::InvalidArgumentError(absl::StrFormat(
        "length %d is too short for %s: without any filler its text, question and answer take %d "
        "tokens",
        request_.length, std::string(task_), tokens));
  }

  // Takes the density of text between two sizes that were tried for that of all.
  void MeasureDensity(int64_t size, int64_t tokens, int64_t larger_size, int64_t larger_tokens) {
    if (larger_tokens <= tokens) return;
    tokens_per_unit_ =
        static_cast<double>(larger_tokens - tokens) / static_cast<double>(larger_size - size);
  }

  // Units to go back by from a sample `excess` tokens too long. Texts are cut at whole sentences,
  // so a little less may change nothing: each try in a row goes further.
  int64_t BackOff(int64_t excess, int tries_in_a_row) const {
    const double tokens =
        static_cast<double>(excess + (kSlackTokens << std::min(tries_in_a_row, 30)));
    return 1 + static_cast<int64_t>(tokens / tokens_per_unit_);
  }

  // Of the first sample, between a size known to fit and one known not to. Each try is where the
  // density between what was tried puts the length.
  int64_t LargestThatFits() {
    const int64_t slack = std::max(kSlackTokens, request_.length / kSlackPart);
    int64_t fits = sizes_.smallest;
    int64_t fits_tokens = smallest_tokens_;
    int64_t too_large = sizes_.largest + 1;
    int64_t too_large_tokens = 0;  // unknown
    int64_t next = fits + sizes_.step;
    int too_large_in_a_row = 0;
    for (int i = 0; i < kMostTries && too_large - fits > 1; ++i) {
      next = std::clamp(next, fits + 1, too_large - 1);
      const int64_t tokens = TotalTokens(request_, build_(0, next));
      MeasureDensity(fits, fits_tokens, next, tokens);
      if (tokens > request_.length) {
        too_large = next;
        too_large_tokens = tokens;
        next = too_large - BackOff(tokens - request_.length, too_large_in_a_row++);
      } else {
        fits = next;
        fits_tokens = tokens;
        too_large_in_a_row = 0;
        if (request_.length - tokens <= slack) break;
        if (too_large_tokens > 0) MeasureDensity(fits, tokens, too_large, too_large_tokens);
        // Aims within the slack, so that a density a little too low does not overshoot.
        const double wanted =
            static_cast<double>(request_.length - tokens) - 0.4 * static_cast<double>(slack);
        next = fits + 1 + static_cast<int64_t>(std::min(wanted / tokens_per_unit_, 0x1p52));
      }
      const bool outside = next <= fits || (too_large_tokens > 0 && next >= too_large);
      if (outside) next = fits + (too_large - fits) / 2;
    }
    return fits;
  }

  const TaskRequest& request_;
  const std::string_view task_;
  const SizeRange sizes_;
  const BuildSample& build_;
  int64_t smallest_tokens_ = 0;
  double tokens_per_unit_ = 0.1;  // until measured
};

}  // namespace

int64_t TotalTokens(const TaskRequest& request, const Sample& sample) {
  int64_t prompt = 0;
  for (const Question& question : sample.questions) {
    prompt = std::max(prompt, request.count_tokens(question.prompt));
  }
  return request.count_tokens(sample.text) + prompt + sample.max_new_tokens;
}

absl::StatusOr<std::vector<Sample>> FitSamples(const TaskRequest& request, std::string_view task,
                                               int64_t count, const SizeRange& sizes,
                                               const BuildSample& build) {
  return Fitter(request, task, sizes, build).Fit(count);
}

}  // namespace infllm::services
