#pragma once

#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <mutex>
#include <string>
#include <string_view>
#include <variant>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"

namespace infllm::services {

enum class LogLevel : uint8_t { kInfo, kWarning, kError };
enum class LogFormat : uint8_t { kText, kJson };

// How often lines of one kind may come: `burst` at once, then one in `interval`. Not thread-safe.
class LineBudget {
 public:
  LineBudget(double burst, absl::Duration interval) : burst_(burst), interval_(interval) {}
  bool Take(absl::Time now);

 private:
  double burst_;
  absl::Duration interval_;
  double left_ = burst_;
  absl::Time filled_ = absl::InfinitePast();
};

// Writes one line for each event, with named values:
//   text  2026-01-31T12:00:00.000Z info commit name="dickens" tokens=1200000
//   json  {"time":"2026-01-31T12:00:00.000Z","level":"info","event":"commit","name":"dickens",...}
// Whatever a value holds, it stays on its line: control characters and bytes that are not UTF-8 are
// escaped, and it is cut after kMaxValueBytes. Thread-safe.
class Log {
 public:
  static constexpr size_t kMaxValueBytes = 512;
  using Value = std::variant<int64_t, double, std::string_view>;
  struct Field {
    std::string_view name;
    Value value;
  };
  using Fields = std::initializer_list<Field>;

  // Lines below `level` are not written. `file` must outlive the object.
  Log(LogFormat format, LogLevel level, std::FILE* file)
      : format_(format), level_(level), file_(file) {}

  void Write(LogLevel level, std::string_view event, Fields fields);

  // For events that clients cause: no client can fill a disk with them. Those of one `kind`, and
  // those of all kinds, come as LineBudget says; `kind`s must be few. The next line of a kind says
  // how many were left out before it, as `suppressed`.
  void WriteLimited(LogLevel level, std::string_view event, std::string_view kind, Fields fields,
                    absl::Time now);

 private:
  struct Kind {
    LineBudget budget;
    int64_t suppressed = 0;
  };

  void WriteLine(LogLevel level, std::string_view event, Fields fields, int64_t suppressed);

  const LogFormat format_;
  const LogLevel level_;
  std::FILE* const file_;
  std::mutex mutex_;
  LineBudget all_ ABSL_GUARDED_BY(mutex_){50, absl::Seconds(1)};
  absl::flat_hash_map<std::string, Kind> kinds_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace infllm::services
