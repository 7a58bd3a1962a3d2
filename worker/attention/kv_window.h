#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "worker/attention/page_arena.h"

namespace infllm::worker {

// Which pages of an arena hold the keys and values of one sequence: its first `sink_tokens` tokens,
// and the tokens after them in pages of `page_tokens`, of which the oldest can be dropped. All
// layers alike. Owns its pages. Not thread-safe.
class KvWindow {
 public:
  // `arena` must outlive the window.
  KvWindow(PageArena& arena, int64_t sink_tokens, int64_t page_tokens)
      : arena_(&arena), sink_tokens_(sink_tokens), page_tokens_(page_tokens) {}
  KvWindow(KvWindow&& other) noexcept;
  KvWindow& operator=(KvWindow&&) = delete;
  ~KvWindow();

  // Tokens so far, dropped ones included.
  int64_t tokens() const { return tokens_; }
  // Pages that `more` tokens need beyond those taken.
  int64_t PagesFor(int64_t more) const;
  // Adds tokens at the end. REQUIRES: the arena has PagesFor(tokens) free pages.
  void Append(int64_t tokens);

  // Pages behind the sinks are counted from the first one, dropped ones included.
  int64_t full_pages() const {
    return tokens_ <= sink_tokens_ ? 0 : (tokens_ - sink_tokens_) / page_tokens_;
  }
  int64_t page_begin(int64_t page) const { return sink_tokens_ + page * page_tokens_; }
  // REQUIRES: the page is kept.
  PageNumber page_number(int64_t page) const {
    return pages_[static_cast<size_t>(page - first_page_)];
  }
  void DropPagesBefore(int64_t page);
  // The first `pages` pages of a window that is still empty count as dropped.
  void SkipPages(int64_t pages) { first_page_ = pages; }

  // Where a kept token lies: layer 0 of its page, and the slot in it.
  struct Place {
    std::byte* page = nullptr;
    int32_t slot = 0;
  };
  Place Find(int64_t position) const;

  // Appends page table entries over the kept tokens of [begin, end), sinks first.
  void AddEntries(int64_t begin, int64_t end, std::vector<kernels::PageEntry>& out) const;

  // Pages that Fork takes: the one that still grows, if any.
  int64_t PagesForFork() const;
  // Shares the full pages and enqueues a copy of the one that still grows.
  // REQUIRES: the arena has PagesForFork() free pages.
  absl::StatusOr<KvWindow> Fork(kernels::Backend& backend, kernels::Stream stream) const;

  // Pages held, shared ones included.
  int64_t held_pages() const { return static_cast<int64_t>(sinks_.size() + pages_.size()); }

 private:
  bool sinks_grow() const { return tokens_ < sink_tokens_ && tokens_ % page_tokens_ != 0; }
  bool last_page_grows() const {
    return tokens_ > sink_tokens_ && (tokens_ - sink_tokens_) % page_tokens_ != 0;
  }

  PageArena* arena_;
  int64_t sink_tokens_;
  int64_t page_tokens_;
  int64_t tokens_ = 0;
  int64_t first_page_ = 0;
  std::vector<PageNumber> sinks_;
  std::deque<PageNumber> pages_;
};

}  // namespace infllm::worker
