// The contract of every MemoryStore, over gRPC: client, wire and server around a store in process.
#include "memstore/in_process_store.h"
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
    auto started = services::MemstoreServer::Start(listen, *store);
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
class ServedStore final : private Served, public ::infllm::testing::ForwardingStore {
 public:
  ServedStore(StoreSetup setup, const Endpoint& listen)
      : Served(std::move(setup), listen), ForwardingStore(*client) {}
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
