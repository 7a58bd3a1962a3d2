#include "memstore/tiered_blocks.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <new>
#include <string_view>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "memstore/cold_key.h"
#include "memstore/crc32c.h"

namespace infllm::memstore {
namespace {

// Reads of one Acquire go to the cold tier in groups of this size: enough to keep a disk busy, and
// a bound on the memory that reading takes besides RAM.
constexpr size_t kReadGroupBytes = size_t{8} << 20;
// Read buffers kept for reuse; more exist only while more threads read at once.
constexpr size_t kIdleScratch = 4;

// How much of RAM is kept free or droppable without a write: lets Append run on while a batch is
// being written.
constexpr int64_t kMaxReclaimableTargetBytes = int64_t{256} << 20;

}  // namespace

// What a BlockHandle owns.
class TieredBlocks::Pin {
 public:
  explicit Pin(std::shared_ptr<StoredBlock> block) : block_(std::move(block)) {}
  ~Pin() {
    const std::lock_guard lock(block_->tiers_->mu_);
    block_->tiers_->Unpin(*block_);
  }
  Pin(const Pin&) = delete;
  Pin& operator=(const Pin&) = delete;

 private:
  std::shared_ptr<StoredBlock> block_;  // goes after the lock
};

StoredBlock::StoredBlock(std::shared_ptr<TieredBlocks> tiers,
                         std::shared_ptr<const BlockOwner> owner, int32_t layer, int64_t index,
                         uint32_t payload_crc)
    : tiers_(std::move(tiers)),
      owner_(std::move(owner)),
      layer_(layer),
      index_(index),
      payload_crc_(payload_crc) {}

StoredBlock::~StoredBlock() {
  TieredBlocks::Lock lock(tiers_->mu_);
  while (writing_) tiers_->WaitForProgress(lock);
  tiers_->Forget(*this);
}

BlockIdentity StoredBlock::identity() const {
  return {.key = key(),
          .tenant = owner_->options.tenant,
          .model = owner_->options.model,
          .recipe = owner_->options.recipe,
          .geometry = owner_->options.geometry};
}

CommittedPart::~CommittedPart() { tiers_->ForgetEntries(info_.entries); }

TieredBlocks::TieredBlocks(const InProcessOptions& options, std::unique_ptr<ColdStore> cold,
                           uint64_t first_entry)
    : memory_bytes_(options.memory_bytes),
      reclaimable_target_bytes_(
          std::min(options.ram_capacity_bytes / 8, kMaxReclaimableTargetBytes)),
      out_of_memory_(
          absl::ResourceExhaustedError("the process has no memory left to write blocks")),
      ram_(options.ram_capacity_bytes),
      cold_(std::move(cold)),
      next_cold_key_(first_entry) {
  idle_scratch_.reserve(kIdleScratch);
  if (cold_ != nullptr) thread_ = std::thread([this] { Run(); });
}

std::shared_ptr<TieredBlocks> TieredBlocks::Create(const InProcessOptions& options,
                                                   std::unique_ptr<ColdStore> cold,
                                                   uint64_t first_entry) {
  return std::shared_ptr<TieredBlocks>(new TieredBlocks(options, std::move(cold), first_entry));
}

TieredBlocks::~TieredBlocks() { INFLLM_CHECK(!thread_.joinable()); }

void TieredBlocks::Shutdown() {
  {
    const std::lock_guard lock(mu_);
    stopping_ = true;
    work_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
  cold_.reset();
}

absl::StatusOr<std::shared_ptr<StoredBlock>> TieredBlocks::Store(
    std::shared_ptr<const BlockOwner> owner, int32_t layer, int64_t index,
    std::span<const std::byte> payload) {
  std::byte* slot;
  {
    Lock lock(mu_);
    INFLLM_ASSIGN_OR_RETURN(slot, Reserve(lock, payload.size(), kBlockBytes));
  }
  absl::Cleanup give_back = [&] {
    const std::lock_guard lock(mu_);
    ram_.Free(slot, payload.size());
    WakeWaiters();
  };
  const uint32_t payload_crc = CopyWithCrc32c(payload, slot);
  auto block = std::make_shared<StoredBlock>(shared_from_this(), std::move(owner), layer, index,
                                             payload_crc);
  std::move(give_back).Cancel();
  const std::lock_guard lock(mu_);
  ++counts_.blocks;
  ++counts_.blocks_ram;
  counts_.dirty_bytes += block->lru_bytes();
  block->slot_ = slot;
  LinkAsNewest(*block);
  return block;
}

absl::StatusOr<std::vector<BlockHandle>> TieredBlocks::Acquire(
    std::span<const std::shared_ptr<StoredBlock>> blocks, Use use) {
  Request request{.blocks = blocks, .use = use};
  request.handles.resize(blocks.size());
  request.missing.resize(blocks.size());
  for (size_t i = 0; i < blocks.size(); ++i) request.missing[i] = i;
  for (;;) {
    std::vector<Claim> claims;
    // Whatever happens below, others may read what we do not.
    const absl::Cleanup give_up = [&] { GiveUpOpen(claims); };
    {
      Lock lock(mu_);
      PinResident(request);
      if (request.missing.empty()) break;
      INFLLM_RETURN_IF_ERROR(ClaimSome(lock, request, claims));
      if (claims.empty()) {  // others are reading all that we lack
        WaitForProgress(lock);
        continue;
      }
    }
    ReadClaims(claims);
    INFLLM_RETURN_IF_ERROR(FinishClaims(claims, request));
  }
  return std::move(request.handles);
}

void TieredBlocks::DeleteDropped() {
  std::vector<EntryRun> runs;
  {
    const std::lock_guard lock(mu_);
    runs.swap(dropped_);
  }
  if (runs.empty() || cold_ == nullptr) return;
  std::vector<ColdKey> keys;
  for (const EntryRun& run : runs) {
    for (uint64_t i = 0; i < run.count; ++i) keys.emplace_back(run.first + i);
  }
  std::vector<std::string_view> views;
  views.reserve(keys.size());
  for (const ColdKey& key : keys) views.push_back(key.view());
  // An entry that stays only takes space, until its store is opened again.
  cold_->Delete(views).IgnoreError();
}

// Under the lock, and without I/O: see DeleteDropped.
void TieredBlocks::DropEntries(const EntryRun& run) {
  if (!dropped_.empty() && dropped_.back().first + dropped_.back().count == run.first) {
    dropped_.back().count += run.count;
    return;
  }
  try {
    dropped_.push_back(run);
  } catch (const std::bad_alloc&) {  // an entry that stays only takes space
  }
}

StoreStats TieredBlocks::Stats() const {
  StoreStats stats;
  {
    const std::lock_guard lock(mu_);
    stats = counts_;
    stats.ram_bytes = ram_.used_bytes();
    stats.ram_capacity_bytes = ram_.capacity_bytes();
    stats.representative_bytes = index_memory_.representatives;
    stats.bookkeeping_bytes = IndexBytes() - stats.representative_bytes;
  }
  if (cold_ != nullptr) stats.disk_free_bytes = cold_->FreeBytes();
  return stats;
}

// ---- One block, under the lock.

BlockHandle TieredBlocks::PinBlock(StoredBlock& block) {
  auto pin = std::make_shared<Pin>(block.shared_from_this());  // first: it can throw
  if (block.list_ != nullptr) Unlink(block);
  if (block.pins_++ == 0) counts_.pinned_bytes += block.lru_bytes();
  return BlockHandle({block.slot_, block.payload_bytes()}, std::move(pin));
}

void TieredBlocks::Unpin(StoredBlock& block) {
  if (--block.pins_ > 0) return;
  counts_.pinned_bytes -= block.lru_bytes();
  LinkAsNewest(block);
  WakeWaiters();
}

void TieredBlocks::Link(StoredBlock& block, LruList<StoredBlock>& list) {
  list.PushNewest(&block);
  block.list_ = &list;
}

void TieredBlocks::LinkAsNewest(StoredBlock& block) {
  block.last_use_ = ++clock_;
  if (block.writing_) return;  // EndWriting links it
  Link(block, block.cold_ ? clean_ : dirty_);
  WakeThread();
}

void TieredBlocks::Unlink(StoredBlock& block) {
  block.list_->Remove(&block);
  block.list_ = nullptr;
}

void TieredBlocks::DropFromRam(StoredBlock& block) {
  ram_.Free(std::exchange(block.slot_, nullptr), block.payload_bytes());
  --counts_.blocks_ram;
}

void TieredBlocks::Forget(StoredBlock& block) {
  INFLLM_CHECK(block.pins_ == 0 && !block.reading_ && !block.writing_);
  if (block.list_ != nullptr) Unlink(block);
  if (block.slot_ != nullptr) {
    if (!block.cold_) counts_.dirty_bytes -= block.lru_bytes();
    DropFromRam(block);
    WakeWaiters();
  }
  if (block.cold_) {
    --counts_.blocks_cold;
    counts_.cold_bytes -= static_cast<int64_t>(block.payload_bytes());
    if (block.committed_ == nullptr) DropEntries({.first = block.cold_key_, .count = 1});
  }
  --counts_.blocks;
}

// ---- Room in RAM, under the lock.

absl::StatusOr<std::byte*> TieredBlocks::Reserve(Lock& lock, size_t payload_bytes,
                                                 int64_t index_bytes) {
  INFLLM_RETURN_IF_ERROR(AwaitRoom(lock, payload_bytes, index_bytes));
  absl::StatusOr<std::byte*> slot = ram_.Allocate(payload_bytes);
  WakeThread();
  return slot;
}

absl::Status TieredBlocks::MakeRoom(int64_t bytes) {
  Lock lock(mu_);
  INFLLM_RETURN_IF_ERROR(AwaitRoom(lock, 0, bytes));
  WakeThread();
  return absl::OkStatus();
}

int64_t TieredBlocks::IndexBytes() const {
  return index_memory_.representatives + index_memory_.contexts + counts_.blocks * kBlockBytes;
}

int64_t TieredBlocks::IndexLeaves(int64_t index_bytes) const {
  return memory_bytes_ - IndexBytes() - index_bytes;
}

int64_t TieredBlocks::FreeBytes() const {
  return std::min(ram_.capacity_bytes(), IndexLeaves(0)) - ram_.used_bytes();
}

absl::Status TieredBlocks::AwaitRoom(Lock& lock, size_t payload_bytes, int64_t index_bytes) {
  const int64_t batches_before = batches_started_;
  const int64_t slot_bytes = RamTier::SlotBytes(payload_bytes);
  for (;;) {
    const int64_t left = IndexLeaves(index_bytes);
    if (left < slot_bytes) return NoRoom(payload_bytes, index_bytes);  // no eviction would help
    if (ram_.HasRoom(payload_bytes) && ram_.used_bytes() + slot_bytes <= left) {
      ram_.Trim(left);
      return absl::OkStatus();
    }
    if (EvictOne(Order::kStrictLru)) continue;
    const bool draining =
        cold_ != nullptr && (!dirty_.empty() || persisting_ > 0 || oldest_writing_ != UINT64_MAX);
    if (draining && failed_batch_ <= batches_before) {
      batch_wanted_ = !dirty_.empty();
      work_.notify_one();
      WaitForProgress(lock);
    } else if (!EvictOne(Order::kAnyCold)) {
      return NoRoom(payload_bytes, index_bytes);
    }
  }
}

bool TieredBlocks::EvictOne(Order order) {
  StoredBlock* oldest = demoted_.oldest();
  if (StoredBlock* clean = clean_.oldest();
      oldest == nullptr || (clean != nullptr && clean->last_use_ < oldest->last_use_)) {
    oldest = clean;
  }
  if (oldest == nullptr) return false;
  if (order == Order::kStrictLru) {  // rather wait for the write of one that is older
    const uint64_t unwritten = dirty_.empty() ? UINT64_MAX : dirty_.oldest()->last_use_;
    if (std::min(unwritten, oldest_writing_) < oldest->last_use_) return false;
  }
  Unlink(*oldest);
  DropFromRam(*oldest);
  ++counts_.evictions;
  return true;
}

absl::Status TieredBlocks::NoRoom(size_t payload_bytes, int64_t index_bytes) const {
  std::string state =
      payload_bytes == 0
          ? absl::StrCat("the store has no memory for ", index_bytes, " bytes more: ")
          : absl::StrCat("the RAM tier has no room for a block of ", payload_bytes, " bytes: ");
  absl::StrAppend(&state, ram_.used_bytes(), " of ", ram_.capacity_bytes(), " bytes are used, ",
                  counts_.pinned_bytes, " of them by blocks being read, ", counts_.dirty_bytes,
                  " by blocks not in the cold tier; ");
  if (memory_bytes_ != INT64_MAX) {
    absl::StrAppend(&state, "of ", memory_bytes_, " bytes of all memory representatives take ",
                    index_memory_.representatives.load(), ", the bookkeeping of ", counts_.blocks,
                    " blocks ", counts_.blocks * kBlockBytes, " and that of contexts ",
                    index_memory_.contexts.load(), "; ");
  }
  if (IndexLeaves(index_bytes) < RamTier::SlotBytes(payload_bytes)) {
    return absl::ResourceExhaustedError(absl::StrCat(state, "raise --ram-bytes or drop contexts"));
  }
  if (RamTier::SlotBytes(payload_bytes) > ram_.capacity_bytes()) {
    return absl::ResourceExhaustedError(absl::StrCat(state, "raise --ram-bytes"));
  }
  if (cold_ == nullptr && !dirty_.empty()) {
    return absl::ResourceExhaustedError(
        absl::StrCat(state, "there is no cold tier: give one (--data-dir) or raise --ram-bytes"));
  }
  if (failed_batch_ != 0 && !dirty_.empty()) {
    return absl::Status(batch_error_.code(),
                        absl::StrCat(state, "the cold tier fails: ", batch_error_.message()));
  }
  return absl::ResourceExhaustedError(
      absl::StrCat(state,
                   "raise --ram-bytes, or lower --top-k or --cache-blocks, so that fewer "
                   "are held at once"));
}

void TieredBlocks::WaitForProgress(Lock& lock) {
  ++waiters_;
  progress_.wait(lock);
  --waiters_;
}

void TieredBlocks::WakeWaiters() {
  if (waiters_ > 0) progress_.notify_all();
}

void TieredBlocks::WakeThread() {
  if (failed_batch_ == 0 && !dirty_.empty() && Deficit() > 0) work_.notify_one();
}

// ---- Reading back.

void TieredBlocks::PinResident(Request& request) {
  std::erase_if(request.missing, [&](size_t position) {
    StoredBlock& block = *request.blocks[position];
    if (block.slot_ == nullptr) return false;
    request.handles[position] = PinBlock(block);
    if (request.use == Use::kServe) ++counts_.ram_hits;
    return true;
  });
}

// Takes on as many missing payloads as make a group and reserves room for each.
absl::Status TieredBlocks::ClaimSome(Lock& lock, const Request& request,
                                     std::vector<Claim>& claims) {
  size_t bytes = 0;
  for (size_t position : request.missing) {
    StoredBlock& block = *request.blocks[position];
    if (block.slot_ != nullptr || block.reading_) continue;  // by another, or asked for twice
    INFLLM_CHECK(block.cold_);
    bytes += EncodedBlockBytes(block.payload_bytes());
    if (!claims.empty() && bytes > kReadGroupBytes) break;
    claims.push_back({.position = position, .block = &block, .open = true});
    block.reading_ = true;
    INFLLM_ASSIGN_OR_RETURN(claims.back().slot, Reserve(lock, block.payload_bytes()));
  }
  return absl::OkStatus();
}

void TieredBlocks::ReadClaims(std::span<Claim> claims) {
  const size_t encoded_bytes = EncodedBlockBytes(claims[0].block->payload_bytes());
  Scratch scratch = TakeScratch(claims.size() * encoded_bytes);
  std::vector<ColdKey> keys;
  std::vector<std::string_view> key_views;
  std::vector<std::span<std::byte>> encoded;
  keys.reserve(claims.size());  // key_views point into it
  for (const Claim& claim : claims) {
    keys.emplace_back(claim.block->cold_key_);
    key_views.push_back(keys.back().view());
    encoded.emplace_back(scratch.data.get() + encoded.size() * encoded_bytes, encoded_bytes);
  }
  const std::vector<absl::Status> statuses = cold_->Get(key_views, encoded);
  for (size_t i = 0; i < claims.size(); ++i) {
    const BlockIdentity identity = claims[i].block->identity();
    if (absl::IsNotFound(statuses[i])) {
      claims[i].status = absl::DataLossError(absl::StrCat(
          "the cold tier has lost ", ToString(identity.key), ": ", statuses[i].message()));
    } else if (!statuses[i].ok()) {
      claims[i].status = absl::Status(statuses[i].code(),
                                      absl::StrCat("reading ", ToString(identity.key),
                                                   " from the cold tier: ", statuses[i].message()));
    } else {
      claims[i].status = VerifyBlock(encoded[i], identity);
      if (claims[i].status.ok()) {
        std::memcpy(claims[i].slot, encoded[i].data() + kBlockHeaderBytes,
                    encoded_bytes - kBlockHeaderBytes);
      }
    }
  }
  ReturnScratch(std::move(scratch));
}

absl::Status TieredBlocks::FinishClaims(std::span<Claim> claims, Request& request) {
  absl::Status first_error;
  const std::lock_guard lock(mu_);
  for (Claim& claim : claims) {
    if (claim.status.ok()) {
      claim.block->slot_ = std::exchange(claim.slot, nullptr);
      ++counts_.blocks_ram;
      LinkAsNewest(*claim.block);
    } else {
      if (absl::IsDataLoss(claim.status)) ++counts_.corrupt_blocks;
      first_error.Update(claim.status);
    }
    CloseClaim(claim);
  }
  WakeWaiters();
  for (const Claim& claim : claims) {  // all are in order by now: a pin can throw
    if (!claim.status.ok()) continue;
    request.handles[claim.position] = PinBlock(*claim.block);
    std::erase(request.missing, claim.position);
    if (request.use == Use::kServe) ++counts_.cold_hits;
  }
  return first_error;
}

// Under the lock. The slot goes unless it has become the block's.
void TieredBlocks::CloseClaim(Claim& claim) {
  claim.block->reading_ = false;
  if (claim.slot != nullptr) ram_.Free(claim.slot, claim.block->payload_bytes());
  claim.open = false;
}

void TieredBlocks::GiveUpOpen(std::span<Claim> claims) {
  if (std::ranges::none_of(claims, &Claim::open)) return;
  const std::lock_guard lock(mu_);
  for (Claim& claim : claims) {
    if (claim.open) CloseClaim(claim);
  }
  WakeWaiters();
}

TieredBlocks::Scratch TieredBlocks::TakeScratch(size_t bytes) {
  Scratch scratch;
  {
    const std::lock_guard lock(mu_);
    if (!idle_scratch_.empty()) {
      scratch = std::move(idle_scratch_.back());
      idle_scratch_.pop_back();
    }
  }
  if (scratch.bytes < bytes) {
    scratch = {.data = std::make_unique_for_overwrite<std::byte[]>(bytes), .bytes = bytes};
  }
  return scratch;
}

void TieredBlocks::ReturnScratch(Scratch scratch) {
  const std::lock_guard lock(mu_);
  if (idle_scratch_.size() < kIdleScratch) idle_scratch_.push_back(std::move(scratch));
}

}  // namespace infllm::memstore
