// The contract of every MemoryStore, over gRPC: client, wire and server around a store in process.
#include "memstore/in_process_store.h"
#include "memstore/validate.h"
#include "services/memstore/remote_store.h"
#include "services/memstore/server.h"
#include "tests/memstore/memory_store_contract.h"
#include "tests/services/fake_retry_clock.h"
#include "tests/support/forwarding_store.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::memstore {
namespace {

using ::infllm::testing::FakeRetryClock;
using ::infllm::testing::TempDir;
using services::Endpoint;

// A client together with the server that it talks to.
struct Served {
  Served(StoreSetup setup, const Endpoint& listen)
      : store(NewInProcessStore({.ram_capacity_bytes = setup.ram_capacity_bytes}, TestBackend(),
                                std::move(setup.cold))
                  .value()) {
    auto started = services::MemstoreServer::Start(listen, *store, absl::Seconds(10),
                                                   {.insecure = !listen.is_unix()});
    EXPECT_OK(started);
    server = *std::move(started);
    auto connected = services::ConnectRemoteStore(server->endpoint().ToString(), {.clock = &clock});
    EXPECT_OK(connected);
    client = *std::move(connected);
  }
  FakeRetryClock clock;  // so that errors which are tried again come at once
  std::unique_ptr<MemoryStore> store;
  std::unique_ptr<services::MemstoreServer> server;
  std::unique_ptr<MemoryStore> client;
};
// Over the wire nobody names a tenant. The contract does, always the same one.
class ServedStore final : private Served, public ::infllm::testing::ForwardingStore {
 public:
  ServedStore(StoreSetup setup, const Endpoint& listen)
      : Served(std::move(setup), listen), ForwardingStore(*client) {}

  absl::Status Create(const ContextId& id, const ContextOptions& options) override {
    if (absl::Status status = Validate(id); !status.ok()) return status;
    if (absl::Status status = Validate(options); !status.ok()) return status;
    ContextOptions sent = options;
    sent.tenant.clear();
    return base().Create(id, sent);
  }
  absl::StatusOr<ContextOptions> Describe(const ContextId& id) override {
    absl::StatusOr<ContextOptions> options = base().Describe(id);
    if (options.ok()) Named(*options);
    return options;
  }
  absl::StatusOr<CommittedContext> FindCommitted(std::string_view tenant,
                                                 std::string_view name) override {
    if (tenant != Options().tenant) return absl::NotFoundError("another tenant's");
    absl::StatusOr<CommittedContext> found = base().FindCommitted("", name);
    if (found.ok()) Named(found->options);
    return found;
  }
  absl::StatusOr<std::vector<CommittedContext>> ListCommitted(std::string_view) override {
    absl::StatusOr<std::vector<CommittedContext>> all = base().ListCommitted("");
    if (all.ok()) {
      for (CommittedContext& one : *all) Named(one.options);
    }
    return all;
  }

  absl::StatusOr<Prefix> FindPrefix(const ContextOptions& options, int32_t exec_block,
                                    std::span<const int32_t> tokens) override {
    if (options.tenant != Options().tenant) return absl::NotFoundError("another tenant's");
    ContextOptions sent = options;
    sent.tenant.clear();
    absl::StatusOr<Prefix> found = base().FindPrefix(sent, exec_block, tokens);
    if (found.ok()) Named(found->context.options);
    return found;
  }

 private:
  static void Named(ContextOptions& options) {
    EXPECT_EQ(options.tenant, "");
    options.tenant = Options().tenant;
  }
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
