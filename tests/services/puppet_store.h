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

  using Payloads = std::span<const std::span<const std::byte>>;

  Settable<absl::Status(const ContextId&, const memstore::ContextOptions&)> create;
  Settable<absl::Status(const ContextId&, int32_t, int64_t, Payloads)> append;
  Settable<absl::Status(const ContextId&, int32_t, int64_t, std::span<const float>)> publish;
  Settable<absl::StatusOr<std::vector<memstore::Selection>>(const memstore::SelectRequest&)> select;
  Settable<absl::StatusOr<Blocks>(const ContextId&, int32_t, std::span<const int64_t>)> fetch;
  Settable<absl::Status(const ContextId&, const ContextId&)> fork;
  Settable<absl::Status(const ContextId&)> drop;

  absl::Status Create(const ContextId& id, const memstore::ContextOptions& options) override {
    return create(id, options);
  }
  absl::Status Append(const ContextId& context, int32_t layer, int64_t first_block,
                      Payloads payloads) override {
    return append(context, layer, first_block, payloads);
  }
  absl::Status Publish(const ContextId& context, int32_t layer, int64_t first_block,
                       std::span<const float> representatives) override {
    return publish(context, layer, first_block, representatives);
  }
  absl::StatusOr<std::vector<memstore::Selection>> Select(
      const memstore::SelectRequest& request) override {
    return select(request);
  }
  absl::StatusOr<memstore::IndexView> View(const ContextId&, int32_t) override {
    return absl::UnimplementedError("a puppet");
  }
  absl::StatusOr<Blocks> Fetch(const ContextId& context, int32_t layer,
                               std::span<const int64_t> blocks) override {
    return fetch(context, layer, blocks);
  }
  absl::Status Seal(const ContextId&) override { return absl::OkStatus(); }
  absl::Status Fork(const ContextId& parent, const ContextId& child) override {
    return fork(parent, child);
  }
  absl::Status Drop(const ContextId& context) override { return drop(context); }
  absl::StatusOr<memstore::StoreStats> Stats() override { return memstore::StoreStats(); }
};

// A handle that owns its bytes.
inline memstore::BlockHandle OwnedBlock(std::vector<std::byte> bytes) {
  auto owner = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
  const std::span<const std::byte> payload(*owner);
  return memstore::BlockHandle(payload, std::move(owner));
}

}  // namespace infllm::testing
