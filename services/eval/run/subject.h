// Who is evaluated: a model in this process under one attention policy, or a served endpoint.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/eval/report/record.h"
#include "services/eval/tasks/sample.h"

namespace infllm::services {

struct Answer {
  std::string output;
  int64_t text_tokens = 0;
  double seconds = 0;
  std::optional<Retrieval> retrieval;  // absent if the subject cannot tell
  int64_t cache_hits = 0;
  int64_t cache_misses = 0;
  int64_t miss_bytes = 0;
};
struct Reading {
  int64_t tokens_read = 0;
  double seconds = 0;
  int64_t ram_bytes = 0;   // keys, values and representatives after it, in memory
  int64_t cold_bytes = 0;  // and on disk
};

struct SubjectEvents {
  // A sample's text has been read, as far as the subject can tell. Answers to its questions follow,
  // in order; samples may come in any.
  std::function<absl::Status(size_t sample, const Reading&)> on_read;
  std::function<absl::Status(size_t sample, size_t question, const Answer&)> on_answer;
  // A sample could not be read or answered to its end. Answers told before stand. Absent: such an
  // error ends Ask().
  std::function<void(size_t sample, const absl::Status& error)> on_error;
  // Tokens read so far, of how many that these samples need in all.
  std::function<void(int64_t done, int64_t total)> on_progress;
};

// Not thread-safe.
class Subject {
 public:
  virtual ~Subject() = default;
  virtual int64_t CountTokens(std::string_view text) const = 0;
  // Why a text of `tokens` cannot be read here (time or memory), or nothing.
  virtual std::optional<std::string> CannotRead(int64_t tokens) const = 0;
  // Reads each sample's text and asks its questions, greedily. Samples that begin alike may share
  // the reading of what they have in common. A sample for which memory, disk or a server's context
  // is too small (RESOURCE_EXHAUSTED), or of which a block is damaged (DATA_LOSS), goes to
  // on_error, and the others go on.
  //   CANCELLED  *cancel became true
  //   and the errors of on_read and on_answer, and any other of reading and answering
  virtual absl::Status Ask(std::span<const Sample> samples, const SubjectEvents& events,
                           const std::atomic<bool>* cancel) = 0;
  // Reads the first tokens of a text and tells the negative log-likelihood of each but the first.
  // UNIMPLEMENTED where the subject cannot tell.
  virtual absl::StatusOr<Reading> Perplexity(
      std::string_view text, int64_t most_tokens,
      const std::function<void(int64_t position, double nll)>& visit,
      const std::function<void(int64_t done, int64_t total)>& progress,
      const std::atomic<bool>* cancel) = 0;
};

}  // namespace infllm::services
