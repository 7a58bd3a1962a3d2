// The contract of every MemoryStore, over gRPC: client, wire and server around a store in process.
#include "memstore/in_process_store.h"
#include "services/memstore/remote_store.h"
#include "services/memstore/server.h"
#include "tests/memstore/memory_store_contract.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::memstore {
namespace {

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
    auto client = services::ConnectRemoteStore(server_->endpoint().ToString(), {});
    EXPECT_OK(client);
    client_ = *std::move(client);
  }

  absl::StatusOr<ContextId> Create(const ContextOptions& options) override {
    return client_->Create(options);
  }
  absl::Status Append(ContextId context, int32_t layer, int64_t first_block,
                      std::span<const std::byte> payloads) override {
    return client_->Append(context, layer, first_block, payloads);
  }
  absl::Status Publish(ContextId context, int32_t layer, int64_t first_block,
                       std::span<const float> representatives) override {
    return client_->Publish(context, layer, first_block, representatives);
  }
  absl::StatusOr<Selection> Select(ContextId context, int32_t layer,
                                   const SelectRequest& request) override {
    return client_->Select(context, layer, request);
  }
  absl::StatusOr<std::vector<BlockHandle>> Fetch(ContextId context, int32_t layer,
                                                 std::span<const int64_t> blocks) override {
    return client_->Fetch(context, layer, blocks);
  }
  absl::Status Seal(ContextId context) override { return client_->Seal(context); }
  absl::StatusOr<ContextId> Fork(ContextId context) override { return client_->Fork(context); }
  absl::Status Drop(ContextId context) override { return client_->Drop(context); }
  absl::StatusOr<StoreStats> Stats() override { return client_->Stats(); }

 private:
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
