#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace infllm::memstore {

// Where blocks go that RAM has no room for, and what outlives the process. It has entries:
// immutable values of 4 KB to a few MB under short binary keys, all of one length; and records: few
// small values that say which entries are committed. It stores bytes and knows nothing of blocks;
// integrity is the caller's (block_codec.h, commit_record.h).
// Thread-safe; calls block on I/O.
class ColdStore {
 public:
  // A value is written from two pieces where they lie, `head` and then `body`.
  struct Entry {
    std::string_view key;
    std::span<const std::byte> head;
    std::span<const std::byte> body;
    size_t value_bytes() const { return head.size() + body.size(); }
  };
  virtual ~ColdStore() = default;

  // Writes all entries or reports why not. Writing a key again replaces its value.
  //   RESOURCE_EXHAUSTED  the device is full
  virtual absl::Status Put(std::span<const Entry> entries) = 0;
  // Values in the order of `keys`, each into outs[i], whose size must be the stored size.
  // One status per key: NOT_FOUND, DATA_LOSS (stored size differs, or the device's own checksum
  // failed), UNAVAILABLE (I/O error).
  virtual std::vector<absl::Status> Get(std::span<const std::string_view> keys,
                                        std::span<const std::span<std::byte>> outs) = 0;
  // Keys that hold nothing are fine.
  virtual absl::Status Delete(std::span<const std::string_view> keys) = 0;

  // What the device still takes; -1 if there is none, or none yet.
  virtual int64_t FreeBytes() { return -1; }

  // Whether what it holds is there again when it is opened the next time. The rest is for those;
  // the others are UNIMPLEMENTED.
  virtual bool durable() const { return false; }

  // Changes records, all or none; no value: the record is deleted. When it returns OK, the changes
  // and, if there is a value among them, all entries that were put before survive the end of the
  // process and of the machine. A change is never there without those entries.
  struct RecordChange {
    std::string key;
    std::optional<std::string> value;
  };
  virtual absl::Status ChangeRecords(std::span<const RecordChange> changes);
  // All of them, by key.
  virtual absl::StatusOr<std::map<std::string, std::string>> ReadRecords();

  // The largest key of an entry; empty if there is none.
  virtual absl::StatusOr<std::string> LastKey();
  // How many entries have keys in [begin, end).
  virtual absl::StatusOr<int64_t> CountRange(std::string_view begin, std::string_view end);
  // Deletes these entries.
  virtual absl::Status DeleteRange(std::string_view begin, std::string_view end);
};

struct RocksDbOptions {
  std::string directory;  // created if missing, for its user alone; one store at a time
  // Emptied when it is opened and when it is closed.
  bool scratch = false;
  // Not a byte of the directory changes; what would change one fails. Keeps others from writing it.
  bool read_only = false;
};
// Made for keys that grow with time (cold_key.h). Takes up to about 130 MB of RAM for writing, and
// raises the process's soft limit of open files. In a forked child it may only be destroyed, which
// leaves the parent's alone.
//   FAILED_PRECONDITION  another store has the directory open, it holds other files, or it was
//                        written in another format; read-only: it has never been a store's
//   PERMISSION_DENIED, RESOURCE_EXHAUSTED (disk full), DATA_LOSS (damaged), UNAVAILABLE (I/O error)
absl::StatusOr<std::unique_ptr<ColdStore>> OpenRocksDb(const RocksDbOptions& options);

// Keeps everything in RAM: for tests.
std::unique_ptr<ColdStore> NewFakeColdStore();

}  // namespace infllm::memstore
