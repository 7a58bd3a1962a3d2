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
  Settable<absl::Status(std::span<const memstore::ForkPart>, const ContextId&)> fork;
  Settable<absl::Status(const ContextId&)> drop;
  Settable<absl::Status(const memstore::CommitRequest&)> commit;
  Settable<absl::StatusOr<memstore::CommittedContext>(std::string_view, std::string_view)>
      find_committed;
  Settable<absl::StatusOr<std::vector<memstore::CommittedContext>>(std::string_view)>
      list_committed;
  Settable<absl::StatusOr<memstore::Prefix>(const memstore::ContextOptions&, int32_t,
                                            std::span<const int32_t>)>
      find_prefix;
  Settable<absl::StatusOr<memstore::Checkpoint>(const ContextId&)> read_checkpoint;

  absl::Status Create(const ContextId& id, const memstore::ContextOptions& options) override {
    const std::lock_guard lock(mutex_);
    options_[ToString(id)] = options;
    return create(id, options);
  }
  absl::StatusOr<memstore::ContextOptions> Describe(const ContextId& id) override {
    const std::lock_guard lock(mutex_);
    const auto found = options_.find(ToString(id));
    if (found == options_.end())
      return absl::NotFoundError("context " + ToString(id) + " was never created");
    return found->second;
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
  using MemoryStore::Fork;
  absl::Status Fork(std::span<const memstore::ForkPart> parts, const ContextId& child) override {
    {
      const std::lock_guard lock(mutex_);
      options_[ToString(child)] = options_[ToString(parts[0].context)];
    }
    return fork(parts, child);
  }
  absl::Status Drop(const ContextId& context) override { return drop(context); }
  absl::Status Commit(const memstore::CommitRequest& request) override { return commit(request); }
  absl::StatusOr<memstore::CommittedContext> FindCommitted(std::string_view tenant,
                                                           std::string_view name) override {
    return find_committed(tenant, name);
  }
  absl::StatusOr<std::vector<memstore::CommittedContext>> ListCommitted(
      std::string_view tenant) override {
    return list_committed(tenant);
  }
  absl::StatusOr<memstore::Prefix> FindPrefix(const memstore::ContextOptions& options,
                                              int32_t exec_block,
                                              std::span<const int32_t> tokens) override {
    return find_prefix(options, exec_block, tokens);
  }
  absl::StatusOr<memstore::Checkpoint> ReadCheckpoint(const ContextId& id) override {
    return read_checkpoint(id);
  }
  absl::StatusOr<memstore::StoreStats> Stats() override { return memstore::StoreStats(); }

 private:
  std::mutex mutex_;
  std::map<std::string, memstore::ContextOptions> options_;  // by id
};

// A handle that owns its bytes.
inline memstore::BlockHandle OwnedBlock(std::vector<std::byte> bytes) {
  auto owner = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
  const std::span<const std::byte> payload(*owner);
  return memstore::BlockHandle(payload, std::move(owner));
}

}  // namespace infllm::testing
