#pragma once

#include <cstddef>
#include <string>
#include <utility>

#include "absl/status/statusor.h"

namespace infllm::worker {

// A file descriptor that closes itself.
class UniqueFd {
 public:
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&&) = delete;
  ~UniqueFd();

  int get() const { return fd_; }

 private:
  int fd_;
};

// Opens a regular file (or a link to one) for reading. Never waits, as a FIFO would make it.
//   NOT_FOUND, INVALID_ARGUMENT (a directory, a device, ...); else what open says
absl::StatusOr<UniqueFd> OpenRegularFile(const std::string& path);

// The bytes of a regular file that must not be larger than `max_bytes`. Errors as above, and
//   INVALID_ARGUMENT  it is larger
absl::StatusOr<std::string> ReadFile(const std::string& path, size_t max_bytes);

}  // namespace infllm::worker
