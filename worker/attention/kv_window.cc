#include "worker/attention/kv_window.h"

#include <algorithm>
#include <utility>

#include "kernels/core/status_macros.h"

namespace infllm::worker {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

KvWindow::KvWindow(KvWindow&& other) noexcept
    : arena_(other.arena_),
      sink_tokens_(other.sink_tokens_),
      page_tokens_(other.page_tokens_),
      tokens_(other.tokens_),
      first_page_(other.first_page_),
      sinks_(std::exchange(other.sinks_, {})),
      pages_(std::exchange(other.pages_, {})) {}

KvWindow::~KvWindow() {
  for (const PageNumber page : sinks_) arena_->GiveBack(page);
  for (const PageNumber page : pages_) arena_->GiveBack(page);
}

int64_t KvWindow::PagesFor(int64_t more) const {
  const int64_t end = tokens_ + more;
  const int64_t sinks = CeilDiv(std::min(end, sink_tokens_), page_tokens_);
  const int64_t pages = CeilDiv(std::max<int64_t>(end - sink_tokens_, 0), page_tokens_);
  return sinks - static_cast<int64_t>(sinks_.size()) + pages - first_page_ -
         static_cast<int64_t>(pages_.size());
}

void KvWindow::Append(int64_t tokens) {
  const int64_t more = PagesFor(tokens);
  tokens_ += tokens;
  const auto sinks = static_cast<size_t>(CeilDiv(std::min(tokens_, sink_tokens_), page_tokens_));
  for (int64_t i = 0; i < more; ++i) {
    if (sinks_.size() < sinks) {
      sinks_.push_back(arena_->Take());
    } else {
      pages_.push_back(arena_->Take());
    }
  }
}

void KvWindow::DropPagesBefore(int64_t page) {
  while (first_page_ < page && !pages_.empty()) {
    arena_->GiveBack(pages_.front());
    pages_.pop_front();
    ++first_page_;
  }
}

KvWindow::Place KvWindow::Find(int64_t position) const {
  if (position < sink_tokens_) {
    return {arena_->address(sinks_[static_cast<size_t>(position / page_tokens_)]),
            static_cast<int32_t>(position % page_tokens_)};
  }
  const int64_t behind = position - sink_tokens_;
  return {arena_->address(page_number(behind / page_tokens_)),
          static_cast<int32_t>(behind % page_tokens_)};
}

void KvWindow::AddEntries(int64_t begin, int64_t end, std::vector<kernels::PageEntry>& out) const {
  const auto add = [&](PageNumber page, int64_t page_begin, int64_t page_end) {
    const int64_t from = std::max(begin, page_begin);
    const int64_t to = std::min(end, page_end);
    if (from >= to) return;
    out.push_back({.page = arena_->address(page),
                   .position = page_begin,
                   .first = static_cast<int32_t>(from - page_begin),
                   .tokens = static_cast<int32_t>(to - from)});
  };
  begin = std::max<int64_t>(begin, 0);
  end = std::min(end, tokens_);
  if (begin < sink_tokens_) {
    for (size_t i = 0; i < sinks_.size(); ++i) {
      const int64_t at = static_cast<int64_t>(i) * page_tokens_;
      add(sinks_[i], at, std::min(at + page_tokens_, sink_tokens_));
    }
  }
  const int64_t first =
      std::max(first_page_, std::max<int64_t>(begin - sink_tokens_, 0) / page_tokens_);
  for (int64_t page = first; page < first_page_ + static_cast<int64_t>(pages_.size()); ++page) {
    if (page_begin(page) >= end) break;
    add(page_number(page), page_begin(page), page_begin(page + 1));
  }
}

int64_t KvWindow::PagesForFork() const { return sinks_grow() || last_page_grows() ? 1 : 0; }

absl::StatusOr<KvWindow> KvWindow::Fork(kernels::Backend& backend, kernels::Stream stream) const {
  KvWindow fork(*arena_, sink_tokens_, page_tokens_);
  fork.tokens_ = tokens_;
  fork.first_page_ = first_page_;
  absl::Status status;
  const auto share = [&](PageNumber page, bool grows) {
    if (!grows) {
      arena_->Share(page);
      return page;
    }
    const PageNumber copy = arena_->Take();
    status.Update(arena_->Copy(backend, stream, page, copy));
    return copy;
  };
  for (size_t i = 0; i < sinks_.size(); ++i) {
    fork.sinks_.push_back(share(sinks_[i], sinks_grow() && i + 1 == sinks_.size()));
  }
  for (size_t i = 0; i < pages_.size(); ++i) {
    fork.pages_.push_back(share(pages_[i], last_page_grows() && i + 1 == pages_.size()));
  }
  INFLLM_RETURN_IF_ERROR(status);
  return fork;
}

}  // namespace infllm::worker
