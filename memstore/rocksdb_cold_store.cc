#include <fcntl.h>
#include <rocksdb/convenience.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/sst_file_reader.h>
#include <rocksdb/table.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "memstore/cold_store.h"
#include "memstore/reader_pool.h"

namespace infllm::memstore {
namespace {

namespace fs = std::filesystem;

// Of the directory. Its lock says that the directory is in use, its name whose it is: we write to
// what we open, or empty it, and must not do so to what is another's.
constexpr char kMarkerName[] = "INFLLM_MEMSTORE";
constexpr char kDatabaseName[] = "blocks";
// The column family of the records, and the one that says how all is written.
constexpr char kRecordsName[] = "records";
constexpr char kFormatKey[] = "format";
constexpr char kFormat[] = "1";

// Threads that read for one Get of several keys, the caller included. Four 64 KB reads at once get
// 1.5x to 2x the bytes of one at a time from a virtual disk; MultiGet reads one after the other.
constexpr size_t kReaders = 4;

// A log that is not written.
class NoLog final : public rocksdb::Logger {
 public:
  using rocksdb::Logger::Logv;
  void Logv(const char*, va_list) override {}
};

// Enough for 1 TB.
constexpr rlim_t kWantedOpenFiles = 65536;

rocksdb::Slice ToSlice(std::string_view s) { return {s.data(), s.size()}; }
rocksdb::Slice ToSlice(std::span<const std::byte> s) {
  return {reinterpret_cast<const char*>(s.data()), s.size()};
}

absl::Status FromRocksDb(const rocksdb::Status& status, std::string_view directory) {
  if (status.ok()) return absl::OkStatus();
  const std::string text =
      absl::StrCat("cold tier in ", std::string(directory), ": ", status.ToString());
  if (status.IsNotFound()) return absl::NotFoundError("no value under this key");
  if (status.IsCorruption()) return absl::DataLossError(text);
  if (status.IsNoSpace() || status.subcode() == rocksdb::Status::kSpaceLimit) {
    return absl::ResourceExhaustedError(
        absl::StrCat(text, ": free space on this disk or give another --data-dir"));
  }
  return absl::UnavailableError(text);
}

absl::Status FromErrno(int error, std::string_view what, const std::string& path) {
  const std::string text =
      absl::StrCat("cannot ", std::string(what), " ", path, ": ", std::strerror(error));
  if (error == EACCES || error == EPERM || error == EROFS) return absl::PermissionDeniedError(text);
  if (error == ENOSPC || error == EDQUOT) return absl::ResourceExhaustedError(text);
  return absl::UnavailableError(text);
}

int64_t FreeBytesOf(const std::string& directory) {
  struct statvfs disk {};
  if (::statvfs(directory.c_str(), &disk) != 0) return -1;
  return static_cast<int64_t>(uint64_t{disk.f_bavail} * disk.f_frsize);
}

absl::Status NoStore(const std::string& directory) {
  return absl::FailedPreconditionError(
      absl::StrCat(directory, " is not the --data-dir of any memory store yet"));
}

// RocksDB keeps a file open per 32 MB of values, and the usual soft limit of 1024 would make it
// reopen them all the time. Raises it as far as the system lets us and returns what RocksDB may
// use.
int AllowOpenFiles() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 256;
  const rlim_t wanted = std::min<rlim_t>(limit.rlim_max, kWantedOpenFiles);
  if (limit.rlim_cur < wanted) {
    limit.rlim_cur = wanted;
    if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) ::getrlimit(RLIMIT_NOFILE, &limit);
  }
  return static_cast<int>(std::min<rlim_t>(limit.rlim_cur, kWantedOpenFiles) / 2);
}

// What the measurements behind this say (1 to 2 GiB of values, next to raw O_DIRECT of the same
// sizes; 4 busy vCPUs, so only large differences count): Get of 16 keeps up with raw pread by four
// threads at 4, 64 and 512 KB, Get of one reaches 0.8 of it. Put is bound by the CPU, not the disk:
// it takes 0.9 CPU seconds per GB, of the writer and the flushing threads together.
rocksdb::Options MakeOptions(bool direct_io) {
  rocksdb::BlockBasedTableOptions table;
  table.no_block_cache = true;  // the RAM tier is the cache
  rocksdb::Options options;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  options.create_if_missing = true;
  options.create_missing_column_families = true;
  options.compression = rocksdb::kNoCompression;  // keys and values do not compress
  // The page cache would double what the RAM tier holds, outside its bound.
  options.use_direct_reads = direct_io;
  options.use_direct_io_for_flush_and_compaction = direct_io;
  // Two threads flush (a quarter of the jobs), so that one computes while the other writes: 0.95
  // GB/s on average where one reached 0.6. Larger memtables and file buffers (64 and 128 MB; 4 and
  // 8 MB) were no faster. These are all the memory that writing takes: 128 MB.
  options.write_buffer_size = size_t{32} << 20;
  options.max_write_buffer_number = 4;
  options.max_background_jobs = 8;
  options.writable_file_max_buffer_size = size_t{2} << 20;
  options.max_open_files = AllowOpenFiles();
  options.allow_fallocate = false;  // a small disk would be full of what may never be written
  // Keys grow with every entry (cold_key.h), so files do not overlap and a compaction from level
  // 0 to 1 moves them without reading: seen in the log for all files of a run. Only deletes of
  // single entries rewrite their neighbours. Readers find the one file by binary search. Each file
  // moves at once, because only from level 1 can a whole file be deleted.
  options.num_levels = 2;
  options.level0_file_num_compaction_trigger = 1;
  options.level0_slowdown_writes_trigger = 1 << 20;
  options.level0_stop_writes_trigger = 1 << 20;
  options.avoid_flush_during_shutdown = true;  // what is not flushed is not committed
  options.info_log_level = rocksdb::WARN_LEVEL;
  options.keep_log_file_num = 1;
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  return options;
}

class RocksDbColdStore final : public ColdStore {
 public:
  // Takes over the locked `marker_fd`.
  RocksDbColdStore(const RocksDbOptions& options, int marker_fd)
      : directory_(options.directory),
        durable_(!options.scratch),
        read_only_(options.read_only),
        marker_fd_(marker_fd),
        owner_pid_(::getpid()) {}

  ~RocksDbColdStore() override {
    if (::getpid() != owner_pid_) {
      // A forked child: RocksDB's threads, our readers and the files are the parent's.
      (void)db_.release();
      (void)readers_.release();
    } else {
      readers_.reset();
      const bool opened = db_ != nullptr;
      if (opened) {
        for (rocksdb::ColumnFamilyHandle* family : families_) {
          db_->DestroyColumnFamilyHandle(family).PermitUncheckedError();
        }
      }
      db_.reset();
      // Nothing can refer to the values any more.
      if (opened && !durable_) {
        rocksdb::DestroyDB(DatabasePath(), rocksdb::Options()).PermitUncheckedError();
      }
    }
    ::close(marker_fd_);
  }

  absl::Status Open() {
    if (!read_only_) INFLLM_RETURN_IF_ERROR(CheckDiskHolds(0));
    struct stat marker {};
    made_ = durable_ && ::fstat(marker_fd_, &marker) == 0 && marker.st_size > 0;
    if (read_only_ && !made_) return NoStore(directory_);
    rocksdb::Status status;
    if (!durable_) {
      status = rocksdb::DestroyDB(DatabasePath(), rocksdb::Options());
      if (!status.ok()) return FromRocksDb(status, directory_);
    }
    status = OpenDatabase(/*direct_io=*/true);
    if (status.IsNotSupported() || status.IsInvalidArgument()) {  // e.g. tmpfs
      status = OpenDatabase(/*direct_io=*/false);
    }
    if (!status.ok()) return FromRocksDb(status, directory_);
    readers_ = std::make_unique<ReaderPool>(kReaders);
    return durable_ ? CheckFormat() : absl::OkStatus();
  }

  // RocksDB of Debian 12 may abort the process when a flush meets a full disk (an assertion in
  // writable_file_writer.h), so a batch that could fill it is refused before.
  absl::Status CheckDiskHolds(size_t bytes) const {
    constexpr uint64_t kSpareBytes = uint64_t{16} << 20;  // manifest, log, file buffers
    const int64_t available = FreeBytesOf(directory_);
    if (available < 0) return absl::OkStatus();  // RocksDB will tell
    uint64_t unflushed = 0;
    if (db_ != nullptr) {
      db_->GetIntProperty(rocksdb::DB::Properties::kSizeAllMemTables, &unflushed);
    }
    const uint64_t needed = unflushed + bytes + kSpareBytes;
    if (static_cast<uint64_t>(available) >= needed) return absl::OkStatus();
    return absl::ResourceExhaustedError(
        absl::StrCat("cold tier in ", directory_, ": the disk has ", available >> 20, " MiB left, ",
                     needed >> 20, " MiB are needed: free space on it or give another --data-dir"));
  }

  absl::Status Put(std::span<const Entry> entries) override {
    size_t bytes = 0;
    for (const Entry& entry : entries) bytes += entry.key.size() + entry.value_bytes() + 16;
    rocksdb::WriteBatch batch(bytes);
    for (const Entry& entry : entries) {
      const rocksdb::Slice key = ToSlice(entry.key);
      const rocksdb::Slice value[] = {ToSlice(entry.head), ToSlice(entry.body)};
      const rocksdb::Status status =
          batch.Put(rocksdb::SliceParts(&key, 1), rocksdb::SliceParts(value, 2));
      if (!status.ok()) return FromRocksDb(status, directory_);
    }
    INFLLM_RETURN_IF_ERROR(CheckDiskHolds(bytes));
    return FromRocksDb(db_->Write(WriteOptions(), &batch), directory_);
  }

  std::vector<absl::Status> Get(std::span<const std::string_view> keys,
                                std::span<const std::span<std::byte>> outs) override {
    INFLLM_CHECK(keys.size() == outs.size());
    std::vector<absl::Status> statuses(keys.size());
    readers_->ForEach(keys.size(), [&](size_t i) { statuses[i] = GetOne(keys[i], outs[i]); });
    return statuses;
  }

  absl::Status Delete(std::span<const std::string_view> keys) override;
  int64_t FreeBytes() override { return FreeBytesOf(directory_); }
  bool durable() const override { return durable_; }

  absl::Status ChangeRecords(std::span<const RecordChange> changes) override {
    rocksdb::WriteBatch batch;
    bool adds = false;
    for (const RecordChange& change : changes) {
      const rocksdb::Slice key = ToSlice(change.key);
      const rocksdb::Status status = change.value.has_value()
                                         ? batch.Put(records(), key, ToSlice(*change.value))
                                         : batch.Delete(records(), key);
      if (!status.ok()) return FromRocksDb(status, directory_);
      adds |= change.value.has_value();
    }
    INFLLM_RETURN_IF_ERROR(CheckDiskHolds(batch.GetDataSize()));
    // Nothing is in a log, of which RocksDB would forgive a damaged end. What makes entries and
    // records durable is that they are in files: first those, then these, all at once.
    rocksdb::Status status;
    if (adds) status = db_->Flush(rocksdb::FlushOptions(), db_->DefaultColumnFamily());
    if (status.ok()) status = db_->Write(WriteOptions(), &batch);
    if (status.ok()) status = db_->Flush(rocksdb::FlushOptions(), records());
    return FromRocksDb(status, directory_);
  }

  // An iterator that meets a damaged file of RocksDB 7.8, not its first, may end there without an
  // error, as if there were no more: so all files are checked before.
  absl::StatusOr<std::map<std::string, std::string>> ReadRecords() override {
    for (const rocksdb::LiveFileMetaData& file : FilesOf(kRecordsName)) {
      rocksdb::SstFileReader reader{rocksdb::Options()};
      rocksdb::Status status = reader.Open(file.db_path + file.name);
      if (status.ok()) status = reader.VerifyChecksum();
      INFLLM_RETURN_IF_ERROR(FromRocksDb(status, directory_));
    }
    std::map<std::string, std::string> all;
    rocksdb::ReadOptions options;
    options.ignore_range_deletions = true;  // there are none; that is where errors get lost
    const std::unique_ptr<rocksdb::Iterator> at(db_->NewIterator(options, records()));
    for (at->SeekToFirst(); at->Valid(); at->Next()) {
      if (at->key() != kFormatKey) all.emplace(at->key().ToString(), at->value().ToString());
    }
    INFLLM_RETURN_IF_ERROR(FromRocksDb(at->status(), directory_));
    return all;
  }

  absl::StatusOr<std::string> LastKey() override {
    const std::unique_ptr<rocksdb::Iterator> at(db_->NewIterator(rocksdb::ReadOptions()));
    at->SeekToLast();
    if (at->status().IsCorruption()) {  // of its value, which nobody asks for
      std::string last;
      for (const rocksdb::LiveFileMetaData& file : FilesOf(rocksdb::kDefaultColumnFamilyName)) {
        last = std::max(last, file.largestkey);
      }
      return last;
    }
    INFLLM_RETURN_IF_ERROR(FromRocksDb(at->status(), directory_));
    return at->Valid() ? at->key().ToString() : std::string();
  }

  absl::StatusOr<int64_t> CountRange(std::string_view begin, std::string_view end) override {
    rocksdb::ReadOptions bounded;
    const rocksdb::Slice limit = ToSlice(end);
    bounded.iterate_upper_bound = &limit;
    const std::unique_ptr<rocksdb::Iterator> at(db_->NewIterator(bounded));
    int64_t entries = 0;
    for (at->Seek(ToSlice(begin)); at->Valid(); at->Next()) ++entries;
    INFLLM_RETURN_IF_ERROR(FromRocksDb(at->status(), directory_));
    return entries;
  }

  // Where there is nothing, nothing is written. Where something is damaged, it may be a
  // neighbour's, which is no reason not to delete.
  absl::Status DeleteRange(std::string_view begin, std::string_view end) override {
    rocksdb::ReadOptions bounded;
    const rocksdb::Slice from = ToSlice(begin), limit = ToSlice(end);
    bounded.iterate_upper_bound = &limit;
    const std::unique_ptr<rocksdb::Iterator> at(db_->NewIterator(bounded));
    at->Seek(from);
    if (!at->Valid() && !at->status().IsCorruption()) {
      return FromRocksDb(at->status(), directory_);
    }
    rocksdb::WriteBatch tombstones;
    INFLLM_RETURN_IF_ERROR(FromRocksDb(DeleteRun(begin, end, tombstones), directory_));
    rocksdb::Status status = db_->Write(WriteOptions(), &tombstones);
    if (status.ok()) status = FlushInBackground();
    return FromRocksDb(status, directory_);
  }

 private:
  rocksdb::Status OpenDatabase(bool direct_io) {
    rocksdb::Options options = MakeOptions(direct_io);
    options.create_if_missing = !made_;
    rocksdb::ColumnFamilyOptions of_records(options);
    of_records.write_buffer_size = size_t{1} << 20;
    rocksdb::DB* db = nullptr;
    if (read_only_) options.info_log = std::make_shared<NoLog>();
    const std::vector<rocksdb::ColumnFamilyDescriptor> families = {
        {rocksdb::kDefaultColumnFamilyName, options}, {kRecordsName, of_records}};
    rocksdb::Status status =
        read_only_
            ? rocksdb::DB::OpenForReadOnly(options, DatabasePath(), families, &families_, &db)
            : rocksdb::DB::Open(options, DatabasePath(), families, &families_, &db);
    if (status.ok()) db_.reset(db);
    return status;
  }
  rocksdb::ColumnFamilyHandle* records() const { return families_[1]; }
  std::vector<rocksdb::LiveFileMetaData> FilesOf(const std::string& family) const {
    std::vector<rocksdb::LiveFileMetaData> files;
    db_->GetLiveFilesMetaData(&files);
    std::erase_if(files, [&](const auto& file) { return file.column_family_name != family; });
    return files;
  }

  absl::Status CheckFormat() {
    std::string format;
    rocksdb::Status status = db_->Get(rocksdb::ReadOptions(), records(), kFormatKey, &format);
    if (status.IsNotFound() && !read_only_) {
      status = db_->Put(WriteOptions(), records(), kFormatKey, kFormat);
      if (status.ok()) status = db_->Flush(rocksdb::FlushOptions(), records());
      format = kFormat;
    }
    if (!status.ok()) return FromRocksDb(status, directory_);
    if (format == kFormat) return MarkAsMade();
    return absl::FailedPreconditionError(absl::StrCat(
        directory_, " is written in format ", absl::CHexEscape(format), ", this program knows ",
        kFormat, ": use the program that wrote it, or give another --data-dir"));
  }

  // Only what is in files is compacted, and so leaves the disk.
  rocksdb::Status FlushInBackground() {
    rocksdb::FlushOptions options;
    options.wait = false;
    options.allow_write_stall = true;
    return db_->Flush(options, db_->DefaultColumnFamily());
  }

  // From now on a directory without its database is damaged, not new.
  absl::Status MarkAsMade() {
    if (made_) return absl::OkStatus();
    made_ = true;
    if (::pwrite(marker_fd_, kFormat, sizeof(kFormat) - 1, 0) == sizeof(kFormat) - 1 &&
        ::fsync(marker_fd_) == 0) {
      return absl::OkStatus();
    }
    return FromErrno(errno, "write the marker in", directory_);
  }

  // Of all keys in [begin, end). Whole files go at once, without being read again by a compaction.
  rocksdb::Status DeleteRun(std::string_view begin, std::string_view end,
                            rocksdb::WriteBatch& tombstones) {
    const rocksdb::Slice from = ToSlice(begin), limit = ToSlice(end);
    const rocksdb::Status status = rocksdb::DeleteFilesInRange(
        db_.get(), db_->DefaultColumnFamily(), &from, &limit, /*include_end=*/false);
    return status.ok() ? tombstones.DeleteRange(from, limit) : status;
  }

  static rocksdb::WriteOptions WriteOptions() {
    rocksdb::WriteOptions options;
    options.disableWAL = true;
    return options;
  }
  std::string DatabasePath() const { return absl::StrCat(directory_, "/", kDatabaseName); }

  absl::Status GetOne(std::string_view key, std::span<std::byte> out) {
    rocksdb::PinnableSlice value;
    const rocksdb::Status status =
        db_->Get(rocksdb::ReadOptions(), db_->DefaultColumnFamily(), ToSlice(key), &value);
    if (!status.ok()) return FromRocksDb(status, directory_);
    if (value.size() != out.size()) {
      return absl::DataLossError(absl::StrCat("cold tier in ", directory_, ": the value has ",
                                              value.size(), " bytes, expected ", out.size()));
    }
    std::memcpy(out.data(), value.data(), out.size());
    return absl::OkStatus();
  }

  const std::string directory_;
  const bool durable_;
  const bool read_only_;
  bool made_ = false;  // its database has been made, now or before
  const int marker_fd_;
  const pid_t owner_pid_;
  std::unique_ptr<rocksdb::DB> db_;
  std::vector<rocksdb::ColumnFamilyHandle*> families_;  // of db_: entries, records
  std::unique_ptr<ReaderPool> readers_;
};

// The key after `key` among those of its length; empty if there is none.
std::string Successor(std::string_view key) {
  std::string next(key);
  for (size_t i = next.size(); i-- > 0;) {
    next[i] = static_cast<char>(static_cast<unsigned char>(next[i]) + 1);
    if (next[i] != '\0') return next;
  }
  return std::string();
}

absl::Status RocksDbColdStore::Delete(std::span<const std::string_view> keys) {
  std::vector<std::string_view> sorted(keys.begin(), keys.end());
  std::sort(sorted.begin(), sorted.end());
  rocksdb::WriteBatch tombstones;
  bool runs = false;
  for (size_t first = 0; first < sorted.size();) {
    // Keys are of one length, so no other lies between a key and its successor.
    size_t last = first;
    std::string end = Successor(sorted[first]);
    while (last + 1 < sorted.size() && !end.empty() && sorted[last + 1] == end) {
      end = Successor(sorted[++last]);
    }
    rocksdb::Status status;
    if (last == first || end.empty()) {
      last = first;
      status = tombstones.Delete(ToSlice(sorted[first]));
    } else {
      status = DeleteRun(sorted[first], end, tombstones);
      runs = true;
    }
    if (!status.ok()) return FromRocksDb(status, directory_);
    first = last + 1;
  }
  rocksdb::Status status = db_->Write(WriteOptions(), &tombstones);
  if (status.ok() && runs && durable_) status = FlushInBackground();
  return FromRocksDb(status, directory_);
}

absl::Status InUse(const std::string& directory) {
  return absl::FailedPreconditionError(absl::StrCat(
      directory, " is in use by another store: give every process its own --data-dir"));
}

// Opens and locks the marker of a store's directory, which stays as it is. Others may read it, too.
absl::StatusOr<int> LockForReading(const std::string& directory) {
  const std::string marker = absl::StrCat(directory, "/", kMarkerName);
  const int fd = ::open(marker.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0 && (errno == ENOENT || errno == ENOTDIR)) return NoStore(directory);
  if (fd < 0) return FromErrno(errno, "open", marker);
  if (::flock(fd, LOCK_SH | LOCK_NB) == 0) return fd;
  const int lock_error = errno;
  ::close(fd);
  return lock_error == EWOULDBLOCK ? InUse(directory) : FromErrno(lock_error, "lock", marker);
}

// Opens and locks the marker of a directory that is ours or empty.
absl::StatusOr<int> LockDirectory(const std::string& directory) {
  std::error_code error;
  if (fs::create_directories(directory, error)) {
    fs::permissions(directory, fs::perms::owner_all, error);  // blocks hold what was read
  }
  if (error) return FromErrno(error.value(), "create the directory", directory);
  const std::string marker = absl::StrCat(directory, "/", kMarkerName);
  if (!fs::exists(marker, error)) {
    const bool empty = fs::is_empty(directory, error);
    if (error) return FromErrno(error.value(), "read the directory", directory);
    if (!empty) {
      return absl::FailedPreconditionError(
          absl::StrCat(directory, " holds other files: give --data-dir a directory of its own"));
    }
  }
  const int fd = ::open(marker.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return FromErrno(errno, "open", marker);
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    const int lock_error = errno;
    ::close(fd);
    if (lock_error != EWOULDBLOCK) return FromErrno(lock_error, "lock", marker);
    return InUse(directory);
  }
  return fd;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ColdStore>> OpenRocksDb(const RocksDbOptions& options) {
  if (options.directory.empty()) {
    return absl::InvalidArgumentError("the directory of the memory store is empty (--data-dir)");
  }
  INFLLM_ASSIGN_OR_RETURN(const int marker_fd, options.read_only
                                                   ? LockForReading(options.directory)
                                                   : LockDirectory(options.directory));
  auto store = std::make_unique<RocksDbColdStore>(options, marker_fd);
  INFLLM_RETURN_IF_ERROR(store->Open());
  return store;
}

}  // namespace infllm::memstore
