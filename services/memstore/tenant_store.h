#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "memstore/memory_store.h"
#include "services/memstore/identity.h"

namespace infllm::services {

// A store as one caller may see it: with the contexts of its tenant and no others. Everything that
// a caller does goes through it, so this is where tenants are kept apart. To another tenant's id
// the store answers as to one that nobody has; only that it is taken cannot be hidden from who
// makes a context of it. What a caller names as a tenant is not looked at. Thread-safe.
class TenantStore final : public memstore::MemoryStore {
 public:
  using ContextId = memstore::ContextId;

  // `base` must outlive this.
  TenantStore(memstore::MemoryStore& base, Caller caller);

  absl::Status Create(const ContextId& id, const memstore::ContextOptions& options) override;
  absl::StatusOr<memstore::ContextOptions> Describe(const ContextId& context) override;
  absl::Status Append(const ContextId& context, int32_t layer, int64_t first_block,
                      std::span<const std::span<const std::byte>> payloads) override;
  absl::Status Publish(const ContextId& context, int32_t layer, int64_t first_block,
                       std::span<const float> representatives) override;
  absl::StatusOr<std::vector<memstore::Selection>> Select(
      const memstore::SelectRequest& request) override;
  absl::StatusOr<memstore::IndexView> View(const ContextId& context, int32_t layer) override;
  absl::StatusOr<std::vector<memstore::BlockHandle>> Fetch(
      const ContextId& context, int32_t layer, std::span<const int64_t> blocks) override;
  using MemoryStore::Fork;
  absl::Status Fork(std::span<const memstore::ForkPart> parts, const ContextId& child) override;
  absl::Status Drop(const ContextId& context) override;
  absl::Status Commit(const memstore::CommitRequest& request) override;
  absl::StatusOr<memstore::CommittedContext> FindCommitted(std::string_view tenant,
                                                           std::string_view name) override;
  absl::StatusOr<std::vector<memstore::CommittedContext>> ListCommitted(
      std::string_view tenant) override;
  absl::StatusOr<memstore::Prefix> FindPrefix(const memstore::ContextOptions& options,
                                              int32_t exec_block,
                                              std::span<const int32_t> tokens) override;
  absl::StatusOr<memstore::Checkpoint> ReadCheckpoint(const ContextId& committed) override;
  // Of the whole store; to one of many only what it was made with.
  absl::StatusOr<memstore::StoreStats> Stats() override;

 private:
  bool IsAnothers(const ContextId& id);
  template <typename Call>
  auto With(const ContextId& id, Call call);

  memstore::MemoryStore& base_;
  const Caller caller_;
};

}  // namespace infllm::services
