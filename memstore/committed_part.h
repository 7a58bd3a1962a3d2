// Entries of the cold tier that committed contexts share.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "memstore/block.h"

namespace infllm::memstore {

class TieredBlocks;
class StoredBlock;

// Numbers of consecutive entries (cold_key.h).
struct EntryRun {
  uint64_t first = 0;
  uint64_t count = 0;
  friend bool operator==(const EntryRun&, const EntryRun&) = default;
};

// Consecutive blocks that were appended to one context.
struct OwnerRun {
  ContextId owner;
  int64_t blocks = 0;
  friend bool operator==(const OwnerRun&, const OwnerRun&) = default;
};

// What one commit has added for some blocks of every layer: their payloads, or their
// representatives. Later commits of the same context, and of its forks, use it, too.
struct PartInfo {
  ContextId maker;  // the committed context that was the first to use it
  int64_t first_block = 0;
  int64_t blocks = 0;
  // All entries that belong to it, ascending; those of payloads among them.
  std::vector<EntryRun> entries;
  // Of payloads the numbers of their entries, of representatives these themselves: entries, the
  // same number for each layer, [layers, chunks].
  std::vector<uint64_t> chunks;
  std::vector<OwnerRun> owners;  // of payloads
  friend bool operator==(const PartInfo&, const PartInfo&) = default;
};

// A part in this process. Its entries are deleted when no committed context and no block holds it
// any more: those that records name stay, because the process ends without deleting anything.
class CommittedPart {
 public:
  CommittedPart(std::shared_ptr<TieredBlocks> tiers, PartInfo info)
      : tiers_(std::move(tiers)), info_(std::move(info)) {}
  ~CommittedPart();
  CommittedPart(const CommittedPart&) = delete;
  CommittedPart& operator=(const CommittedPart&) = delete;

  const PartInfo& info() const { return info_; }

  // Of payloads: the blocks that are in this process, [layers, blocks], or none. Guarded by the
  // catalog.
  mutable std::vector<std::weak_ptr<StoredBlock>> present;

 private:
  const std::shared_ptr<TieredBlocks> tiers_;
  const PartInfo info_;
};

// The first `blocks` blocks of a part.
struct PartUse {
  std::shared_ptr<const CommittedPart> part;
  int64_t blocks = 0;
};

}  // namespace infllm::memstore
