// What a store takes in memory, beside what it was given to hold.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "memstore/in_process_store.h"
#include "tests/memstore/test_blocks.h"
#include "tests/support/status_matchers.h"

namespace infllm::memstore {
namespace {

using ::infllm::testing::StatusIs;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kMiB = 1 << 20;

// The least block there is: four bytes.
constexpr Geometry kTiny = {.layers = 1,
                            .q_heads = 1,
                            .kv_heads = 1,
                            .head_dim = 1,
                            .block_tokens = 1,
                            .dtype = kernels::DType::kBF16,
                            .representative = kernels::RepresentativeKind::kMeanKey};

// Takes everything and keeps nothing, so that only the store itself takes memory.
class Abyss final : public ColdStore {
 public:
  absl::Status Put(std::span<const Entry>) override { return absl::OkStatus(); }
  std::vector<absl::Status> Get(std::span<const std::string_view> keys,
                                std::span<const std::span<std::byte>>) override {
    return std::vector<absl::Status>(keys.size(), absl::NotFoundError("nothing comes back"));
  }
  absl::Status Delete(std::span<const std::string_view>) override { return absl::OkStatus(); }
};

std::unique_ptr<MemoryStore> Open(int64_t bytes) {
  return NewInProcessStore({.ram_capacity_bytes = bytes, .memory_bytes = bytes}, TestBackend(),
                           std::make_unique<Abyss>())
      .value();
}

int64_t Taken(MemoryStore& store) {
  const StoreStats stats = store.Stats().value();
  return stats.ram_bytes + stats.representative_bytes + stats.bookkeeping_bytes;
}

int64_t ResidentBytes() {
  std::FILE* const file = std::fopen("/proc/self/statm", "r");
  int64_t total = 0, resident = 0;
  EXPECT_EQ(std::fscanf(file, "%ld %ld", &total, &resident), 2);
  std::fclose(file);
  return resident * ::sysconf(_SC_PAGESIZE);
}

// Appends tiny blocks until they are refused.
absl::Status FillWithTiny(MemoryStore& store, const ContextId& id, int64_t at_most) {
  const std::vector<std::byte> payload(kTiny.payload_bytes());
  for (int64_t block = 0; block < at_most; ++block) {
    const std::span<const std::byte> span(payload);
    const absl::Status status = store.Append(id, 0, block, {&span, 1});
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

TEST(BoundedMemory, TinyBlocksTakeNoMoreThanTheLimitInTruth) {
  constexpr int64_t kLimit = 32 * kMiB;
  const auto store = Open(kLimit);
  const ContextId id = NewContextId();
  ContextOptions options = Options();
  options.geometry = kTiny;
  ASSERT_OK(store->Create(id, options));
  [[maybe_unused]] const int64_t before = ResidentBytes();
  EXPECT_THAT(FillWithTiny(*store, id, 10'000'000),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       AllOf(HasSubstr("of 33554432 bytes of all memory"),
                             HasSubstr("the bookkeeping of"), HasSubstr("--ram-bytes"))));
  EXPECT_LE(Taken(*store), kLimit);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  // What is counted is what is taken: the allocator's own tables and the stack are all that is
  // more.
  EXPECT_LT(ResidentBytes() - before, kLimit * 5 / 4);
  EXPECT_GT(ResidentBytes() - before, kLimit / 2) << "and little less is";
#endif
  // What is dropped can be had again.
  ASSERT_OK(store->Drop(id));
  EXPECT_EQ(Taken(*store), 0);
  ASSERT_OK(store->Create(id, options));
  EXPECT_OK(FillWithTiny(*store, id, 1000));
}

TEST(BoundedMemory, RepresentativesCountAndPayloadsGiveWay) {
  constexpr int64_t kLimit = 4 * kMiB;
  const auto store = Open(kLimit);
  const ContextId id = NewContextId();
  ASSERT_OK(store->Create(id, Options()));
  absl::Status status;
  int64_t most_in_ram = 0, block = 0;
  for (; status.ok(); ++block) {
    ASSERT_LT(block, 100'000);
    status = store->Append(id, 0, block, Spans(Payloads(0, block)));
    if (status.ok()) status = store->Publish(id, 0, block, Representatives(0, block));
    // A chunk of representatives is taken whole, and payloads have gone by the next call.
    ASSERT_LE(Taken(*store), kLimit + kLimit / 4) << block;
    most_in_ram = std::max(most_in_ram, store->Stats()->ram_bytes);
  }
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted,
                               AllOf(HasSubstr("representatives take"), HasSubstr("--ram-bytes"))));
  EXPECT_GT(most_in_ram, kLimit * 3 / 4);
  EXPECT_LT(store->Stats()->ram_bytes, kLimit / 4);
  EXPECT_GT(store->Stats()->representative_bytes, kLimit / 4);
}

TEST(BoundedMemory, ContextsCount) {
  const auto store = Open(kMiB);
  ContextOptions options = Options();
  options.geometry.layers = 1000;
  absl::Status status;
  int contexts = 0;
  ContextId last;
  for (; status.ok(); ++contexts) {
    ASSERT_LT(contexts, 1000);
    const ContextId id = NewContextId();
    status = store->Create(id, options);
    if (status.ok()) last = id;
  }
  EXPECT_THAT(status,
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("that of contexts")));
  EXPECT_THAT(store->Fork(last, NewContextId()), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_LE(Taken(*store), kMiB);
}

// Tables that name the blocks of several others are counted, also those of forks.
TEST(BoundedMemory, ForksOfSeveralCount) {
  const auto store = Open(4 * kMiB);
  std::vector<ForkPart> parts;
  for (int i = 0; i < 16; ++i) {
    parts.push_back({.context = NewContextId()});
    ASSERT_OK(store->Create(parts.back().context, Options()));
    for (int32_t layer = 0; layer < kGeometry.layers; ++layer) {
      ASSERT_OK(store->Append(parts.back().context, layer, 0, Spans(Payloads(layer, 0, 20))));
      ASSERT_OK(store->Publish(parts.back().context, layer, 0, Representatives(layer, 0, 20)));
    }
  }
  const int64_t before = store->Stats()->bookkeeping_bytes;
  const ContextId joined = NewContextId(), fork = NewContextId();
  ASSERT_OK(store->Fork(parts, joined));
  const int64_t tables = 15 * 20 * kGeometry.layers * int64_t{sizeof(std::shared_ptr<int>)};
  EXPECT_GE(store->Stats()->bookkeeping_bytes, before + tables);
  ASSERT_OK(store->Fork(joined, fork));
  EXPECT_GE(store->Stats()->bookkeeping_bytes, before + 2 * tables);
  for (const ContextId& id : {joined, fork}) ASSERT_OK(store->Drop(id));
  EXPECT_EQ(store->Stats()->bookkeeping_bytes, before);
  absl::Status status;
  for (int i = 0; status.ok() && i < 100'000; ++i) status = store->Fork(parts, NewContextId());
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted));
}

// What can never fit is refused without driving out what others need.
TEST(BoundedMemory, ARefusalEvictsNothing) {
  const auto store = Open(kMiB);
  const ContextId id = NewContextId();
  ASSERT_OK(store->Create(id, Options()));
  ASSERT_OK(store->Append(id, 0, 0, Spans(Payloads(0, 0, 200))));
  const int64_t in_ram = store->Stats()->ram_bytes;
  EXPECT_THAT(store->Publish(id, 0, 0, std::vector<float>(20'000 * 32)),
              StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(store->Stats()->ram_bytes, in_ram);
}

}  // namespace
}  // namespace infllm::memstore
