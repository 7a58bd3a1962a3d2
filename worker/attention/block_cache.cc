#include "worker/attention/block_cache.h"

#include <algorithm>

#include "kernels/core/status_macros.h"

namespace infllm::worker {

// Lowest score first, among blocks that the selection does not use; ties go to the smaller index.
void BlockCache::Evict(const memstore::Selection& selection) {
  int64_t excess = static_cast<int64_t>(indices_.size()) - options_.capacity_blocks;
  for (const memstore::SelectedBlock& block : selection.blocks) {
    if (!std::binary_search(indices_.begin(), indices_.end(), block.index)) ++excess;
  }
  if (excess <= 0) return;
  std::vector<std::pair<double, size_t>> victims;
  for (size_t i = 0; i < indices_.size(); ++i) {
    const bool selected = std::any_of(
        selection.blocks.begin(), selection.blocks.end(),
        [&](const memstore::SelectedBlock& block) { return block.index == indices_[i]; });
    if (!selected) victims.emplace_back(entries_[i].score, i);
  }
  INFLLM_CHECK(excess <= static_cast<int64_t>(victims.size()));
  std::sort(victims.begin(), victims.end());
  std::vector<size_t> doomed;
  for (int64_t i = 0; i < excess; ++i) doomed.push_back(victims[i].second);
  std::sort(doomed.rbegin(), doomed.rend());
  for (size_t i : doomed) {
    indices_.erase(indices_.begin() + static_cast<int64_t>(i));
    entries_.erase(entries_.begin() + static_cast<int64_t>(i));
  }
}

absl::Status BlockCache::Admit(const memstore::Selection& selection,
                               std::vector<const std::byte*>& records) {
  ++step_;
  Evict(selection);
  records.clear();
  for (const memstore::SelectedBlock& block : selection.blocks) {
    const auto at = std::lower_bound(indices_.begin(), indices_.end(), block.index);
    const size_t i = static_cast<size_t>(at - indices_.begin());
    if (at == indices_.end() || *at != block.index) {
      if (!block.block) {
        return absl::InternalError("the memory store returned a selected block without its bytes");
      }
      Entry entry;
      if (backend_->host_accessible()) {
        entry.pin = block.block;
      } else {
        const std::span<const std::byte> payload = block.block.payload();
        INFLLM_ASSIGN_OR_RETURN(entry.copy, backend_->Allocate(payload.size()));
        INFLLM_RETURN_IF_ERROR(backend_->Upload(entry.copy.data(), payload.data(), payload.size()));
      }
      indices_.insert(at, block.index);
      entries_.insert(entries_.begin() + static_cast<int64_t>(i), std::move(entry));
    }
    if (options_.policy == CachePolicy::kLru) entries_[i].score = static_cast<double>(step_);
    records.push_back(entries_[i].data());
  }
  return absl::OkStatus();
}

void BlockCache::Score(const memstore::Selection& selection, std::span<const float> mass) {
  if (options_.policy != CachePolicy::kLruS) return;
  for (Entry& entry : entries_) entry.score *= options_.decay;
  for (size_t s = 0; s < selection.blocks.size(); ++s) {
    const auto at = std::lower_bound(indices_.begin(), indices_.end(), selection.blocks[s].index);
    entries_[static_cast<size_t>(at - indices_.begin())].score += mass[s];
  }
}

BlockCache BlockCache::Fork() const {
  BlockCache fork(*backend_, options_);
  fork.step_ = step_;
  if (!backend_->host_accessible()) return fork;
  fork.indices_ = indices_;
  for (const Entry& entry : entries_) {
    Entry copy;
    copy.pin = entry.pin;
    copy.score = entry.score;
    fork.entries_.push_back(std::move(copy));
  }
  return fork;
}

int64_t BlockCache::size_bytes() const {
  size_t bytes = 0;
  for (const Entry& entry : entries_) {
    bytes += entry.copy.size_bytes() + entry.pin.payload().size();
  }
  return static_cast<int64_t>(bytes);
}

}  // namespace infllm::worker
