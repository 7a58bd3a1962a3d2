#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace infllm::memstore {

// Where blocks go that RAM has no room for: immutable values of 4 KB to 1 MB under short binary
// keys, all of one length. It stores bytes and knows nothing of blocks; integrity is the caller's
// (block_codec.h).
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
};

struct RocksDbOptions {
  std::string directory;  // created if missing; one store at a time
};
// Scratch space on a disk: emptied when it is opened and when it is closed, because no context
// outlives its process. Made for keys that grow with time (cold_key.h). Takes up to about 130 MB of
// RAM for writing, and raises the process's soft limit of open files. In a forked child it may only
// be destroyed, which leaves the parent's alone.
//   FAILED_PRECONDITION  another store has the directory open, or it holds other files
//   PERMISSION_DENIED, RESOURCE_EXHAUSTED (disk full), UNAVAILABLE (I/O error)
absl::StatusOr<std::unique_ptr<ColdStore>> OpenRocksDb(const RocksDbOptions& options);

// Keeps values in RAM: for tests.
std::unique_ptr<ColdStore> NewFakeColdStore();

}  // namespace infllm::memstore
