#include "memstore/ram_tier.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace infllm::memstore {
namespace {

// Address space is taken in pieces of this size: few enough for the kernel's limit on mappings
// (65530) at any plausible capacity. Pages come with the first write.
constexpr size_t kExtentBytes = size_t{64} << 20;

// Grows geometrically, which reserve() does not.
template <typename T>
void ReserveFor(std::vector<T>& list, size_t size) {
  if (list.capacity() < size) list.reserve(std::max(size, 2 * list.capacity()));
}

}  // namespace

RamTier::RamTier(int64_t capacity_bytes) : capacity_bytes_(std::max<int64_t>(capacity_bytes, 0)) {}

RamTier::~RamTier() {
  for (auto& [slot_bytes, size_class] : classes_) Unmap(size_class);
}

int64_t RamTier::SlotBytes(size_t payload_bytes) {
  static const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  return static_cast<int64_t>((payload_bytes + page - 1) / page * page);
}

void RamTier::Trim(int64_t bytes) {
  if (resident_bytes_ <= bytes) return;
  for (auto& [slot_bytes, size_class] : classes_) {
    while (resident_bytes_ > bytes && !size_class.warm.empty()) {
      ::madvise(size_class.warm.back(), slot_bytes, MADV_DONTNEED);
      size_class.bare.push_back(size_class.warm.back());
      size_class.warm.pop_back();
      resident_bytes_ -= static_cast<int64_t>(slot_bytes);
    }
  }
}

absl::Status RamTier::AddExtent(SizeClass& size_class, size_t slot_bytes) const {
  const size_t slots =
      std::clamp<size_t>(kExtentBytes / slot_bytes, 1, capacity_bytes_ / slot_bytes + 1);
  const size_t bytes = slots * slot_bytes;
  // What can throw comes first.
  ReserveFor(size_class.extents, size_class.extents.size() + 1);
  ReserveFor(size_class.warm, size_class.slots + slots);
  ReserveFor(size_class.bare, size_class.slots + slots);
  void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the system gives no ", bytes, " bytes of address space for the RAM tier (",
                     std::strerror(errno), "): lower --ram-bytes (now ", capacity_bytes_, ")"));
  }
  std::byte* const first = static_cast<std::byte*>(data);
  size_class.slots += slots;
  size_class.extents.push_back({.data = first, .bytes = bytes});
  for (size_t slot = slots; slot-- > 0;) size_class.bare.push_back(first + slot * slot_bytes);
  ASAN_POISON_MEMORY_REGION(data, bytes);
  return absl::OkStatus();
}

void RamTier::Unmap(SizeClass& size_class) {
  for (const Extent& extent : size_class.extents) {
    ASAN_UNPOISON_MEMORY_REGION(extent.data, extent.bytes);
    ::munmap(extent.data, extent.bytes);
  }
}

void RamTier::MakeResidentRoom(size_t slot_bytes) {
  for (auto it = classes_.begin(); it != classes_.end();) {
    if (resident_bytes_ + static_cast<int64_t>(slot_bytes) <= capacity_bytes_) return;
    auto& [other_bytes, other] = *it;
    if (other_bytes != slot_bytes && other.used == 0) {
      resident_bytes_ -= static_cast<int64_t>(other.warm.size() * other_bytes);
      Unmap(other);
      it = classes_.erase(it);
      continue;
    }
    while (other_bytes != slot_bytes && !other.warm.empty() &&
           resident_bytes_ + static_cast<int64_t>(slot_bytes) > capacity_bytes_) {
      ::madvise(other.warm.back(), other_bytes, MADV_DONTNEED);
      other.bare.push_back(other.warm.back());
      other.warm.pop_back();
      resident_bytes_ -= static_cast<int64_t>(other_bytes);
    }
    ++it;
  }
}

absl::StatusOr<std::byte*> RamTier::Allocate(size_t payload_bytes) {
  INFLLM_CHECK(payload_bytes > 0 && HasRoom(payload_bytes));
  const auto slot_bytes = static_cast<size_t>(SlotBytes(payload_bytes));
  SizeClass& size_class = classes_[slot_bytes];
  std::byte* slot;
  if (!size_class.warm.empty()) {
    slot = size_class.warm.back();
    size_class.warm.pop_back();
  } else {
    MakeResidentRoom(slot_bytes);
    if (size_class.bare.empty()) INFLLM_RETURN_IF_ERROR(AddExtent(size_class, slot_bytes));
    slot = size_class.bare.back();
    size_class.bare.pop_back();
    resident_bytes_ += static_cast<int64_t>(slot_bytes);
  }
  ++size_class.used;
  used_bytes_ += static_cast<int64_t>(slot_bytes);
  ASAN_UNPOISON_MEMORY_REGION(slot, payload_bytes);
  return slot;
}

void RamTier::Free(std::byte* slot, size_t payload_bytes) noexcept {
  const auto slot_bytes = static_cast<size_t>(SlotBytes(payload_bytes));
  SizeClass& size_class = classes_.at(slot_bytes);
  INFLLM_CHECK(size_class.used > 0);
  --size_class.used;
  used_bytes_ -= static_cast<int64_t>(slot_bytes);
  size_class.warm.push_back(slot);
  ASAN_POISON_MEMORY_REGION(slot, slot_bytes);  // so that a use without a pin is found
}

}  // namespace infllm::memstore
