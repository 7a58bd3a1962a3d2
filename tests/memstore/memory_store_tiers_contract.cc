// The part of the contract that needs more blocks than RAM, and threads.
#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <tuple>
#include <utility>

#include "tests/memstore/memory_store_contract.h"
#include "tests/memstore/scripted_cold_store.h"
#include "tests/support/status_matchers.h"

namespace infllm::memstore {
namespace {

using ::infllm::testing::IsOk;
using ::infllm::testing::StatusIs;
using ::testing::AllOf;
using ::testing::HasSubstr;

// ---- Tiers

TEST_P(MemoryStoreContract, StatsAreExactWhileAllFitsInRam) {
  const StoreStats empty = Stats();
  EXPECT_EQ(empty.ram_capacity_bytes, 1000 * kPayloadBytes);
  const ContextId id = NewContext();
  ASSERT_OK(Append(id, 0, 0, 7));
  ASSERT_OK(Append(id, 1, 0, 3));
  ASSERT_OK(Publish(id, 0, 0, 7));
  ASSERT_OK(FetchAndCompare(id, 1, {0, 2}));
  ASSERT_OK(Select(0, {.context = id, .query = Query(0), .k = 4}));
  const StoreStats stats = Stats();
  EXPECT_EQ(stats.contexts, 1);
  EXPECT_EQ(stats.blocks, 10);
  EXPECT_EQ(stats.blocks_ram, 10);
  EXPECT_EQ(stats.blocks_cold, 0);
  EXPECT_EQ(stats.ram_bytes, 10 * kPayloadBytes);
  EXPECT_EQ(stats.cold_bytes, 0);
  EXPECT_GE(stats.representative_bytes, 7 * 32 * 4);
  EXPECT_EQ(stats.selects, 1);
  EXPECT_EQ(stats.ram_hits, 6);
  EXPECT_EQ(stats.cold_hits, 0);
  EXPECT_EQ(stats.corrupt_blocks, 0);
}

TEST_P(MemoryStoreContract, AFullStoreWithoutAColdTierSaysWhatToDo) {
  Remake(/*ram_blocks=*/5, nullptr);
  const ContextId id = NewContext();
  EXPECT_THAT(Append(id, 0, 0, 6), StatusIs(absl::StatusCode::kResourceExhausted,
                                            AllOf(HasSubstr("--ram-bytes"), HasSubstr("--data-dir"),
                                                  HasSubstr("20480 of 20480 bytes"))));
  EXPECT_OK(FetchAndCompare(id, 0, {0, 1, 2, 3, 4})) << "those before the failure are stored";
  EXPECT_EQ(Stats().ram_bytes, 5 * kPayloadBytes);
  ASSERT_OK(store_->Drop(id));
  EXPECT_OK(Append(NewContext(), 0, 0, 5));
}

TEST_P(MemoryStoreContract, RamForATenthOfTheBlocksGivesTheSameBytes) {
  constexpr int64_t kBlocks = 120, kRam = 12;
  Remake(kRam, NewFakeColdStore());
  const ContextId id = NewContext();
  for (int64_t block = 0; block < kBlocks; ++block) {
    ASSERT_OK(Append(id, 0, block, 1));
    ASSERT_LE(Stats().ram_bytes, kRam * kPayloadBytes);
  }
  ASSERT_OK(Publish(id, 0, 0, kBlocks));
  for (int64_t seed = 0; seed < 50; ++seed) {
    const std::vector<float> query = Query(seed);
    ASSERT_OK_AND_ASSIGN(const Selection selection,
                         Select(0, {.context = id, .query = query, .k = 10}));
    ASSERT_EQ(Indices(selection), BruteForce(0, kBlocks, query, 10));
    for (const SelectedBlock& block : selection.blocks) {
      ASSERT_EQ(Bytes(block.block), Payloads(0, block.index));
    }
  }
  for (int64_t block = 0; block < kBlocks; ++block) ASSERT_OK(FetchAndCompare(id, 0, {block}));
  EXPECT_OK(Append(id, 0, 0, kBlocks)) << "comparison with cold blocks";
  const StoreStats stats = Stats();
  EXPECT_EQ(stats.blocks, kBlocks);
  EXPECT_LE(stats.blocks_ram, kRam);
  EXPECT_GE(stats.blocks_cold, kBlocks - kRam);
  EXPECT_EQ(stats.cold_bytes, stats.blocks_cold * kPayloadBytes);
  EXPECT_EQ(stats.ram_bytes, stats.blocks_ram * kPayloadBytes);
  EXPECT_EQ(stats.ram_hits + stats.cold_hits, 50 * 10 + kBlocks);
  EXPECT_GE(stats.cold_hits, kBlocks - kRam);
  EXPECT_EQ(stats.corrupt_blocks, 0);
}

TEST_P(MemoryStoreContract, DifferentBytesAreFoundInTheColdTierToo) {
  Remake(/*ram_blocks=*/4, NewFakeColdStore());
  const ContextId id = NewContext();
  ASSERT_OK(Append(id, 0, 0, 40));
  std::vector<std::byte> other = Payloads(0, 1);
  other[100] ^= std::byte{1};
  EXPECT_THAT(AppendAll(id, 0, 1, other), StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_OK(FetchAndCompare(id, 0, {1}));
}

TEST_P(MemoryStoreContract, ADamagedColdBlockIsReportedAndNeverReturned) {
  const auto script = std::make_shared<ColdScript>();
  Remake(/*ram_blocks=*/8, ColdScript::Open(script));
  const ContextId id = NewContext();
  ASSERT_OK(Append(id, 0, 0, 80));
  ASSERT_OK(Publish(id, 0, 0, 80));
  script->FlipReadByte(2000);
  EXPECT_THAT(store_->Fetch(id, 0, std::vector<int64_t>{3}),
              StatusIs(absl::StatusCode::kDataLoss, AllOf(HasSubstr("block 3"), HasSubstr("crc"))));
  EXPECT_EQ(Stats().corrupt_blocks, 1);
  EXPECT_THAT(Select(0, {.context = id, .query = Representatives(0, 3), .k = 1}),
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_EQ(Stats().corrupt_blocks, 2);
  EXPECT_EQ(Stats().cold_hits, 0);
  script->FlipReadByte(-1);
  EXPECT_OK(FetchAndCompare(id, 0, {3})) << "what was damaged on the way is read again";
  EXPECT_EQ(Stats().corrupt_blocks, 2);
}

// ---- Threads

TEST_P(MemoryStoreContract, ContextsAreIndependentUnderThreads) {
  Remake(/*ram_blocks=*/64, NewFakeColdStore());
  const ContextId shared = NewContext();
  ASSERT_OK(Append(shared, 0, 0, 50));
  ASSERT_OK(Publish(shared, 0, 0, 50));
  std::vector<std::thread> threads;
  for (int64_t t = 1; t <= 4; ++t) {
    threads.emplace_back([&, t] {
      const ContextId own = NewContext();
      const ContextId fork = Forked(shared);
      for (int64_t block = 0; block < 40; ++block) {
        ASSERT_OK(Append(own, 1, block, 1, t));
        ASSERT_OK(Publish(own, 1, block, 1, t));
        ASSERT_OK(FetchAndCompare(own, 1, {block / 2}, t));
        ASSERT_OK(Append(fork, 0, 50 + block, 1, t));
        const std::vector<float> query = Query(block * t);
        for (const auto& [id, layer, size, flavour] :
             {std::tuple{own, 1, block + 1, t}, std::tuple{fork, 0, int64_t{50}, int64_t{0}}}) {
          const auto selection = Select(layer, {.context = id, .query = query, .k = 4});
          ASSERT_OK(selection);
          ASSERT_EQ(Indices(*selection), BruteForce(layer, size, query, 4, flavour));
          for (const SelectedBlock& selected : selection->blocks) {
            ASSERT_EQ(Bytes(selected.block), Payloads(layer, selected.index, 1, flavour));
          }
        }
      }
      ASSERT_OK(store_->Drop(own));
      ASSERT_OK(store_->Drop(fork));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(Stats().contexts, 1);
  EXPECT_EQ(Stats().blocks, 50);
}

TEST_P(MemoryStoreContract, OneContextTakesReadersWhileItGrows) {
  Remake(/*ram_blocks=*/64, NewFakeColdStore());
  const ContextId id = NewContext();
  constexpr int64_t kBlocks = 120;
  std::atomic<int64_t> published = 0;
  std::vector<std::thread> readers;
  for (int64_t t = 0; t < 3; ++t) {
    readers.emplace_back([&, t] {
      for (int64_t seed = t; published < kBlocks; seed += 3) {
        const int64_t at_least = published;
        const std::vector<float> query = Query(seed);
        const auto selection = Select(0, {.context = id, .query = query, .k = 5});
        ASSERT_OK(selection);
        ASSERT_GE(static_cast<int64_t>(selection->blocks.size()), std::min<int64_t>(5, at_least));
        for (const SelectedBlock& block : selection->blocks) {
          ASSERT_EQ(Bytes(block.block), Payloads(0, block.index));
        }
      }
    });
  }
  // Two writers append the same blocks: a retry that overtakes.
  std::thread second([&] {
    for (int64_t block = 0; block < kBlocks; ++block) {
      while (Append(id, 0, block, 1).code() == absl::StatusCode::kFailedPrecondition) {
        std::this_thread::yield();  // the other has not come this far
      }
    }
  });
  for (int64_t block = 0; block < kBlocks; ++block) {
    ASSERT_OK(Append(id, 0, block, 1));
    ASSERT_OK(Publish(id, 0, block, 1));
    published = block + 1;
  }
  second.join();
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(Stats().blocks, kBlocks);
}

}  // namespace
}  // namespace infllm::memstore
