// The tasks that `infllm eval` knows, each generated on the spot from a seed or read from a file.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/eval/tasks/sample.h"

namespace infllm::services {

struct TaskRequest {
  int64_t length = 0;          // most tokens of text, question and answer together
  std::vector<double> depths;  // in [0, 1]; of tasks with has_depths(), which choose if it is empty
  int64_t samples = 1;         // per length and depth; per length where depths do not apply
  // Keys hidden in one text, each asked; 0: the task's own number. Of multikey and, where `depths`
  // is empty, of needle and kv-retrieval.
  int64_t needles = 0;
  uint64_t seed = 1;
  // Running text to hide needles in, repeated as needed. Empty: the noise line, or what the task
  // is defined with. Shared: it may be many megabytes.
  std::shared_ptr<const std::string> haystack;
  std::string data_file;  // of tasks with needs_file(): JSON lines, gzip or plain
  // Tokens of a text in the model's tokenizer (an estimate for an endpoint).
  std::function<int64_t(std::string_view)> count_tokens;
};

// Immutable, thread-safe. The same request gives the same samples on every machine.
class Task {
 public:
  virtual ~Task() = default;
  virtual std::string_view name() const = 0;
  virtual std::string_view summary() const = 0;  // one line, for --help
  virtual bool has_depths() const { return false; }
  virtual bool needs_file() const { return false; }
  // INVALID_ARGUMENT names the field, its value and the limit, e.g. a length in which the needles
  // do not fit; NOT_FOUND or DATA_LOSS a bad file.
  virtual absl::StatusOr<std::vector<Sample>> Make(const TaskRequest& request) const = 0;
};

// All tasks, in the order of the help.
std::span<const Task* const> Tasks();
// NOT_FOUND lists the names.
absl::StatusOr<const Task*> FindTask(std::string_view name);

}  // namespace infllm::services
