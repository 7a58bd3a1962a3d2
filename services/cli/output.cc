#include "services/cli/output.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace infllm::services {
namespace {

// Of the first write that failed: stdio keeps that one did, not why.
int first_error = 0;

absl::Status Outcome(bool failed) {
  if (!failed && std::ferror(stdout) == 0) return absl::OkStatus();
  if (first_error == 0) first_error = errno;
  if (first_error == EINTR) return absl::CancelledError("interrupted");
  return absl::UnavailableError(
      absl::StrCat("cannot write to stdout: ",
                   first_error != 0 ? std::strerror(first_error) : "an earlier write failed",
                   "; the output is incomplete"));
}

}  // namespace

void PrepareStandardStreams() {
  std::signal(SIGPIPE, SIG_IGN);
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(fd, F_GETFD) >= 0) continue;
    // The wrong way round, so that using it stays an error. open() takes the lowest free number.
    if (::open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd) return;
  }
}

absl::Status StreamOut(std::string_view text) {
  errno = 0;
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) return Outcome(true);
  return FlushOutput();
}

absl::Status FlushOutput() {
  errno = 0;
  return Outcome(std::fflush(stdout) != 0);
}

}  // namespace infllm::services
