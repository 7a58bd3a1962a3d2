// Fails every single allocation of a call, one after the other: no block may be lost by it, stay
// claimed or keep its room.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>

#include "memstore/in_process_store.h"
#include "tests/memstore/test_blocks.h"
#include "tests/support/status_matchers.h"

namespace {
// How many allocations of this thread succeed before one fails; -1: all.
thread_local int64_t allocations_left = -1;
}  // namespace

// Not inlined: gcc would take free() for the wrong partner of new.
[[gnu::noinline]] void* operator new(size_t bytes) {
  if (allocations_left >= 0 && allocations_left-- == 0) throw std::bad_alloc();
  void* const memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace infllm::memstore {
namespace {

constexpr int64_t kRamBlocks = 4;

class OutOfMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_OK(store_->Create(id_, Options())); }

  // Whether `call` got through although its allocation `number` fails.
  template <typename Call>
  static bool GetsThrough(int64_t number, Call call) {
    allocations_left = number;
    try {
      const absl::Status status = call();
      allocations_left = -1;
      EXPECT_OK(status);
      return true;
    } catch (const std::bad_alloc&) {
      allocations_left = -1;
      return false;
    }
  }
  absl::Status Append(int64_t first, const std::vector<std::byte>& payloads) {
    return store_->Append(id_, 0, first, Spans(payloads));
  }
  // All of RAM is needed for them: no slot may be pinned or lost.
  void ExpectBytes(std::vector<int64_t> blocks) {
    ASSERT_EQ(static_cast<int64_t>(blocks.size()), kRamBlocks);
    ASSERT_OK_AND_ASSIGN(const auto handles, store_->Fetch(id_, 0, blocks));
    for (size_t i = 0; i < blocks.size(); ++i) {
      ASSERT_EQ(Bytes(handles[i]), Payloads(0, blocks[i])) << blocks[i];
    }
    ASSERT_OK_AND_ASSIGN(const StoreStats stats, store_->Stats());
    ASSERT_EQ(stats.ram_bytes, kRamBlocks * kPayloadBytes);
    ASSERT_EQ(stats.blocks_ram, kRamBlocks);
  }

  const std::unique_ptr<MemoryStore> store_ =
      NewInProcessStore({.ram_capacity_bytes = kRamBlocks * kPayloadBytes}, TestBackend(),
                        NewFakeColdStore())
          .value();
  const ContextId id_ = NewContextId();
};

TEST_F(OutOfMemoryTest, ReadingBackLeavesNoBlockClaimed) {
  ASSERT_OK(Append(0, Payloads(0, 0, 12)));
  const std::vector<int64_t> wanted = {0, 1, 2};
  int64_t failures = 0;
  while (!GetsThrough(failures, [&] { return store_->Fetch(id_, 0, wanted).status(); })) {
    ++failures;
    ASSERT_NO_FATAL_FAILURE(ExpectBytes({0, 1, 2, 3}));
    ASSERT_NO_FATAL_FAILURE(ExpectBytes({4, 5, 6, 7}));  // the others are only cold again
  }
  EXPECT_GT(failures, 10);
}

TEST_F(OutOfMemoryTest, AppendingLosesNoRoom) {
  int64_t failures = 0;
  for (int64_t block = 0; block < 12; ++block) {
    const std::vector<std::byte> payload = Payloads(0, block);
    for (int64_t number = 0; !GetsThrough(number, [&] { return Append(block, payload); });
         ++number) {
      ++failures;
      ASSERT_OK_AND_ASSIGN(const StoreStats stats, store_->Stats());
      ASSERT_EQ(stats.blocks, block);
      ASSERT_EQ(stats.ram_bytes, stats.blocks_ram * kPayloadBytes);
    }
  }
  EXPECT_GT(failures, 10);
  ASSERT_NO_FATAL_FAILURE(ExpectBytes({0, 1, 2, 3}));
  ASSERT_NO_FATAL_FAILURE(ExpectBytes({8, 9, 10, 11}));
}

}  // namespace
}  // namespace infllm::memstore
