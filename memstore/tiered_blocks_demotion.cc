// The thread of TieredBlocks: writes payloads to the cold tier ahead of need, and deletes records
// that no block needs any more.
#include <algorithm>
#include <string_view>
#include <utility>

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
      return stopping_ || batch_wanted_ || !dropped_keys_.empty() ||
             (failed_batch_ == 0 && !dirty_.empty() && Deficit() > 0);
    });
    if (stopping_) return;
    if (!dropped_keys_.empty()) {
      lock.unlock();
      DeleteDropped();
      lock.lock();
      continue;
    }
    batch_wanted_ = false;
    ++batches_started_;
    const uint64_t started_at = clock_;
    Refs batch = PickBatch();
    lock.unlock();
    const absl::Status status = WriteBatch(batch);
    lock.lock();
    FinishBatch(batch, started_at, status);
    lock.unlock();
    batch.clear();  // the last reference may be ours, and must not go under the lock
    lock.lock();
  }
}

// The least recently used dirty blocks. Keeps them alive, and in RAM, until FinishBatch.
TieredBlocks::Refs TieredBlocks::PickBatch() {
  const int64_t wanted = std::clamp(Deficit(), kMinBatchBytes, kMaxBatchBytes);
  Refs batch;
  int64_t bytes = 0;
  for (StoredBlock* block = dirty_.oldest(); block != nullptr && bytes < wanted;) {
    StoredBlock* const next = dirty_.newer(block);
    // A block whose last owner is just letting go waits for our lock in its destructor.
    if (std::shared_ptr<StoredBlock> ref = block->weak_from_this().lock(); ref != nullptr) {
      Unlink(*block);
      block->writing_ = true;
      if (block->cold_key_ == 0) block->cold_key_ = next_cold_key_++;
      oldest_writing_ = std::min(oldest_writing_, block->last_use_);
      bytes += block->lru_bytes();
      batch.push_back(std::move(ref));
    }
    block = next;
  }
  return batch;
}

absl::Status TieredBlocks::WriteBatch(const Refs& batch) {
  if (batch.empty()) return absl::OkStatus();
  size_t bytes = 0;
  for (const auto& block : batch) bytes += EncodedBlockBytes(block->payload_bytes());
  if (batch_bytes_.size() < bytes) batch_bytes_.resize(bytes);
  std::vector<ColdKey> keys;
  std::vector<ColdStore::Record> records;
  keys.reserve(batch.size());  // records point into it
  std::span<std::byte> free = batch_bytes_;
  for (const auto& block : batch) {
    const std::span<std::byte> encoded = free.first(EncodedBlockBytes(block->payload_bytes()));
    free = free.subspan(encoded.size());
    EncodeBlock(block->identity(), {block->slot_, block->payload_bytes()}, block->payload_crc(),
                encoded);
    keys.emplace_back(block->cold_key_);
    records.push_back({.key = keys.back().view(), .value = encoded});
  }
  return cold_->Put(records);
}

void TieredBlocks::FinishBatch(const Refs& batch, uint64_t started_at, const absl::Status& status) {
  oldest_writing_ = UINT64_MAX;
  batch_error_ = status;
  failed_batch_ = status.ok() ? 0 : batches_started_;
  for (const auto& block : batch) {
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
      dirty_.PushOldest(block->get());
      (*block)->list_ = &dirty_;
    }
  }
  WakeWaiters();
}

void TieredBlocks::DeleteDropped() {
  std::vector<uint64_t> numbers;
  {
    const std::lock_guard lock(mu_);
    numbers.swap(dropped_keys_);
  }
  if (numbers.empty() || cold_ == nullptr) return;
  std::sort(numbers.begin(), numbers.end());  // runs of them are cheap to delete
  std::vector<ColdKey> keys(numbers.begin(), numbers.end());
  std::vector<std::string_view> views;
  views.reserve(keys.size());
  for (const ColdKey& key : keys) views.push_back(key.view());
  // A record that stays only takes space, until its store is opened again.
  cold_->Delete(views).IgnoreError();
}

}  // namespace infllm::memstore
