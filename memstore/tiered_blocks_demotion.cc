// The thread of TieredBlocks: writes payloads to the cold tier ahead of need.
#include <algorithm>
#include <new>
#include <span>
#include <string_view>
#include <vector>

#include "memstore/cold_key.h"
#include "memstore/tiered_blocks.h"

namespace infllm::memstore {
namespace {

// One write of the cold tier: large enough that its fixed costs vanish, small enough that a waiting
// Append soon goes on.
constexpr int64_t kMinBatchBytes = int64_t{1} << 20;
constexpr int64_t kMaxBatchBytes = int64_t{8} << 20;

}  // namespace

int64_t TieredBlocks::Deficit() const {
  const int64_t reclaimable =
      ram_.capacity_bytes() - ram_.used_bytes() + demoted_.bytes() + clean_.bytes();
  return reclaimable_target_bytes_ - reclaimable;
}

void TieredBlocks::Run() {
  Lock lock(mu_);
  for (;;) {
    work_.wait(lock, [&] {
      return stopping_ || batch_wanted_ || (failed_batch_ == 0 && !dirty_.empty() && Deficit() > 0);
    });
    if (stopping_) return;
    batch_wanted_ = false;
    ++batches_started_;
    const uint64_t started_at = clock_;
    std::vector<StoredBlock*> batch;
    absl::Status status;
    try {
      PickBatch(batch);
      lock.unlock();
      status = WriteBatch(batch);
    } catch (const std::bad_alloc&) {
      status = out_of_memory_;
    }
    if (!lock.owns_lock()) lock.lock();
    FinishBatch(batch, started_at, status);
  }
}

// The least recently used dirty blocks. They stay alive and in RAM until FinishBatch: a destructor
// waits for it.
void TieredBlocks::PickBatch(std::vector<StoredBlock*>& batch) {
  const int64_t wanted = std::clamp(Deficit(), kMinBatchBytes, kMaxBatchBytes);
  if (!dirty_.empty()) oldest_writing_ = dirty_.oldest()->last_use_;
  for (int64_t bytes = 0; !dirty_.empty() && bytes < wanted;) {
    StoredBlock* const block = dirty_.oldest();
    batch.push_back(block);  // first: it can throw
    Unlink(*block);
    block->writing_ = true;
    if (block->cold_key_ == 0) block->cold_key_ = next_cold_key_++;
    bytes += block->lru_bytes();
  }
}

absl::Status TieredBlocks::WriteBatch(std::span<StoredBlock* const> batch) {
  if (batch.empty()) return absl::OkStatus();
  std::vector<ColdKey> keys;
  std::vector<BlockHeader> headers;
  std::vector<ColdStore::Entry> entries;
  keys.reserve(batch.size());  // entries point into both
  headers.reserve(batch.size());
  entries.reserve(batch.size());
  for (StoredBlock* block : batch) {
    keys.emplace_back(block->cold_key_);
    headers.push_back(EncodeHeader(block->identity(), block->payload_crc()));
    entries.push_back({.key = keys.back().view(),
                       .head = headers.back(),
                       .body = {block->slot_, block->payload_bytes()}});
  }
  return cold_->Put(entries);
}

void TieredBlocks::FinishBatch(std::span<StoredBlock* const> batch, uint64_t started_at,
                               const absl::Status& status) {
  oldest_writing_ = UINT64_MAX;
  batch_error_ = status;
  failed_batch_ = status.ok() ? 0 : batches_started_;
  for (StoredBlock* block : batch) {
    block->writing_ = false;
    if (status.ok()) {
      block->cold_ = true;
      ++counts_.blocks_cold;
      counts_.cold_bytes += block->lru_bytes();
    }
    if (block->pins_ > 0) continue;
    if (block->last_use_ > started_at) {
      LinkAsNewest(*block);
    } else if (status.ok()) {
      Link(*block, demoted_);
    }
  }
  if (!status.ok()) {  // back to where they came from, in order
    for (auto block = batch.rbegin(); block != batch.rend(); ++block) {
      if ((*block)->pins_ > 0 || (*block)->list_ != nullptr) continue;
      dirty_.PushOldest(*block);
      (*block)->list_ = &dirty_;
    }
  }
  WakeWaiters();
}

}  // namespace infllm::memstore
