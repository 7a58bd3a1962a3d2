// What every ColdStore keeps to.
#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "memstore/cold_key.h"
#include "memstore/cold_store.h"
#include "tests/memstore/test_blocks.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::memstore {
namespace {

using ::infllm::testing::IsOk;
using ::infllm::testing::StatusIs;

std::vector<std::byte> Value(uint64_t number, size_t size) {
  std::vector<std::byte> value =
      Payloads(3, static_cast<int64_t>(number), 1 + size / kPayloadBytes);
  value.resize(size);
  return value;
}

class ColdStoreContract : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (std::string_view(GetParam()) == "fake") {
      store_ = NewFakeColdStore();
    } else {
      ASSERT_OK_AND_ASSIGN(store_, OpenRocksDb({.directory = dir_.file("cold")}));
    }
  }

  absl::Status Put(const std::vector<std::pair<uint64_t, size_t>>& numbers_and_sizes) {
    std::vector<std::vector<std::byte>> values;
    std::vector<ColdKey> keys;
    std::vector<ColdStore::Entry> entries;
    values.reserve(numbers_and_sizes.size());
    keys.reserve(numbers_and_sizes.size());
    for (const auto& [number, size] : numbers_and_sizes) {
      values.push_back(Value(number, size));
      keys.emplace_back(number);
      const std::span<const std::byte> value = values.back();
      const size_t head = std::min<size_t>(value.size(), 384);
      entries.push_back(
          {.key = keys.back().view(), .head = value.first(head), .body = value.subspan(head)});
    }
    return store_->Put(entries);
  }

  // OK if the value is that of Put.
  absl::Status Get(uint64_t number, size_t size) {
    std::vector<std::byte> out(size);
    const ColdKey key(number);
    const std::string_view view = key.view();
    const std::span<std::byte> span(out);
    const auto statuses = store_->Get({&view, 1}, {&span, 1});
    if (!statuses[0].ok()) return statuses[0];
    return out == Value(number, size) ? absl::OkStatus() : absl::InternalError("other bytes");
  }

  absl::Status Delete(const std::vector<uint64_t>& numbers) {
    std::vector<ColdKey> keys(numbers.begin(), numbers.end());
    std::vector<std::string_view> views;
    for (const ColdKey& key : keys) views.push_back(key.view());
    return store_->Delete(views);
  }

  ::infllm::testing::TempDir dir_;
  std::unique_ptr<ColdStore> store_;
};
INSTANTIATE_TEST_SUITE_P(Stores, ColdStoreContract, ::testing::Values("fake", "rocksdb"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(ColdStoreContract, GivesBackWhatWasPut) {
  ASSERT_OK(Put({{1, 4096}, {2, 70000}, {3, 1 << 20}, {4, 1}}));
  ASSERT_OK(Put({{5, 3 << 20}}));
  EXPECT_OK(Get(5, 3 << 20));
  EXPECT_OK(Get(4, 1));
  EXPECT_OK(Get(3, 1 << 20));
  EXPECT_OK(Get(2, 70000));
  EXPECT_OK(Get(1, 4096));
}

TEST_P(ColdStoreContract, NothingIsFine) {
  EXPECT_OK(store_->Put({}));
  EXPECT_TRUE(store_->Get({}, {}).empty());
  EXPECT_OK(store_->Delete({}));
}

TEST_P(ColdStoreContract, AMissingKeyIsNotFound) {
  EXPECT_THAT(Get(1, 4096), StatusIs(absl::StatusCode::kNotFound));
}

TEST_P(ColdStoreContract, AnotherSizeIsDataLoss) {
  ASSERT_OK(Put({{1, 4096}}));
  EXPECT_THAT(Get(1, 4095), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(Get(1, 8192), StatusIs(absl::StatusCode::kDataLoss));
}

TEST_P(ColdStoreContract, PuttingAgainReplaces) {
  ASSERT_OK(Put({{1, 100}}));
  ASSERT_OK(Put({{1, 200}}));
  EXPECT_OK(Get(1, 200));
}

TEST_P(ColdStoreContract, OneGetOfManyHasAStatusPerKey) {
  constexpr size_t kCount = 40, kSize = 5000;
  for (uint64_t i = 0; i < kCount; i += 2) ASSERT_OK(Put({{i, kSize}}));
  std::vector<ColdKey> keys;
  std::vector<std::string_view> views;
  std::vector<std::vector<std::byte>> values(kCount, std::vector<std::byte>(kSize));
  std::vector<std::span<std::byte>> outs(values.begin(), values.end());
  for (uint64_t i = 0; i < kCount; ++i) keys.emplace_back(kCount - 1 - i);
  for (const ColdKey& key : keys) views.push_back(key.view());
  const std::vector<absl::Status> statuses = store_->Get(views, outs);
  ASSERT_EQ(statuses.size(), kCount);
  for (uint64_t i = 0; i < kCount; ++i) {
    const uint64_t number = kCount - 1 - i;
    if (number % 2 == 0) {
      ASSERT_OK(statuses[i]);
      ASSERT_EQ(values[i], Value(number, kSize));
    } else {
      ASSERT_THAT(statuses[i], StatusIs(absl::StatusCode::kNotFound));
    }
  }
}

TEST_P(ColdStoreContract, DeletesExactlyTheKeysNamed) {
  for (uint64_t i = 250; i < 270; ++i) ASSERT_OK(Put({{i, 4096}}));  // 255 and 256 carry over
  ASSERT_OK(Delete({266, 255, 256, 254, 257, 260, 262, 1000}));
  for (const uint64_t gone : {254, 255, 256, 257, 260, 262, 266}) {
    EXPECT_THAT(Get(gone, 4096), StatusIs(absl::StatusCode::kNotFound)) << gone;
  }
  for (const uint64_t kept : {250, 251, 252, 253, 258, 259, 261, 263, 264, 265, 267, 268, 269}) {
    EXPECT_OK(Get(kept, 4096)) << kept;
  }
  ASSERT_OK(Put({{256, 4096}}));
  EXPECT_OK(Get(256, 4096));
}

TEST_P(ColdStoreContract, TheLastKeyOfAllCanBeDeleted) {
  ASSERT_OK(Put({{UINT64_MAX - 1, 100}, {UINT64_MAX, 100}}));
  ASSERT_OK(Delete({UINT64_MAX - 1, UINT64_MAX}));
  EXPECT_THAT(Get(UINT64_MAX - 1, 100), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(Get(UINT64_MAX, 100), StatusIs(absl::StatusCode::kNotFound));
}

// More than fits in the memory that a store may buffer in.
TEST_P(ColdStoreContract, KeepsMoreThanItBuffers) {
  constexpr size_t kSize = 1 << 20;
  for (uint64_t i = 0; i < 160; ++i) ASSERT_OK(Put({{i, kSize}}));
  for (uint64_t i = 0; i < 160; ++i) ASSERT_OK(Get(i, kSize)) << i;
  std::vector<uint64_t> numbers;
  for (uint64_t i = 10; i < 160; ++i) numbers.push_back(i);
  ASSERT_OK(Delete(numbers));
  for (uint64_t i = 0; i < 10; ++i) ASSERT_OK(Get(i, kSize)) << i;
  for (uint64_t i = 10; i < 160; ++i) {
    ASSERT_THAT(Get(i, kSize), StatusIs(absl::StatusCode::kNotFound)) << i;
  }
}

TEST_P(ColdStoreContract, ManyThreadsAtOnce) {
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 30; ++i) {
        const uint64_t number = t * 1000 + i;
        ASSERT_OK(Put({{number, 4096}, {number + 500, 20000}}));
        ASSERT_OK(Get(number, 4096));
        ASSERT_OK(Get(t * 1000 + i / 2 + 500, 20000));
        ASSERT_OK(Delete({number}));
        ASSERT_THAT(Get(number, 4096), StatusIs(absl::StatusCode::kNotFound));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace infllm::memstore
