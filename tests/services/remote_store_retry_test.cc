// What a remote store does about failures: what it tries again, what it refuses, and how all of it
// ends when the caller no longer wants it.
#include <atomic>
#include <functional>
#include <future>
#include <latch>
#include <memory>
#include <mutex>
#include <thread>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/memstore/remote_store.h"
#include "services/memstore/server.h"
#include "tests/services/fake_retry_clock.h"
#include "tests/services/puppet_store.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::services {
namespace {

using ::infllm::testing::FakeRetryClock;
using ::infllm::testing::OwnedBlock;
using ::infllm::testing::PuppetStore;
using ::infllm::testing::StatusIs;
using ::infllm::testing::TempDir;
using memstore::ContextId;
using memstore::Selection;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr memstore::Geometry kGeometry = {
    .layers = 2, .q_heads = 2, .kv_heads = 1, .head_dim = 4, .block_tokens = 8};
constexpr ContextId kContext{.hi = 1, .lo = 2};

class RemoteStoreRetryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    puppet_.create = [](auto&&...) { return absl::OkStatus(); };
    auto server = MemstoreServer::Start({.path = dir_.file("s")}, puppet_);
    ASSERT_OK(server);
    server_ = *std::move(server);
  }
  void TearDown() override { server_->Shutdown(absl::Minutes(5)); }

  // A client that knows kContext.
  std::unique_ptr<RemoteStore> Connect(const RemoteStoreOptions& options) {
    auto store = ConnectRemoteStore(server_->endpoint().ToString(), options);
    EXPECT_OK(store);
    EXPECT_OK((*store)->Create(kContext, {.geometry = kGeometry}));
    return *std::move(store);
  }
  memstore::SelectQuery Query(int32_t k = 2) const {
    return {.context = kContext, .query = query_, .k = k};
  }
  absl::StatusOr<std::vector<Selection>> Select(memstore::MemoryStore& store,
                                                std::vector<memstore::SelectQuery> queries) {
    return store.Select({.queries = queries});
  }
  memstore::BlockHandle Block(size_t bytes = kGeometry.payload_bytes()) const {
    return OwnedBlock(std::vector<std::byte>(bytes));
  }
  Selection Blocks(std::vector<int64_t> indices) const {
    Selection selection;
    for (const int64_t index : indices) {
      selection.blocks.push_back({.index = index, .block = Block()});
    }
    return selection;
  }

  const TempDir dir_;
  FakeRetryClock clock_;
  PuppetStore puppet_;
  std::unique_ptr<MemstoreServer> server_;
  const std::vector<float> query_ = std::vector<float>(kGeometry.query_floats(), 1.0f);
};

class RemoteStoreRetryOfTest : public RemoteStoreRetryTest,
                               public ::testing::WithParamInterface<absl::Status> {};
INSTANTIATE_TEST_SUITE_P(Errors, RemoteStoreRetryOfTest,
                         ::testing::Values(absl::UnavailableError("the disk"),
                                           absl::ResourceExhaustedError("no room")));

TEST_P(RemoteStoreRetryOfTest, EveryCallIsTriedAgainWhileItsErrorMayPass) {
  const auto store = Connect({.clock = &clock_});
  const absl::Status& error = GetParam();
  std::atomic<int> left = 0;
  const auto fail_twice = [&] { return left-- > 0 ? error : absl::OkStatus(); };
  puppet_.create = [&](auto&&...) { return fail_twice(); };
  puppet_.append = [&](auto&&...) { return fail_twice(); };
  puppet_.publish = [&](auto&&...) { return fail_twice(); };
  puppet_.fork = [&](auto&&...) { return fail_twice(); };
  puppet_.drop = [&](auto&&...) { return fail_twice(); };
  puppet_.fetch = [&](auto&&...) -> absl::StatusOr<PuppetStore::Blocks> {
    if (absl::Status status = fail_twice(); !status.ok()) return status;
    return PuppetStore::Blocks(1, Block());
  };
  puppet_.select = [&](auto&&...) -> absl::StatusOr<std::vector<Selection>> {
    if (absl::Status status = fail_twice(); !status.ok()) return status;
    return std::vector<Selection>(1);
  };
  const std::vector<std::byte> payload(kGeometry.payload_bytes());
  const std::vector<float> representative(kGeometry.representative_floats());
  const std::span<const std::byte> payloads[] = {payload};
  const std::vector<int64_t> blocks = {0};
  const std::function<absl::Status()> calls[] = {
      [&] { return store->Create(kContext, {.geometry = kGeometry}); },
      [&] { return store->Append(kContext, 0, 0, payloads); },
      [&] { return Select(*store, {Query()}).status(); },
      [&] { return store->Fetch(kContext, 0, blocks).status(); },
      [&] { return store->Fork(kContext, {.hi = 5, .lo = 6}); },
      [&] { return store->Publish(kContext, 0, 0, representative); },
      [&] { return store->Drop({.hi = 5, .lo = 6}); },
  };
  for (const auto& call : calls) {
    const RetryCounts before = store->Retries();
    left = 2;
    EXPECT_OK(call());
    EXPECT_EQ(store->Retries().retries - before.retries, 2);
    EXPECT_EQ(store->Retries().unavailable - before.unavailable,
              absl::IsUnavailable(error) ? 2 : 0);
    EXPECT_EQ(store->Retries().exhausted - before.exhausted, absl::IsUnavailable(error) ? 0 : 2);
  }
}

TEST_F(RemoteStoreRetryTest, AnErrorThatStaysIsReportedAsItIs) {
  const auto store = Connect({.clock = &clock_});
  puppet_.append = [](auto&&...) { return absl::ResourceExhaustedError("raise --ram-bytes"); };
  const absl::Time start = clock_.Now();
  EXPECT_THAT(
      store->Append(kContext, 0, 0, {}),
      StatusIs(absl::StatusCode::kResourceExhausted, StartsWith("raise --ram-bytes (request ")));
  EXPECT_EQ(clock_.Now() - start, absl::Seconds(3));
  puppet_.append = [](auto&&...) { return absl::DataLossError("block 3"); };
  EXPECT_THAT(store->Append(kContext, 0, 0, {}),
              StatusIs(absl::StatusCode::kDataLoss, StartsWith("block 3 (request ")));
  EXPECT_EQ(clock_.Now() - start, absl::Seconds(3)) << "a lost block stays lost";
}

TEST_F(RemoteStoreRetryTest, WhoHasWaitedInVainDoesNotWaitAgainToDrop) {
  const auto store = Connect({.clock = &clock_});
  std::atomic<int> drops = 0;
  puppet_.append = [](auto&&...) { return absl::UnavailableError("gone"); };
  puppet_.drop = [&](auto&&...) {
    ++drops;
    return absl::UnavailableError("gone");
  };
  const absl::Time start = clock_.Now();
  EXPECT_THAT(store->Append(kContext, 0, 0, {}), StatusIs(absl::StatusCode::kUnavailable));
  const absl::Duration patience = clock_.Now() - start;
  EXPECT_THAT(store->Drop(kContext), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(clock_.Now() - start, patience);
  EXPECT_EQ(drops, 1);
}

TEST_F(RemoteStoreRetryTest, AQueryThatFailsLeavesTheOthers) {
  const auto store = Connect({.clock = &clock_});
  puppet_.select = [&](auto&&...) {
    std::vector<Selection> selections(3);
    selections[0] = Blocks({1, 2});
    selections[1].status = absl::DataLossError("block 7 is damaged");
    selections[2] = Blocks({0, 2});
    return selections;
  };
  const ContextId unknown{.hi = 9, .lo = 9};
  ASSERT_OK_AND_ASSIGN(
      const auto selections,
      Select(*store, {Query(), Query(), {.context = unknown, .query = query_, .k = 1}, Query()}));
  ASSERT_EQ(selections.size(), 4u);
  EXPECT_OK(selections[0].status);
  EXPECT_EQ(selections[0].blocks.size(), 2u);
  EXPECT_THAT(selections[1].status,
              StatusIs(absl::StatusCode::kDataLoss, StartsWith("block 7 is damaged (request ")));
  EXPECT_THAT(selections[2].status, StatusIs(absl::StatusCode::kNotFound));
  EXPECT_OK(selections[3].status);
  EXPECT_EQ(selections[3].blocks.size(), 2u);
}

TEST_F(RemoteStoreRetryTest, OnlyQueriesWithoutRoomAreAskedAgain) {
  const auto store = Connect({.clock = &clock_});
  std::mutex mutex;
  std::vector<size_t> asked;
  puppet_.select = [&](const memstore::SelectRequest& request) {
    const std::lock_guard lock(mutex);
    asked.push_back(request.queries.size());
    std::vector<Selection> selections;
    for (const memstore::SelectQuery& query : request.queries) {
      selections.push_back(Blocks({query.k}));
      if (asked.size() < 3 && query.k > 3) {
        selections.back() = {.status = absl::ResourceExhaustedError("no room")};
      }
    }
    return selections;
  };
  ASSERT_OK_AND_ASSIGN(const auto selections, Select(*store, {Query(4), Query(3), Query(5)}));
  {
    const std::lock_guard lock(mutex);
    EXPECT_THAT(asked, ElementsAre(3, 2, 2));
  }
  const std::vector<int64_t> expected = {4, 3, 5};
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_OK(selections[i].status);
    EXPECT_EQ(selections[i].blocks[0].index, expected[i]);
  }
}

TEST_F(RemoteStoreRetryTest, AnAnswerThatNoStoreGivesIsRefused) {
  const auto store = Connect({.clock = &clock_});
  puppet_.publish = [](auto&&...) { return absl::OkStatus(); };
  ASSERT_OK(
      store->Publish(kContext, 0, 0, std::vector<float>(4 * kGeometry.representative_floats())));
  Selection large = Blocks({0, 1});
  large.blocks[1].block = Block(kGeometry.payload_bytes() + 4);
  const std::pair<Selection, const char*> rows[] = {
      {Blocks({0, 1, 2}), "3 blocks, but 2 were asked"},
      {Blocks({0}), "only 1 blocks, but 2 were asked and 4 are published"},
      {Blocks({2, 1}), "not ascending"},
      {Blocks({1, 1}), "not ascending"},
      {Blocks({1, 4}), "block 4 is not in [0, 4)"},
      {Blocks({-1, 1}), "block -1 is not in [0, 4)"},
      {large, "260 bytes, not 256"},
  };
  for (const auto& [selection, text] : rows) {
    puppet_.select = [answer = selection](auto&&...) { return std::vector<Selection>{answer}; };
    memstore::SelectQuery query = Query();
    query.end_block = 4;
    EXPECT_THAT(Select(*store, {query}),
                StatusIs(absl::StatusCode::kInternal,
                         AllOf(HasSubstr(text), HasSubstr(server_->endpoint().ToString()))));
  }
  puppet_.fetch = [&](auto&&...) { return PuppetStore::Blocks(1, Block(252)); };
  EXPECT_THAT(store->Fetch(kContext, 0, std::vector<int64_t>{1}),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("252 bytes, not 256")));
  EXPECT_EQ(store->Retries().retries, 0) << "it would answer the same again";
  ASSERT_OK_AND_ASSIGN(const memstore::StoreStats stats, store->Stats());
  EXPECT_EQ(stats.corrupt_blocks, 8);
}

TEST_F(RemoteStoreRetryTest, TheIndexIsInAnotherProcess) {
  EXPECT_THAT(Connect({})->View(kContext, 0), StatusIs(absl::StatusCode::kUnimplemented));
}

TEST_F(RemoteStoreRetryTest, CancelEndsHungCallsAtOnce) {
  for (const bool by_flag : {false, true}) {
    std::atomic<bool> flag = false;
    std::latch running(2);
    const auto finish = std::make_shared<std::latch>(1);  // handlers stay longer than the test
    puppet_.select = [&running, finish](auto&&...) {
      running.count_down();
      finish->wait();
      return std::vector<Selection>(1);
    };
    puppet_.append = [&running, finish](auto&&...) {
      running.count_down();
      finish->wait();
      return absl::OkStatus();
    };
    const auto store = Connect({.cancel = &flag});
    auto select =
        std::async(std::launch::async, [&] { return Select(*store, {Query()}).status(); });
    auto append = std::async(std::launch::async, [&] { return store->Append(kContext, 0, 0, {}); });
    running.wait();
    const absl::Time start = absl::Now();
    if (by_flag) {
      flag = true;
    } else {
      store->Cancel();
    }
    EXPECT_THAT(select.get(), StatusIs(absl::StatusCode::kCancelled, HasSubstr("Select at")));
    EXPECT_THAT(append.get(), StatusIs(absl::StatusCode::kCancelled, HasSubstr("Append at")));
    EXPECT_LT(absl::Now() - start, absl::Seconds(1));
    EXPECT_THAT(store->Stats(), StatusIs(absl::StatusCode::kCancelled)) << "and all later ones";
    finish->count_down();
  }
}

TEST_F(RemoteStoreRetryTest, CancelEndsAWait) {
  std::latch tried(1);
  puppet_.append = [&](auto&&...) {
    tried.count_down();
    return absl::UnavailableError("the disk");
  };
  const auto store = Connect({.retry = {.unavailable_patience = absl::Hours(2),
                                        .first_wait = absl::Hours(1),
                                        .longest_wait = absl::Hours(1)}});
  auto append = std::async(std::launch::async, [&] { return store->Append(kContext, 0, 0, {}); });
  tried.wait();
  store->Cancel();
  EXPECT_THAT(append.get(), StatusIs(absl::StatusCode::kCancelled));
}

TEST_F(RemoteStoreRetryTest, ContextsCanBeDroppedAfterACancel) {
  std::atomic<int> dropped = 0;
  puppet_.drop = [&](auto&&...) {
    ++dropped;
    return absl::OkStatus();
  };
  const auto store = Connect({});
  store->Cancel();
  EXPECT_OK(store->Drop(kContext));
  EXPECT_EQ(dropped, 1);
  EXPECT_THAT(store->Fork(kContext, {.hi = 1}), StatusIs(absl::StatusCode::kCancelled));

  const auto finish = std::make_shared<std::latch>(1);  // handlers stay longer than the test
  puppet_.drop = [finish](auto&&...) {
    finish->wait();
    return absl::OkStatus();
  };
  const absl::Time start = absl::Now();
  for (int i = 0; i < 10; ++i) {
    EXPECT_THAT(store->Drop(kContext), StatusIs(absl::StatusCode::kUnavailable));
  }
  EXPECT_LT(absl::Now() - start, absl::Seconds(1)) << "all of them together";
  finish->count_down();
}

TEST_F(RemoteStoreRetryTest, ConnectingCanBeCancelled) {
  const std::atomic<bool> flag = true;
  EXPECT_THAT(ConnectRemoteStore("unix:" + dir_.file("nobody"),
                                 {.connect_timeout = absl::Hours(1), .cancel = &flag}),
              StatusIs(absl::StatusCode::kCancelled));
}

}  // namespace
}  // namespace infllm::services
