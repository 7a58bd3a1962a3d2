#pragma once

#include <sys/stat.h>

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace infllm::services {

// A small file that only its owner, and a group that may read it, should have access to. Not
// thread-safe.
class SecretFile {
 public:
  explicit SecretFile(std::string path) : path_(std::move(path)) {}

  const std::string& path() const { return path_; }

  // All of it.
  //   NOT_FOUND, PERMISSION_DENIED, ... (by errno)  it cannot be read
  //   FAILED_PRECONDITION  it is no file, others may read or its group write it, or it belongs to
  //                        neither this user nor root
  //   INVALID_ARGUMENT     it has more than 1 MiB
  absl::StatusOr<std::string> Read();
  // Whether it is another one than was read last. Looks at it once a second.
  bool HasChanged();

 private:
  const std::string path_;
  struct stat read_ {};  // what was read last
  absl::Time looked_ = absl::InfinitePast();
};

}  // namespace infllm::services
