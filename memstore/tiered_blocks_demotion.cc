// The thread of TieredBlocks: writes payloads to the cold tier ahead of need.
#include <algorithm>
#include <new>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/core/status_macros.h"
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
  return reclaimable_target_bytes_ - (FreeBytes() + demoted_.bytes() + clean_.bytes());
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
    ClaimForWriting(*block);
    bytes += block->lru_bytes();
  }
}

void TieredBlocks::ClaimForWriting(StoredBlock& block) {
  if (block.list_ != nullptr) Unlink(block);
  block.writing_ = true;
  if (block.cold_key_ == 0) block.cold_key_ = next_cold_key_++;
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
  EndWriting(batch, started_at, status);
}

void TieredBlocks::EndWriting(std::span<StoredBlock* const> batch, uint64_t started_at,
                              const absl::Status& status) {
  for (StoredBlock* block : batch) {
    block->writing_ = false;
    if (status.ok()) {
      block->cold_ = true;
      ++counts_.blocks_cold;
      ++counts_.demotions;
      counts_.cold_bytes += static_cast<int64_t>(block->payload_bytes());
      counts_.dirty_bytes -= block->lru_bytes();
    }
    if (block->pins_ > 0) continue;
    if (block->last_use_ > started_at) {
      LinkAsNewest(*block);
    } else if (status.ok()) {
      Link(*block, demoted_);
    }
  }
  if (!status.ok()) {  // back to the oldest, where the thread has them from, in order
    for (auto block = batch.rbegin(); block != batch.rend(); ++block) {
      if ((*block)->pins_ > 0 || (*block)->list_ != nullptr) continue;
      dirty_.PushOldest(*block);
      (*block)->list_ = &dirty_;
    }
  }
  WakeWaiters();
}

// ---- For the catalog.

absl::Status TieredBlocks::Persist(std::span<const std::shared_ptr<StoredBlock>> blocks) {
  constexpr size_t kMaxBatchBlocks = 4096;
  std::vector<StoredBlock*> batch;
  batch.reserve(kMaxBatchBlocks);  // a claim must not be lost to an exception
  for (size_t next = 0; next < blocks.size();) {
    batch.clear();
    uint64_t started_at = 0;
    {
      Lock lock(mu_);
      int64_t bytes = 0;
      while (next < blocks.size() && bytes < kMaxBatchBytes && batch.size() < kMaxBatchBlocks) {
        StoredBlock& block = *blocks[next];
        if (block.writing_) {  // by the thread or another call
          if (!batch.empty()) break;
          WaitForProgress(lock);
          continue;
        }
        ++next;
        if (block.cold_) continue;
        if (batch.empty()) started_at = clock_;
        batch.push_back(&block);
        ClaimForWriting(block);
        bytes += block.lru_bytes();
      }
      persisting_ += batch.size();
    }
    absl::Status status;
    try {
      status = WriteBatch(batch);
    } catch (const std::bad_alloc&) {
      status = out_of_memory_;
    }
    const std::lock_guard lock(mu_);
    persisting_ -= batch.size();
    EndWriting(batch, started_at, status);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

std::shared_ptr<StoredBlock> TieredBlocks::Restore(std::shared_ptr<const BlockOwner> owner,
                                                   int32_t layer, int64_t index, uint64_t number,
                                                   std::shared_ptr<const CommittedPart> committed) {
  auto block = std::make_shared<StoredBlock>(shared_from_this(), std::move(owner), layer, index,
                                             /*payload_crc=*/0);  // it is never written again
  const std::lock_guard lock(mu_);
  block->cold_ = true;
  block->cold_key_ = number;
  block->committed_ = std::move(committed);
  ++counts_.blocks;
  ++counts_.blocks_cold;
  counts_.cold_bytes += static_cast<int64_t>(block->payload_bytes());
  return block;
}

void TieredBlocks::SetCommitted(std::span<const std::shared_ptr<StoredBlock>> blocks,
                                const std::shared_ptr<const CommittedPart>& committed) {
  const std::lock_guard lock(mu_);
  for (const std::shared_ptr<StoredBlock>& block : blocks) block->committed_ = committed;
}

std::shared_ptr<const CommittedPart> TieredBlocks::CommittedPartOf(const StoredBlock& block) const {
  const std::lock_guard lock(mu_);
  return block.committed_;
}

uint64_t TieredBlocks::EntryOf(const StoredBlock& block) const {
  const std::lock_guard lock(mu_);
  INFLLM_CHECK(block.cold_);
  return block.cold_key_;
}

absl::StatusOr<uint64_t> TieredBlocks::PutEntry(std::string_view value) {
  uint64_t number = 0;
  {
    const std::lock_guard lock(mu_);
    number = next_cold_key_++;
  }
  const ColdKey key(number);
  const ColdStore::Entry entry{
      .key = key.view(), .head = {}, .body = std::as_bytes(std::span(value))};
  INFLLM_RETURN_IF_ERROR(cold_->Put({&entry, 1}));
  return number;
}

void TieredBlocks::ForgetEntries(std::span<const EntryRun> runs) {
  const std::lock_guard lock(mu_);
  for (const EntryRun& run : runs) DropEntries(run);
}

}  // namespace infllm::memstore
