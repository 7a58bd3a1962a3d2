#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/backend.h"

namespace infllm::worker {

// The number of a page. A page has a part for each layer of the model.
using PageNumber = int32_t;

// Pages of one size in one allocation of a device. A page is shared by any number of owners, and
// free again when the last of them gives it back. Not thread-safe.
class PageArena {
 public:
  // Pages whose part of a layer has `part_bytes` (rounded up to 64), as many as fit into `bytes`.
  // `backend` must outlive the arena.
  //   RESOURCE_EXHAUSTED  not even one fits, or the device has no `bytes` left
  static absl::StatusOr<PageArena> New(kernels::Backend& backend, int64_t part_bytes,
                                       int64_t layers, int64_t bytes);

  int64_t pages() const { return static_cast<int64_t>(owners_.size()); }
  int64_t free_pages() const { return static_cast<int64_t>(free_.size()); }
  // Of one page, all layers.
  int64_t page_bytes() const { return part_bytes_ * layers_; }

  // What is said where `what` needs so many pages and they are not free.
  absl::Status NoRoom(absl::string_view what, int64_t pages) const;

  // A page of undefined content with one owner: the one given back last, or one never taken if
  // there is none, so that few pages are ever touched. REQUIRES: free_pages() > 0.
  PageNumber Take();
  void Share(PageNumber page) { ++owners_[static_cast<size_t>(page)]; }
  void GiveBack(PageNumber page);

  // The part of layer 0; that of another layer is layer_offset(layer) bytes behind it.
  std::byte* address(PageNumber page) const { return memory_.data() + page * page_bytes(); }
  int64_t layer_offset(int64_t layer) const { return layer * part_bytes_; }

  // Enqueues the copy of all layers of a page.
  absl::Status Copy(kernels::Backend& backend, kernels::Stream stream, PageNumber from,
                    PageNumber to) const;

 private:
  PageArena(kernels::Buffer memory, int64_t part_bytes, int64_t layers, int64_t pages);

  kernels::Buffer memory_;  // [pages, layers, part_bytes]: pages in use lie close together
  int64_t part_bytes_;
  int64_t layers_;
  std::vector<int32_t> owners_;
  std::vector<PageNumber> free_;  // the next to be taken last
};

}  // namespace infllm::worker
