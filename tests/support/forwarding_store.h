// A MemoryStore that hands every call on to another: what a test changes it overrides.
#pragma once

#include <string_view>
#include <vector>

#include "memstore/memory_store.h"

namespace infllm::testing {

class ForwardingStore : public memstore::MemoryStore {
 public:
  using ContextId = memstore::ContextId;

  // `base` must outlive this.
  explicit ForwardingStore(memstore::MemoryStore& base) : base_(&base) {}

  absl::Status Create(const ContextId& id, const memstore::ContextOptions& options) override {
    return base_->Create(id, options);
  }
  absl::StatusOr<memstore::ContextOptions> Describe(const ContextId& context) override {
    return base_->Describe(context);
  }
  absl::Status Append(const ContextId& context, int32_t layer, int64_t first_block,
                      std::span<const std::span<const std::byte>> payloads) override {
    return base_->Append(context, layer, first_block, payloads);
  }
  absl::Status Publish(const ContextId& context, int32_t layer, int64_t first_block,
                       std::span<const float> representatives) override {
    return base_->Publish(context, layer, first_block, representatives);
  }
  absl::StatusOr<std::vector<memstore::Selection>> Select(
      const memstore::SelectRequest& request) override {
    return base_->Select(request);
  }
  absl::StatusOr<memstore::IndexView> View(const ContextId& context, int32_t layer) override {
    return base_->View(context, layer);
  }
  absl::StatusOr<std::vector<memstore::BlockHandle>> Fetch(
      const ContextId& context, int32_t layer, std::span<const int64_t> blocks) override {
    return base_->Fetch(context, layer, blocks);
  }
  using MemoryStore::Fork;
  absl::Status Fork(std::span<const memstore::ForkPart> parts, const ContextId& child) override {
    return base_->Fork(parts, child);
  }
  absl::Status Drop(const ContextId& context) override { return base_->Drop(context); }
  absl::Status Commit(const memstore::CommitRequest& request) override {
    return base_->Commit(request);
  }
  absl::StatusOr<memstore::CommittedContext> FindCommitted(std::string_view tenant,
                                                           std::string_view name) override {
    return base_->FindCommitted(tenant, name);
  }
  absl::StatusOr<std::vector<memstore::CommittedContext>> ListCommitted(
      std::string_view tenant) override {
    return base_->ListCommitted(tenant);
  }
  absl::StatusOr<memstore::Prefix> FindPrefix(const memstore::ContextOptions& options,
                                              int32_t exec_block,
                                              std::span<const int32_t> tokens) override {
    return base_->FindPrefix(options, exec_block, tokens);
  }
  absl::StatusOr<memstore::Checkpoint> ReadCheckpoint(const ContextId& committed) override {
    return base_->ReadCheckpoint(committed);
  }
  absl::StatusOr<memstore::StoreStats> Stats() override { return base_->Stats(); }

 protected:
  memstore::MemoryStore& base() const { return *base_; }

 private:
  memstore::MemoryStore* base_;
};

}  // namespace infllm::testing
