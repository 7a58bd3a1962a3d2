#include "services/common/scratch_cold_store.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"

namespace infllm::services {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kName = "infllm-cold";
constexpr std::string_view kLockSuffix = ".lock";

absl::Status Errno(int error, const std::string& doing) {
  const std::string text = absl::StrCat(doing, ": ", std::strerror(error));
  return error == EACCES || error == EPERM || error == EROFS ? absl::PermissionDeniedError(text)
                                                             : absl::UnavailableError(text);
}

// An exclusive lock on a file, which the kernel releases when the process ends, however it ends.
class FileLock {
 public:
  FileLock(FileLock&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}
  ~FileLock() {
    if (fd_ < 0) return;
    ::unlink(path_.c_str());
    ::close(fd_);
  }
  FileLock& operator=(FileLock&&) = delete;

  // FAILED_PRECONDITION: another process has it.
  static absl::StatusOr<FileLock> Take(const std::string& path) {
    while (true) {
      const int fd = ::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600);
      if (fd < 0) return Errno(errno, absl::StrCat("cannot open ", path));
      if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
        const int error = errno;
        ::close(fd);
        if (error != EWOULDBLOCK) return Errno(error, absl::StrCat("cannot lock ", path));
        return absl::FailedPreconditionError(
            absl::StrCat(path, " is locked: another process keeps its blocks there"));
      }
      // Whoever had it may have removed the file between our open() and flock(): then this lock
      // keeps nobody out, and we try again.
      struct stat info {};
      if (::fstat(fd, &info) == 0 && info.st_nlink > 0) return FileLock(fd, path);
      ::close(fd);
    }
  }

 private:
  FileLock(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_;
  std::string path_;
};

// RocksDB in a directory that nobody else uses and that goes with the object.
class OwnedColdStore final : public memstore::ColdStore {
 public:
  static absl::StatusOr<std::unique_ptr<OwnedColdStore>> Open(const std::string& path) {
    INFLLM_ASSIGN_OR_RETURN(FileLock lock, FileLock::Take(absl::StrCat(path, ".lock")));
    // Fresh, and readable for us alone: blocks hold what was read.
    if (::mkdir(path.c_str(), 0700) != 0) return Errno(errno, absl::StrCat("cannot make ", path));
    INFLLM_ASSIGN_OR_RETURN(std::unique_ptr<memstore::ColdStore> db,
                            memstore::OpenRocksDb({.directory = path, .scratch = true}));
    return std::unique_ptr<OwnedColdStore>(
        new OwnedColdStore(path, std::move(lock), std::move(db)));
  }
  ~OwnedColdStore() override {
    db_.reset();
    std::error_code ignored;  // nobody is left to tell; the next run removes it
    fs::remove_all(path_, ignored);
  }

  absl::Status Put(std::span<const Entry> entries) override { return db_->Put(entries); }
  std::vector<absl::Status> Get(std::span<const std::string_view> keys,
                                std::span<const std::span<std::byte>> outs) override {
    return db_->Get(keys, outs);
  }
  absl::Status Delete(std::span<const std::string_view> keys) override { return db_->Delete(keys); }
  int64_t FreeBytes() override { return db_->FreeBytes(); }

 private:
  OwnedColdStore(std::string path, FileLock lock, std::unique_ptr<memstore::ColdStore> db)
      : path_(std::move(path)), lock_(std::move(lock)), db_(std::move(db)) {}

  const std::string path_;
  const FileLock lock_;
  std::unique_ptr<memstore::ColdStore> db_;
};

std::string ScratchRoot() {
  const char* configured = std::getenv("TMPDIR");
  return configured != nullptr && *configured != '\0' ? configured : "/var/tmp";
}

// Removes the scratch directories below `root` whose process is gone.
void RemoveAbandoned(const std::string& root) {
  const std::string prefix = absl::StrCat(absl::string_view(kName.data(), kName.size()), "-");
  std::error_code error;
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(root, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(prefix) && name.ends_with(kLockSuffix)) names.push_back(name);
  }
  for (const std::string& name : names) {
    const std::string lock_path = absl::StrCat(root, "/", name);
    const absl::StatusOr<FileLock> lock = FileLock::Take(lock_path);
    if (!lock.ok()) continue;  // in use, or another user's
    fs::remove_all(lock_path.substr(0, lock_path.size() - kLockSuffix.size()), error);
  }
}

absl::StatusOr<std::unique_ptr<OwnedColdStore>> OpenScratch() {
  const std::string root = ScratchRoot();
  RemoveAbandoned(root);
  // The random part comes from the lock file that mkstemps makes; the lock is then taken by name.
  std::string lock_path = absl::StrCat(root, "/infllm-cold-XXXXXX.lock");
  const int fd = ::mkostemps(lock_path.data(), static_cast<int>(kLockSuffix.size()), O_CLOEXEC);
  if (fd < 0) {
    return Errno(errno, absl::StrCat("cannot make a directory for cold blocks below ", root,
                                     "; set TMPDIR or --data-dir"));
  }
  ::close(fd);
  return OwnedColdStore::Open(lock_path.substr(0, lock_path.size() - kLockSuffix.size()));
}

class ScratchColdStore final : public memstore::ColdStore {
 public:
  absl::Status Put(std::span<const Entry> entries) override {
    INFLLM_ASSIGN_OR_RETURN(memstore::ColdStore * store, Opened());
    return store->Put(entries);
  }
  std::vector<absl::Status> Get(std::span<const std::string_view> keys,
                                std::span<const std::span<std::byte>> outs) override {
    const absl::StatusOr<memstore::ColdStore*> store = Opened();
    if (!store.ok()) return std::vector<absl::Status>(keys.size(), store.status());
    return (*store)->Get(keys, outs);
  }
  absl::Status Delete(std::span<const std::string_view> keys) override {
    INFLLM_ASSIGN_OR_RETURN(memstore::ColdStore * store, Opened());
    return store->Delete(keys);
  }
  int64_t FreeBytes() override {
    const std::lock_guard lock(mutex_);
    return store_ == nullptr ? -1 : store_->FreeBytes();
  }

 private:
  // A failure is tried again at the next call: the disk may have room by then.
  absl::StatusOr<memstore::ColdStore*> Opened() {
    const std::lock_guard lock(mutex_);
    if (store_ == nullptr) {
      INFLLM_ASSIGN_OR_RETURN(store_, OpenScratch());
    }
    return store_.get();
  }

  std::mutex mutex_;
  std::unique_ptr<OwnedColdStore> store_;
};

}  // namespace

std::unique_ptr<memstore::ColdStore> NewScratchColdStore() {
  return std::make_unique<ScratchColdStore>();
}

}  // namespace infllm::services
