// A MemoryStore that does what the test says, call by call; what was not said is UNIMPLEMENTED.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "memstore/memory_store.h"

namespace infllm::testing {

// A function that one thread sets and others call.
template <typename Signature>
class Settable;
template <typename Result, typename... Args>
class Settable<Result(Args...)> {
 public:
  template <typename Function>
  Settable& operator=(Function function) {
    const std::lock_guard lock(mutex_);
    function_ = std::move(function);
    return *this;
  }
  Result operator()(Args... args) const {
    const std::function<Result(Args...)> function = Get();
    if (!function) return absl::UnimplementedError("the test did not set this call");
    return function(args...);
  }

 private:
  std::function<Result(Args...)> Get() const {
    const std::lock_guard lock(mutex_);
    return function_;
  }
  mutable std::mutex mutex_;
  std::function<Result(Args...)> function_;
};

class PuppetStore final : public memstore::MemoryStore {
 public:
  using ContextId = memstore::ContextId;
  using Blocks = std::vector<memstore::BlockHandle>;

  Settable<absl::StatusOr<ContextId>(const memstore::ContextOptions&)> create;
  Settable<absl::Status(ContextId, int32_t, int64_t, std::span<const std::byte>)> append;
  Settable<absl::Status(ContextId, int32_t, int64_t, std::span<const float>)> publish;
  Settable<absl::StatusOr<memstore::Selection>(ContextId, int32_t, const memstore::SelectRequest&)>
      select;
  Settable<absl::StatusOr<Blocks>(ContextId, int32_t, std::span<const int64_t>)> fetch;
  Settable<absl::StatusOr<ContextId>(ContextId)> fork;

  absl::StatusOr<ContextId> Create(const memstore::ContextOptions& options) override {
    return create(options);
  }
  absl::Status Append(ContextId context, int32_t layer, int64_t first_block,
                      std::span<const std::byte> payloads) override {
    return append(context, layer, first_block, payloads);
  }
  absl::Status Publish(ContextId context, int32_t layer, int64_t first_block,
                       std::span<const float> representatives) override {
    return publish(context, layer, first_block, representatives);
  }
  absl::StatusOr<memstore::Selection> Select(ContextId context, int32_t layer,
                                             const memstore::SelectRequest& request) override {
    return select(context, layer, request);
  }
  absl::StatusOr<Blocks> Fetch(ContextId context, int32_t layer,
                               std::span<const int64_t> blocks) override {
    return fetch(context, layer, blocks);
  }
  absl::Status Seal(ContextId) override { return absl::OkStatus(); }
  absl::StatusOr<ContextId> Fork(ContextId context) override { return fork(context); }
  absl::Status Drop(ContextId) override { return absl::OkStatus(); }
  absl::StatusOr<memstore::StoreStats> Stats() override { return memstore::StoreStats(); }
};

// A handle that owns its bytes.
inline memstore::BlockHandle OwnedBlock(std::vector<std::byte> bytes) {
  auto owner = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
  const std::span<const std::byte> payload(*owner);
  return memstore::BlockHandle(payload, std::move(owner));
}

}  // namespace infllm::testing
