// Contexts go with the client that made them.
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "infllm/v1/memory_store.grpc.pb.h"
#include "memstore/in_process_store.h"
#include "services/memstore/lease_table.h"
#include "services/memstore/remote_store.h"
#include "services/memstore/server.h"
#include "tests/memstore/test_blocks.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::services {
namespace {

using ::infllm::testing::IsOk;
using ::infllm::testing::TempDir;
using memstore::ContextId;

memstore::ContextOptions Options() {
  memstore::ContextOptions options = memstore::Options();
  options.tenant.clear();
  return options;
}

// The same bits are another lease of another tenant's.
const LeaseTable::LeaseId kLease{.tenant = "a", .id = {.hi = 1, .lo = 1}},
    kOther{.tenant = "b", .id = {.hi = 1, .lo = 1}};

// A table whose drops are collected.
class LeaseTableTest : public ::testing::Test {
 protected:
  void Open(absl::Duration grace) {
    table_ = std::make_unique<LeaseTable>(grace, [this](const ContextId& context) {
      const std::lock_guard lock(mutex_);
      dropped_.insert(context.lo);
      changed_.notify_all();
    });
  }
  // Waits until so many contexts have been dropped.
  std::set<uint64_t> Dropped(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return dropped_.size() >= count; });
    return dropped_;
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<uint64_t> dropped_;
  std::unique_ptr<LeaseTable> table_;
};

TEST_F(LeaseTableTest, ContextsGoWhenTheLastHolderHasGone) {
  Open(absl::ZeroDuration());
  table_->Hold(kLease);
  table_->Hold(kLease);
  table_->Hold(kOther);
  table_->Add(kLease, {.lo = 10});
  table_->Add(kLease, {.lo = 11});
  table_->Add(kLease, {.lo = 12});
  table_->Add(kOther, {.lo = 20});
  table_->Remove({.lo = 11});
  table_->LetGo(kLease);  // the other call holds it
  table_->LetGo(kOther);
  EXPECT_EQ(Dropped(1), (std::set<uint64_t>{20}));
  table_->LetGo(kLease);
  EXPECT_EQ(Dropped(3), (std::set<uint64_t>{10, 12, 20}));
}

TEST_F(LeaseTableTest, ALeaseThatNobodyHoldsEndsToo) {
  Open(absl::ZeroDuration());
  table_->Add(kLease, {.lo = 10});
  EXPECT_EQ(Dropped(1), (std::set<uint64_t>{10}));
}

TEST_F(LeaseTableTest, HoldingAgainInTimeKeepsAll) {
  Open(absl::Hours(1));
  table_->Hold(kLease);
  table_->Add(kLease, {.lo = 10});
  table_->LetGo(kLease);
  table_->Hold(kLease);
  table_.reset();  // and its end drops nothing
  EXPECT_TRUE(dropped_.empty());
}

// Polls the store until it has so many contexts; bounded by the test's timeout.
void AwaitContexts(memstore::MemoryStore& store, int64_t contexts) {
  while (store.Stats()->contexts != contexts) std::this_thread::yield();
}

TEST(LeaseTest, AClientThatHasGoneLeavesNothing) {
  const TempDir dir;
  const auto store = memstore::NewInProcessStore({}, memstore::TestBackend(), nullptr).value();
  ASSERT_OK_AND_ASSIGN(const auto server, MemstoreServer::Start({.path = dir.file("s")}, *store,
                                                                absl::Milliseconds(20)));
  const std::string target = server->endpoint().ToString();
  ASSERT_OK_AND_ASSIGN(auto first, ConnectRemoteStore(target, {}));
  ASSERT_OK_AND_ASSIGN(auto second, ConnectRemoteStore(target, {}));
  const ContextId kept = memstore::NewContextId(), lost = memstore::NewContextId();
  ASSERT_OK(first->Create(kept, Options()));
  ASSERT_OK(second->Create(lost, Options()));
  ASSERT_OK(second->Fork(kept, memstore::NewContextId()));
  EXPECT_EQ(store->Stats()->contexts, 3);
  second.reset();
  AwaitContexts(*store, 1);
  EXPECT_OK(first->Describe(kept));
  first.reset();
  AwaitContexts(*store, 0);
}

TEST(LeaseTest, AWrongLeaseIsRefused) {
  const TempDir dir;
  const auto store = memstore::NewInProcessStore({}, memstore::TestBackend(), nullptr).value();
  ASSERT_OK_AND_ASSIGN(const auto server, MemstoreServer::Start({.path = dir.file("s")}, *store));
  const auto stub = infllm::v1::MemoryStore::NewStub(
      grpc::CreateChannel(server->endpoint().ToString(), grpc::InsecureChannelCredentials()));
  for (int i = 0; i < 20; ++i) {
    grpc::ClientContext call;
    infllm::v1::LeaseRequest request;
    request.set_lease("short");
    const auto reader = stub->Lease(&call, request);
    if (i % 2 == 0) call.TryCancel();  // whichever comes first
    infllm::v1::LeaseResponse response;
    EXPECT_FALSE(reader->Read(&response));
    const grpc::Status status = reader->Finish();
    if (i % 2 == 1) {
      EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    }
  }
}

}  // namespace
}  // namespace infllm::services
