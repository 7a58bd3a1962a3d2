// The contract of every MemoryStore, over gRPC: client, wire and server around a store in process.
#include "memstore/in_process_store.h"
#include "services/memstore/remote_store.h"
#include "services/memstore/server.h"
#include "tests/memstore/memory_store_contract.h"
#include "tests/services/fake_retry_clock.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::memstore {
namespace {

using ::infllm::testing::FakeRetryClock;
using ::infllm::testing::TempDir;
using services::Endpoint;

// A client together with the server that it talks to.
class ServedStore final : public MemoryStore {
 public:
  ServedStore(StoreSetup setup, const Endpoint& listen)
      : store_(NewInProcessStore({.ram_capacity_bytes = setup.ram_capacity_bytes}, TestBackend(),
                                 std::move(setup.cold))) {
    auto server = services::MemstoreServer::Start(listen, *store_);
    EXPECT_OK(server);
    server_ = *std::move(server);
    auto client = services::ConnectRemoteStore(server_->endpoint().ToString(), {.clock = &clock_});
    EXPECT_OK(client);
    client_ = *std::move(client);
  }

  absl::Status Create(const ContextId& id, const ContextOptions& options) override {
    return client_->Create(id, options);
  }
  absl::Status Append(const ContextId& context, int32_t layer, int64_t first_block,
                      std::span<const std::span<const std::byte>> payloads) override {
    return client_->Append(context, layer, first_block, payloads);
  }
  absl::Status Publish(const ContextId& context, int32_t layer, int64_t first_block,
                       std::span<const float> representatives) override {
    return client_->Publish(context, layer, first_block, representatives);
  }
  absl::StatusOr<std::vector<Selection>> Select(const SelectRequest& request) override {
    return client_->Select(request);
  }
  absl::StatusOr<IndexView> View(const ContextId& context, int32_t layer) override {
    return client_->View(context, layer);
  }
  absl::StatusOr<std::vector<BlockHandle>> Fetch(const ContextId& context, int32_t layer,
                                                 std::span<const int64_t> blocks) override {
    return client_->Fetch(context, layer, blocks);
  }
  absl::Status Seal(const ContextId& context) override { return client_->Seal(context); }
  absl::Status Fork(const ContextId& parent, const ContextId& child) override {
    return client_->Fork(parent, child);
  }
  absl::Status Drop(const ContextId& context) override { return client_->Drop(context); }
  absl::StatusOr<StoreStats> Stats() override { return client_->Stats(); }

 private:
  FakeRetryClock clock_;  // so that errors which are tried again come at once
  const std::unique_ptr<MemoryStore> store_;
  std::unique_ptr<services::MemstoreServer> server_;
  std::unique_ptr<MemoryStore> client_;
};

std::unique_ptr<MemoryStore> OverTcp(StoreSetup setup) {
  return std::make_unique<ServedStore>(std::move(setup), Endpoint{.path = "", .host = "127.0.0.1"});
}

std::unique_ptr<MemoryStore> OverUnixSocket(StoreSetup setup) {
  static const TempDir dir;
  static int made = 0;
  return std::make_unique<ServedStore>(std::move(setup),
                                       Endpoint{.path = dir.file(std::to_string(made++))});
}

INSTANTIATE_TEST_SUITE_P(Remote, MemoryStoreContract,
                         ::testing::Values(StoreFactory{"grpc_unix", &OverUnixSocket},
                                           StoreFactory{"grpc_tcp", &OverTcp}),
                         StoreFactoryName);

}  // namespace
}  // namespace infllm::memstore
