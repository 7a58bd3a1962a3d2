#include "kernels/host_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace infllm::kernels {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kMapFrom = 2 * kHugePage;

absl::Status Exhausted(size_t bytes) {
  return absl::ResourceExhaustedError(
      absl::StrCat("host memory: ", bytes, " bytes cannot be allocated"));
}

}  // namespace

absl::StatusOr<Buffer> AllocateHost(size_t bytes) {
  if (bytes > SIZE_MAX / 2) return Exhausted(bytes);
  if (bytes < kMapFrom) {
    void* data = std::aligned_alloc(kAlignment, (bytes / kAlignment + 1) * kAlignment);
    if (data == nullptr) return Exhausted(bytes);
    return Buffer(data, bytes, [](void* p) { std::free(p); });
  }
  const size_t size = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* mapped =
      mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return Exhausted(bytes);
  // Keeps the aligned part and returns the ends.
  char* const begin = static_cast<char*>(mapped);
  const size_t head = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  if (head > 0) munmap(begin, head);
  if (head < kHugePage) munmap(begin + head + size, kHugePage - head);
  madvise(begin + head, size, MADV_HUGEPAGE);  // a wish: a kernel without them refuses
  return Buffer(begin + head, bytes, [size](void* p) { munmap(p, size); });
}

}  // namespace infllm::kernels
