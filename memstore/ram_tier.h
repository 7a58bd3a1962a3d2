#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "absl/status/statusor.h"

namespace infllm::memstore {

// Memory for payloads, of which the process never holds more than a fixed amount. Slots are whole
// pages, and count as such. They are kept for reuse, because a fresh page costs a fault and its
// clearing; when another payload size needs the room, the system gets the pages back. Not
// thread-safe: the owner locks.
class RamTier {
 public:
  explicit RamTier(int64_t capacity_bytes);
  ~RamTier();
  RamTier(const RamTier&) = delete;
  RamTier& operator=(const RamTier&) = delete;

  int64_t capacity_bytes() const { return capacity_bytes_; }
  int64_t used_bytes() const { return used_bytes_; }          // slots of payloads
  int64_t resident_bytes() const { return resident_bytes_; }  // pages that may be backed by memory
  bool HasRoom(size_t payload_bytes) const {
    return SlotBytes(payload_bytes) <= capacity_bytes_ - used_bytes_;
  }

  // What a payload takes.
  static int64_t SlotBytes(size_t payload_bytes);
  // Gives the system pages back that no payload has, until no more than `bytes` may be backed.
  void Trim(int64_t bytes);

  // Page-aligned, contents undefined. REQUIRES: HasRoom(payload_bytes), payload_bytes > 0.
  //   RESOURCE_EXHAUSTED  the system gives no address space
  // May throw std::bad_alloc, and has taken no slot then.
  absl::StatusOr<std::byte*> Allocate(size_t payload_bytes);
  // `slot` is from Allocate(payload_bytes).
  void Free(std::byte* slot, size_t payload_bytes) noexcept;

 private:
  struct Extent {
    std::byte* data = nullptr;
    size_t bytes = 0;
  };
  struct SizeClass {
    std::vector<Extent> extents;
    // Both have the capacity for all slots, so that giving one back never fails.
    std::vector<std::byte*> warm;  // free slots whose pages are kept
    std::vector<std::byte*> bare;  // free slots without pages; the next one last
    size_t slots = 0;
    int64_t used = 0;  // slots
  };

  absl::Status AddExtent(SizeClass& size_class, size_t slot_bytes) const;
  // Returns pages of free slots of other sizes until `slot_bytes` more fit.
  void MakeResidentRoom(size_t slot_bytes);
  static void Unmap(SizeClass& size_class);

  const int64_t capacity_bytes_;
  int64_t used_bytes_ = 0;
  int64_t resident_bytes_ = 0;
  std::map<size_t, SizeClass> classes_;  // by slot bytes
};

}  // namespace infllm::memstore
