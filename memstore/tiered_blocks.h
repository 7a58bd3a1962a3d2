#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "memstore/block.h"
#include "memstore/block_codec.h"
#include "memstore/block_lru.h"
#include "memstore/cold_store.h"
#include "memstore/committed_part.h"
#include "memstore/in_process_store.h"
#include "memstore/index_memory.h"
#include "memstore/memory_store.h"
#include "memstore/ram_tier.h"

namespace infllm::memstore {

class TieredBlocks;

// What all blocks of one context have in common; shared by the context and its blocks, which
// outlive it in forks.
struct BlockOwner {
  ContextId context{};
  ContextOptions options;
};

// One immutable payload, wherever it is now. Shared by the contexts that have it and by its pins;
// when the last of them goes, so do the RAM slot and, unless it is committed, the cold entry. The
// destructor takes TieredBlocks' lock and waits while the block is being written.
class StoredBlock : public std::enable_shared_from_this<StoredBlock>, public LruNode {
 public:
  StoredBlock(std::shared_ptr<TieredBlocks> tiers, std::shared_ptr<const BlockOwner> owner,
              int32_t layer, int64_t index, uint32_t payload_crc);
  ~StoredBlock();
  StoredBlock(const StoredBlock&) = delete;
  StoredBlock& operator=(const StoredBlock&) = delete;

  BlockKey key() const { return {owner_->context, layer_, index_}; }
  BlockIdentity identity() const;
  uint32_t payload_crc() const { return payload_crc_; }
  size_t payload_bytes() const { return owner_->options.geometry.payload_bytes(); }
  // In RAM.
  int64_t lru_bytes() const { return RamTier::SlotBytes(payload_bytes()); }
  const std::shared_ptr<const BlockOwner>& owner() const { return owner_; }

 private:
  friend class TieredBlocks;
  const std::shared_ptr<TieredBlocks> tiers_;
  const std::shared_ptr<const BlockOwner> owner_;
  const int32_t layer_;
  const int64_t index_;
  const uint32_t payload_crc_;

  // Guarded by the lock of `tiers_`. A block is in RAM (slot_), in the cold tier (cold_), or both;
  // between claim and read it is in RAM only once `reading_` is false again.
  std::byte* slot_ = nullptr;
  LruList<StoredBlock>* list_ = nullptr;  // that it is linked in: iff in RAM, unpinned, not moving
  bool cold_ = false;
  bool reading_ = false;  // a thread brings it back from the cold tier
  bool writing_ = false;  // somebody writes it to the cold tier
  int32_t pins_ = 0;
  uint64_t last_use_ = 0;                           // ticks
  uint64_t cold_key_ = 0;                           // 0: never written
  std::shared_ptr<const CommittedPart> committed_;  // that the cold entry belongs to, or null
};

// The RAM tier and the cold tier, and the blocks' way between them.
//
// New payloads enter RAM. A thread of ours keeps some of RAM reclaimable: it writes the least
// recently used unpinned payloads to the cold tier in large batches ahead of need. Whoever needs
// room drops the least recently used payload that is also cold. A payload is written once.
//
// Thread-safe. No lock is held during I/O, copies or checksums. Store and Acquire let pass what an
// allocation or the cold store throws, and leave every block as it was: none is lost, pinned or
// claimed by a call that has ended.
class TieredBlocks : public std::enable_shared_from_this<TieredBlocks> {
 public:
  // What is kept of a block in memory, wherever its payload is: itself, and its places in tables
  // and in those of the allocator.
  static constexpr int64_t kBlockBytes = static_cast<int64_t>(sizeof(StoredBlock)) + 96;

  // `cold` may be null: then a full RAM tier stays full.
  // `first_entry`: the least number that no entry of `cold` has.
  static std::shared_ptr<TieredBlocks> Create(const InProcessOptions& options,
                                              std::unique_ptr<ColdStore> cold,
                                              uint64_t first_entry = 1);
  ~TieredBlocks();
  // Ends the thread and closes the cold store. Blocks and pins may live on, in RAM.
  void Shutdown();

  // Copies `payload` into RAM as a new block, and takes its checksum on the way. Waits while older
  // payloads are being written.
  //   RESOURCE_EXHAUSTED  all of RAM is pinned, or what is not cannot be written; UNAVAILABLE
  absl::StatusOr<std::shared_ptr<StoredBlock>> Store(std::shared_ptr<const BlockOwner> owner,
                                                     int32_t layer, int64_t index,
                                                     std::span<const std::byte> payload);

  // Whose use of a payload counts in Stats().
  enum class Use : uint8_t { kServe, kCompare };
  // Pins payloads in RAM, reading back those that are only cold. In the order of `blocks`.
  //   DATA_LOSS           a cold payload failed its check
  //   RESOURCE_EXHAUSTED  as for Store: all these payloads are in RAM at once
  absl::StatusOr<std::vector<BlockHandle>> Acquire(
      std::span<const std::shared_ptr<StoredBlock>> blocks, Use use = Use::kServe);

  // Those who add to it ask MakeRoom first.
  IndexMemory& index_memory() { return index_memory_; }
  // Waits until `bytes` more beside the RAM tier fit in memory. A bound for what comes one by one:
  // they are not set aside.
  //   RESOURCE_EXHAUSTED  names the limit and what holds it; UNAVAILABLE: as for Store
  absl::Status MakeRoom(int64_t bytes);

  // Deletes the cold entries of blocks that are gone by now.
  void DeleteDropped();

  // ---- What the catalog needs (catalog.h). REQUIRES of these: cold() is durable.
  // Null if there is none.
  ColdStore* cold() const { return cold_.get(); }
  // Writes those payloads that are in RAM only.
  absl::Status Persist(std::span<const std::shared_ptr<StoredBlock>> blocks);
  // A block of which another process has left the entry `number`.
  std::shared_ptr<StoredBlock> Restore(std::shared_ptr<const BlockOwner> owner, int32_t layer,
                                       int64_t index, uint64_t number,
                                       std::shared_ptr<const CommittedPart> committed);
  // From now on the entries of these blocks are owned by `committed`.
  void SetCommitted(std::span<const std::shared_ptr<StoredBlock>> blocks,
                    const std::shared_ptr<const CommittedPart>& committed);
  // The part that a block's entry belongs to; null unless it is committed.
  std::shared_ptr<const CommittedPart> CommittedPartOf(const StoredBlock& block) const;
  // REQUIRES: the block has been persisted.
  uint64_t EntryOf(const StoredBlock& block) const;
  // Writes a value that is not a block; its number.
  absl::StatusOr<uint64_t> PutEntry(std::string_view value);
  // The entries are deleted by the next DeleteDropped().
  void ForgetEntries(std::span<const EntryRun> runs);

  // The fields about payloads.
  StoreStats Stats() const;

 private:
  friend class StoredBlock;
  using Lock = std::unique_lock<std::mutex>;
  class Pin;
  struct Scratch {
    std::unique_ptr<std::byte[]> data;
    size_t bytes = 0;
  };

  TieredBlocks(const InProcessOptions& options, std::unique_ptr<ColdStore> cold,
               uint64_t first_entry);

  // A cold payload on its way back to RAM.
  struct Claim {
    size_t position = 0;  // in the caller's list
    StoredBlock* block = nullptr;
    std::byte* slot = nullptr;
    absl::Status status;
    bool open = false;  // the block's `reading_` is this claim's to end
  };
  // What one Acquire has got and still lacks.
  struct Request {
    std::span<const std::shared_ptr<StoredBlock>> blocks;
    Use use;
    std::vector<BlockHandle> handles;  // parallel to blocks
    std::vector<size_t> missing;       // positions
  };

  // Of one block, under the lock.
  BlockHandle PinBlock(StoredBlock& block);
  void Unpin(StoredBlock& block);
  void Link(StoredBlock& block, LruList<StoredBlock>& list);
  void LinkAsNewest(StoredBlock& block);
  void Unlink(StoredBlock& block);
  void DropFromRam(StoredBlock& block);
  void Forget(StoredBlock& block);
  void DropEntries(const EntryRun& run);

  // Room in RAM, under the lock; Reserve and AwaitRoom may release it while they wait.
  // `index_bytes`: beside the payload.
  absl::StatusOr<std::byte*> Reserve(Lock& lock, size_t payload_bytes, int64_t index_bytes = 0);
  absl::Status AwaitRoom(Lock& lock, size_t payload_bytes, int64_t index_bytes);
  // What is free of the RAM tier, or of all memory.
  int64_t FreeBytes() const;
  // Beside the RAM tier; and what remains of all memory if that were so much more.
  int64_t IndexBytes() const;
  int64_t IndexLeaves(int64_t index_bytes) const;
  enum class Order : uint8_t { kStrictLru, kAnyCold };
  bool EvictOne(Order order);
  absl::Status NoRoom(size_t payload_bytes, int64_t index_bytes) const;
  void WaitForProgress(Lock& lock);
  void WakeWaiters();
  void WakeThread();

  // Reading back.
  void PinResident(Request& request);
  absl::Status ClaimSome(Lock& lock, const Request& request, std::vector<Claim>& claims);
  void ReadClaims(std::span<Claim> claims);
  absl::Status FinishClaims(std::span<Claim> claims, Request& request);
  void CloseClaim(Claim& claim);
  void GiveUpOpen(std::span<Claim> claims);
  Scratch TakeScratch(size_t bytes);
  void ReturnScratch(Scratch scratch);

  // The thread (tiered_blocks_demotion.cc).
  void Run();
  int64_t Deficit() const;  // bytes of RAM that ought to be reclaimable and are not
  void PickBatch(std::vector<StoredBlock*>& batch);
  absl::Status WriteBatch(std::span<StoredBlock* const> batch);
  void FinishBatch(std::span<StoredBlock* const> batch, uint64_t started_at,
                   const absl::Status& status);
  void ClaimForWriting(StoredBlock& block);
  void EndWriting(std::span<StoredBlock* const> batch, uint64_t started_at,
                  const absl::Status& status);

  const int64_t memory_bytes_;
  const int64_t reclaimable_target_bytes_;
  const absl::Status out_of_memory_;  // made while there is some
  mutable std::mutex mu_;
  std::condition_variable work_;      // for the thread
  std::condition_variable progress_;  // for those who wait for room or for another's read

  RamTier ram_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<ColdStore> cold_;                  // only reset, by Shutdown
  LruList<StoredBlock> dirty_ ABSL_GUARDED_BY(mu_);  // unpinned, not cold yet
  // Unpinned, cold, not used since it was written; and used since.
  LruList<StoredBlock> demoted_ ABSL_GUARDED_BY(mu_);
  LruList<StoredBlock> clean_ ABSL_GUARDED_BY(mu_);
  uint64_t clock_ ABSL_GUARDED_BY(mu_) = 0;  // ticks at every use
  // Tick of the batch that the thread writes now.
  uint64_t oldest_writing_ ABSL_GUARDED_BY(mu_) = UINT64_MAX;
  size_t persisting_ ABSL_GUARDED_BY(mu_) = 0;  // blocks that Persist calls write now
  uint64_t next_cold_key_ ABSL_GUARDED_BY(mu_) = 1;
  std::vector<EntryRun> dropped_ ABSL_GUARDED_BY(mu_);
  int waiters_ ABSL_GUARDED_BY(mu_) = 0;
  bool batch_wanted_ ABSL_GUARDED_BY(mu_) = false;
  int64_t batches_started_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t failed_batch_ ABSL_GUARDED_BY(mu_) = 0;  // number of the last batch if it failed, else 0
  absl::Status batch_error_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<Scratch> idle_scratch_ ABSL_GUARDED_BY(mu_);
  StoreStats counts_ ABSL_GUARDED_BY(mu_);
  IndexMemory index_memory_;

  std::thread thread_;
};

}  // namespace infllm::memstore
