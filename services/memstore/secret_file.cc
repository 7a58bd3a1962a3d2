#include "services/memstore/secret_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

namespace infllm::services {
namespace {

constexpr absl::Duration kLook = absl::Seconds(1);
constexpr off_t kMaxBytes = 1 << 20;

bool IsSame(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino && a.st_size == b.st_size &&
         a.st_mtim.tv_sec == b.st_mtim.tv_sec && a.st_mtim.tv_nsec == b.st_mtim.tv_nsec &&
         a.st_ctim.tv_sec == b.st_ctim.tv_sec && a.st_ctim.tv_nsec == b.st_ctim.tv_nsec;
}

}  // namespace

absl::StatusOr<std::string> SecretFile::Read() {
  looked_ = absl::Now();
  read_ = {};
  const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat info {};
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path_));
  const absl::Cleanup close = [fd] { ::close(fd); };
  if (::fstat(fd, &info) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path_));
  }
  read_ = info;
  if (!S_ISREG(info.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(path_, " is not a file"));
  }
  if ((info.st_mode & 027) != 0) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "%s has mode %04o: nobody but its owner, and its group for reading, may have access; chmod "
        "600 or 640 it",
        path_, info.st_mode & 07777));
  }
  if (info.st_uid != ::geteuid() && info.st_uid != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(path_, " belongs to user ", info.st_uid, ", neither to this one nor to root"));
  }
  if (info.st_size > kMaxBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, " has ", info.st_size, " bytes; at most ", kMaxBytes, " are possible"));
  }
  std::string text(static_cast<size_t>(info.st_size), '\0');
  size_t filled = 0;
  while (filled < text.size()) {
    const ssize_t count = ::read(fd, text.data() + filled, text.size() - filled);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path_));
    if (count == 0) break;
    filled += static_cast<size_t>(count);
  }
  text.resize(filled);
  return text;
}

bool SecretFile::HasChanged() {
  const absl::Time now = absl::Now();
  if (now - looked_ < kLook) return false;
  looked_ = now;
  struct stat info {};
  if (::stat(path_.c_str(), &info) != 0) info = {};
  return !IsSame(info, read_);
}

}  // namespace infllm::services
