#include "worker/attention/block_cache.h"

#include <algorithm>
#include <utility>

#include "kernels/core/status_macros.h"

namespace infllm::worker {

size_t BlockCache::PlaceOf(int64_t index) const {
  return static_cast<size_t>(std::lower_bound(indices_.begin(), indices_.end(), index) -
                             indices_.begin());
}

const std::byte* BlockCache::Find(int64_t index) const {
  const size_t at = PlaceOf(index);
  return at < indices_.size() && indices_[at] == index ? records_[at] : nullptr;
}

// Lowest score first; ties go to the smaller index.
void BlockCache::Evict(std::span<const int64_t> selected, std::span<const int64_t> keep,
                       Retired& retired) {
  int64_t excess = static_cast<int64_t>(indices_.size()) - options_.capacity_blocks;
  for (const int64_t index : selected) excess += Find(index) == nullptr ? 1 : 0;
  if (excess <= 0) return;
  victims_.clear();
  size_t k = 0;
  for (size_t i = 0; i < indices_.size(); ++i) {
    while (k < keep.size() && keep[k] < indices_[i]) ++k;
    if (k == keep.size() || keep[k] != indices_[i]) victims_.emplace_back(entries_[i].score, i);
  }
  excess = std::min(excess, static_cast<int64_t>(victims_.size()));
  std::partial_sort(victims_.begin(), victims_.begin() + excess, victims_.end());
  victims_.resize(static_cast<size_t>(excess));
  std::sort(victims_.begin(), victims_.end(),
            [](const auto& a, const auto& b) { return a.second > b.second; });
  for (const auto& [score, i] : victims_) {
    const auto at = static_cast<std::ptrdiff_t>(i);
    if (entries_[i].slot >= 0) free_slots_.push_back(entries_[i].slot);
    if (entries_[i].pin) retired.emplace_back(indices_[i], std::move(entries_[i].pin));
    indices_.erase(indices_.begin() + at);
    records_.erase(records_.begin() + at);
    entries_.erase(entries_.begin() + at);
  }
}

PageNumber BlockCache::TakeSlot() {
  if (free_slots_.empty()) return -1;
  const PageNumber slot = free_slots_.back();
  free_slots_.pop_back();
  return slot;
}

void BlockCache::Insert(int64_t index, PageNumber slot, const std::byte* record,
                        memstore::BlockHandle pin) {
  const size_t place = PlaceOf(index);
  INFLLM_CHECK(place == indices_.size() || indices_[place] != index);
  const auto at = static_cast<std::ptrdiff_t>(place);
  indices_.insert(indices_.begin() + at, index);
  records_.insert(records_.begin() + at, record);
  entries_.insert(entries_.begin() + at, Entry{.pin = std::move(pin), .slot = slot});
}

void BlockCache::Touch(std::span<const int64_t> selected) {
  ++step_;
  if (options_.policy != CachePolicy::kLru) return;
  for (const int64_t index : selected) {
    const size_t at = PlaceOf(index);
    if (at < indices_.size() && indices_[at] == index) {
      entries_[at].score = static_cast<double>(step_);
    }
  }
}

void BlockCache::Score(std::span<const int64_t> selected, std::span<const float> mass) {
  if (options_.policy != CachePolicy::kLruS) return;
  for (Entry& entry : entries_) entry.score *= options_.decay;
  for (size_t i = 0; i < selected.size(); ++i) {
    const size_t at = PlaceOf(selected[i]);
    if (at < indices_.size() && indices_[at] == selected[i]) entries_[at].score += mass[i];
  }
}

BlockCache BlockCache::Fork(std::vector<PageNumber> slots) const {
  BlockCache fork(options_, std::move(slots));
  fork.step_ = step_;
  if (!fork.free_slots_.empty()) return fork;
  fork.indices_ = indices_;
  fork.records_ = records_;
  fork.entries_ = entries_;
  return fork;
}

int64_t BlockCache::size_bytes() const {
  size_t bytes = 0;
  for (const Entry& entry : entries_) bytes += entry.pin.payload().size();
  return static_cast<int64_t>(bytes);
}

}  // namespace infllm::worker
