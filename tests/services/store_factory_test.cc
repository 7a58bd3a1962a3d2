#include "services/common/store_factory.h"

#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/memstore/server.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::services {
namespace {

using ::infllm::testing::StatusIs;
using ::infllm::testing::TempDir;
using ::testing::HasSubstr;

// 4 KiB per block.
constexpr memstore::Geometry kGeometry = {
    .layers = 1, .q_heads = 2, .kv_heads = 2, .head_dim = 16, .block_tokens = 16};

class OpenStoreTest : public ::testing::Test {
 protected:
  // Twice the RAM tier; all of it comes back.
  void FillTwice(memstore::MemoryStore& store, int64_t ram_bytes) {
    const memstore::ContextId id = memstore::NewContextId();
    ASSERT_OK(store.Create(id, {.geometry = kGeometry}));
    const int64_t blocks = 2 * ram_bytes / static_cast<int64_t>(kGeometry.payload_bytes());
    for (int64_t i = 0; i < blocks; ++i) {
      const std::vector<std::byte> payload(kGeometry.payload_bytes(), std::byte(i + 1));
      const std::span<const std::byte> block = payload;
      ASSERT_OK(store.Append(id, 0, i, {&block, 1}));
    }
    for (int64_t i = 0; i < blocks; ++i) {
      ASSERT_OK_AND_ASSIGN(const auto handles, store.Fetch(id, 0, {&i, 1}));
      EXPECT_EQ(handles[0].payload().front(), std::byte(i + 1));
    }
  }

  const TempDir dir_;
  const std::unique_ptr<kernels::Backend> backend_ = kernels::NewReferenceBackend();
};

TEST_F(OpenStoreTest, InThisProcessWithBlocksInTheDataDirectory) {
  constexpr int64_t kRamBytes = 64 << 10;
  ASSERT_OK_AND_ASSIGN(
      auto store, OpenStore({.ram_bytes = kRamBytes, .data_dir = dir_.file("data")}, *backend_));
  FillTwice(*store, kRamBytes);
  ASSERT_OK_AND_ASSIGN(const memstore::StoreStats stats, store->Stats());
  EXPECT_EQ(stats.ram_capacity_bytes, kRamBytes);
  EXPECT_GT(stats.cold_hits, 0);
}

TEST_F(OpenStoreTest, InThisProcessWithBlocksInAScratchDirectory) {
  constexpr int64_t kRamBytes = 64 << 10;
  ASSERT_OK_AND_ASSIGN(const auto store, OpenStore({.ram_bytes = kRamBytes}, *backend_));
  FillTwice(*store, kRamBytes);
}

TEST_F(OpenStoreTest, InADaemon) {
  ASSERT_OK_AND_ASSIGN(const auto served, OpenStore({.ram_bytes = 12345}, *backend_));
  ASSERT_OK_AND_ASSIGN(const auto server, MemstoreServer::Start({.path = dir_.file("s")}, *served));
  ASSERT_OK_AND_ASSIGN(
      const auto store,
      OpenStore({.memstore_target = server->endpoint().ToString(), .ram_bytes = 1}, *backend_));
  ASSERT_OK_AND_ASSIGN(const memstore::StoreStats stats, store->Stats());
  EXPECT_EQ(stats.ram_capacity_bytes, 12345) << "the daemon's, not ours";
}

TEST_F(OpenStoreTest, SaysWhatIsWrong) {
  EXPECT_THAT(OpenStore({.ram_bytes = 0}, *backend_),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("ram-bytes is 0")));
  EXPECT_THAT(OpenStore({.memstore_target = "nowhere"}, *backend_),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("nowhere")));
  EXPECT_THAT(OpenStore({.data_dir = dir_.Write("file", "") + "/x"}, *backend_),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("cannot create")));
}

}  // namespace
}  // namespace infllm::services
