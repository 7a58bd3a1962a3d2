#include "worker/attention/page_arena.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"

namespace infllm::worker {

absl::StatusOr<PageArena> PageArena::New(kernels::Backend& backend, int64_t part_bytes,
                                         int64_t layers, int64_t bytes) {
  part_bytes = (part_bytes + 63) / 64 * 64;
  constexpr int64_t kMostPages = int64_t{1} << 30;  // PageNumber is 32 bits
  const int64_t pages = std::min(bytes / (part_bytes * layers), kMostPages);
  if (pages < 1) {
    return absl::ResourceExhaustedError(
        absl::StrCat("one page of keys and values has ", part_bytes * layers,
                     " bytes (all layers), the KV memory only ", bytes, ": raise --kv-bytes"));
  }
  INFLLM_ASSIGN_OR_RETURN(kernels::Buffer memory,
                          backend.Allocate(static_cast<size_t>(pages * part_bytes * layers)));
  return PageArena(std::move(memory), part_bytes, layers, pages);
}

PageArena::PageArena(kernels::Buffer memory, int64_t part_bytes, int64_t layers, int64_t pages)
    : memory_(std::move(memory)),
      part_bytes_(part_bytes),
      layers_(layers),
      owners_(static_cast<size_t>(pages)),
      free_(static_cast<size_t>(pages)) {
  std::iota(free_.rbegin(), free_.rend(), 0);
}

absl::Status PageArena::NoRoom(absl::string_view what, int64_t pages) const {
  return absl::ResourceExhaustedError(absl::StrCat(
      what, " need ", pages * page_bytes(), " bytes of KV memory, but only ",
      free_pages() * page_bytes(), " of ", this->pages() * page_bytes(),
      " are free: raise --kv-bytes, lower --step-tokens, or run fewer sequences at a time"));
}

PageNumber PageArena::Take() {
  INFLLM_CHECK(!free_.empty());
  const PageNumber page = free_.back();
  free_.pop_back();
  owners_[static_cast<size_t>(page)] = 1;
  return page;
}

void PageArena::GiveBack(PageNumber page) {
  int32_t& owners = owners_[static_cast<size_t>(page)];
  INFLLM_CHECK(owners > 0);
  if (--owners == 0) free_.push_back(page);
}

absl::Status PageArena::Copy(kernels::Backend& backend, kernels::Stream stream, PageNumber from,
                             PageNumber to) const {
  return backend.Copy(stream, address(to), address(from), static_cast<size_t>(page_bytes()));
}

}  // namespace infllm::worker
