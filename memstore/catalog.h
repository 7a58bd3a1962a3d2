#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/hash/hash.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "memstore/commit_record.h"
#include "memstore/committed_part.h"
#include "memstore/context_registry.h"
#include "memstore/memory_store.h"
#include "memstore/tiered_blocks.h"

namespace infllm::memstore {

// The committed contexts of a store: their records are in RAM, their blocks and representatives are
// read when they are asked for, and let go when others were used later. Thread-safe; commits run
// one after the other.
class Catalog {
 public:
  // The least number that no entry of `cold` has (TieredBlocks::Create).
  static absl::StatusOr<uint64_t> FirstFreeEntry(ColdStore& cold);

  // Reads what is committed and deletes the entries that nobody has committed. `registry` must
  // outlive the catalog. Representatives that are kept for the next who asks have up to
  // `idle_representative_bytes`.
  static absl::StatusOr<std::unique_ptr<Catalog>> Open(std::shared_ptr<TieredBlocks> tiers,
                                                       ContextRegistry& registry,
                                                       int64_t idle_representative_bytes);

  // As MemoryStore says of each.
  absl::Status Commit(const CommitRequest& request, Context& context);
  absl::StatusOr<CommittedContext> FindName(std::string_view tenant, std::string_view name) const;
  std::vector<CommittedContext> List(std::string_view tenant) const;
  absl::StatusOr<Prefix> FindPrefix(const ContextOptions& options, int32_t exec_block,
                                    std::span<const int32_t> tokens) const;
  absl::StatusOr<Checkpoint> ReadCheckpoint(const ContextId& id) const;
  absl::Status Drop(const ContextId& id);

  bool Has(const ContextId& id) const { return FindEntry(id) != nullptr; }
  std::optional<CommittedContext> Find(const ContextId& id) const;
  // The context itself, in this process. NOT_FOUND, DATA_LOSS, UNAVAILABLE.
  absl::StatusOr<std::shared_ptr<Context>> Load(const ContextId& id);
  int64_t size() const;

 private:
  struct Entry {
    CommittedContext info;
    std::vector<PartUse> payloads;
    std::vector<PartUse> representatives;
    std::shared_ptr<const CommittedPart> checkpoint;  // its chunks
    int64_t checkpoint_bytes = 0;
    std::vector<PrefixHash> prefix;
    // Guarded by mu_.
    std::shared_ptr<Context> loaded;  // null until it is asked for
    uint64_t last_use = 0;
  };
  using EntryPtr = std::shared_ptr<Entry>;
  using Blocks = std::vector<std::vector<std::shared_ptr<StoredBlock>>>;  // by layer

  Catalog(std::shared_ptr<TieredBlocks> tiers, ContextRegistry& registry,
          int64_t idle_representative_bytes)
      : tiers_(std::move(tiers)),
        registry_(registry),
        idle_representative_bytes_(idle_representative_bytes) {}

  static absl::Status NotCommitted(const ContextId& id);
  absl::Status ReadAll();
  absl::Status DeleteNobodys();
  EntryPtr FindEntry(const ContextId& id) const;
  absl::Status CheckName(const CommitRequest& request, const ContextOptions& options) const;
  absl::Status Repeated(const CommitRequest& request, const Entry& entry) const;

  static absl::StatusOr<Blocks> BlocksOf(Context& snapshot, int64_t expected, int64_t& published);
  absl::StatusOr<std::vector<PartUse>> UsesOf(const Blocks& blocks) const;
  // Writing: each returns a part that owns what it has written.
  absl::StatusOr<std::shared_ptr<const CommittedPart>> WriteNumbers(const ContextId& maker,
                                                                    int64_t first_block,
                                                                    const Blocks& blocks);
  absl::StatusOr<std::shared_ptr<const CommittedPart>> WriteRepresentatives(const ContextId& maker,
                                                                            Context& snapshot,
                                                                            int64_t first_block,
                                                                            int64_t end);
  absl::StatusOr<std::shared_ptr<const CommittedPart>> WriteCheckpoint(
      const CommitRequest& request);
  // `in_doubt`: what the change adds or removes.
  absl::Status ChangeRecords(std::vector<ColdStore::RecordChange> changes,
                             std::initializer_list<EntryPtr> in_doubt);

  // Reading (catalog_reading.cc).
  // Contents of chunks; places and content_bytes are parallel to numbers.
  absl::StatusOr<std::vector<std::string>> ReadChunks(std::span<const uint64_t> numbers,
                                                      std::span<const ChunkPlace> places,
                                                      std::span<const size_t> content_bytes) const;
  absl::StatusOr<std::shared_ptr<Context>> ReadContext(const Entry& entry);
  absl::Status ReadBlocks(const PartUse& use, const ContextOptions& options,
                          std::vector<BlockTable>& tables);
  absl::Status ReadRepresentatives(const PartUse& use, const Geometry& geometry,
                                   std::vector<BlockIndex>& indices);
  absl::StatusOr<std::vector<BlockIndex>> SharedIndices(const Entry& entry, size_t& shared_parts);
  void LetGoOfIdle();

  const std::shared_ptr<TieredBlocks> tiers_;
  ContextRegistry& registry_;
  const int64_t idle_representative_bytes_;
  std::mutex commit_mu_;  // one change at a time; taken before the others
  std::mutex load_mu_;    // one context is read at a time; taken before mu_
  mutable std::mutex mu_;
  std::unordered_map<ContextId, EntryPtr, absl::Hash<ContextId>> by_id_ ABSL_GUARDED_BY(mu_);
  std::map<std::pair<std::string, std::string>, EntryPtr, std::less<>> by_name_
      ABSL_GUARDED_BY(mu_);  // tenant, name
  uint64_t clock_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<EntryPtr> in_doubt_ ABSL_GUARDED_BY(commit_mu_);
};

}  // namespace infllm::memstore
