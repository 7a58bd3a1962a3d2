// A MemoryStore that does what the test says, call by call; what was not said is UNIMPLEMENTED.
#pragma once

#include <functional>
#include <vector>

#include "memstore/memory_store.h"

namespace infllm::testing {

class PuppetStore final : public memstore::MemoryStore {
 public:
  using ContextId = memstore::ContextId;
  using Blocks = std::vector<memstore::BlockHandle>;

  std::function<absl::StatusOr<ContextId>(const memstore::ContextOptions&)> create;
  std::function<absl::Status(ContextId, int32_t, int64_t, std::span<const std::byte>)> append;
  std::function<absl::Status(ContextId, int32_t, int64_t, std::span<const float>)> publish;
  std::function<absl::StatusOr<memstore::Selection>(ContextId, int32_t,
                                                    const memstore::SelectRequest&)>
      select;
  std::function<absl::StatusOr<Blocks>(ContextId, int32_t, std::span<const int64_t>)> fetch;
  std::function<absl::StatusOr<ContextId>(ContextId)> fork;

  absl::StatusOr<ContextId> Create(const memstore::ContextOptions& options) override {
    return create ? create(options) : Unset();
  }
  absl::Status Append(ContextId context, int32_t layer, int64_t first_block,
                      std::span<const std::byte> payloads) override {
    return append ? append(context, layer, first_block, payloads) : Unset();
  }
  absl::Status Publish(ContextId context, int32_t layer, int64_t first_block,
                       std::span<const float> representatives) override {
    return publish ? publish(context, layer, first_block, representatives) : Unset();
  }
  absl::StatusOr<memstore::Selection> Select(ContextId context, int32_t layer,
                                             const memstore::SelectRequest& request) override {
    if (!select) return Unset();
    return select(context, layer, request);
  }
  absl::StatusOr<Blocks> Fetch(ContextId context, int32_t layer,
                               std::span<const int64_t> blocks) override {
    if (!fetch) return Unset();
    return fetch(context, layer, blocks);
  }
  absl::Status Seal(ContextId) override { return absl::OkStatus(); }
  absl::StatusOr<ContextId> Fork(ContextId context) override {
    return fork ? fork(context) : Unset();
  }
  absl::Status Drop(ContextId) override { return absl::OkStatus(); }
  absl::StatusOr<memstore::StoreStats> Stats() override { return memstore::StoreStats(); }

 private:
  static absl::Status Unset() { return absl::UnimplementedError("the test did not set this call"); }
};

// A handle that owns its bytes.
inline memstore::BlockHandle OwnedBlock(std::vector<std::byte> bytes) {
  auto owner = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
  const std::span<const std::byte> payload(*owner);
  return memstore::BlockHandle(payload, std::move(owner));
}

}  // namespace infllm::testing
