// The directory of an evaluation: what it has found so far, line by line, and the settings that
// make it repeatable, so that a run that was cut can go on where it was.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/eval/report/record.h"

namespace infllm::services {

using Settings = std::map<std::string, std::string>;

// What results depend on, apart from what records name themselves (task, length).
struct Manifest {
  Settings settings;                               // of the whole run: seed, samples, weights
  std::map<std::string, Settings> configurations;  // by name
};

// Not thread-safe; one process at a time.
class RecordLog {
 public:
  virtual ~RecordLog() = default;

  // Makes `directory` if need be, and locks it. Records of an earlier run are kept if its settings
  // are those of `manifest`, as far as both have them, and so for each configuration; what the
  // earlier run had not is added.
  //   FAILED_PRECONDITION  settings differ (which, before and now), or another process writes there
  //   DATA_LOSS            manifest.json or records.jsonl cannot be understood
  //   and the errors of files, with the path
  static absl::StatusOr<std::unique_ptr<RecordLog>> Open(const std::string& directory,
                                                         const Manifest& manifest);

  // Those of earlier runs, and what was added.
  virtual const Records& records() const = 0;
  // On disk when the call returns.
  virtual absl::Status Add(const AnswerRecord& record) = 0;
  virtual absl::Status Add(const PerplexityRecord& record) = 0;
  virtual absl::Status Add(const IngestRecord& record) = 0;
  virtual absl::Status Add(const SkipRecord& record) = 0;
};

// Replaces the file at once: a reader sees the old or the new.
absl::Status WriteFile(const std::string& path, const std::string& bytes);

}  // namespace infllm::services
