// The contract for the in-process store, and what only it can show: pins, order of eviction, the
// traffic to its cold tier.
#include "memstore/in_process_store.h"

#include <algorithm>
#include <memory>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#include "memstore/block_codec.h"
#include "memstore/crc32c.h"
#include "tests/memstore/device_double.h"
#include "tests/memstore/memory_store_contract.h"
#include "tests/memstore/scripted_cold_store.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::memstore {
namespace {

using ::infllm::testing::IsOk;
using ::infllm::testing::StatusIs;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Le;

std::unique_ptr<MemoryStore> Make(StoreSetup setup) {
  return NewInProcessStore({.ram_capacity_bytes = setup.ram_capacity_bytes}, TestBackend(),
                           std::move(setup.cold))
      .value();
}
std::unique_ptr<MemoryStore> MakeOnDevice(StoreSetup setup) {
  static DeviceDouble device;
  return NewInProcessStore({.ram_capacity_bytes = setup.ram_capacity_bytes}, device,
                           std::move(setup.cold))
      .value();
}
INSTANTIATE_TEST_SUITE_P(InProcess, MemoryStoreContract,
                         ::testing::Values(StoreFactory{"in_process", &Make},
                                           StoreFactory{"on_device", &MakeOnDevice}),
                         StoreFactoryName);

class InProcessStoreTest : public ::testing::Test {
 protected:
  void Open(int64_t ram_blocks) {
    store_ =
        Make({.ram_capacity_bytes = ram_blocks * kPayloadBytes, .cold = ColdScript::Open(script_)});
    ASSERT_OK(store_->Create(id_, Options()));
  }
  absl::Status Append(int64_t first, int64_t count) {
    return store_->Append(id_, 0, first, Spans(Payloads(0, first, count)));
  }
  absl::StatusOr<std::vector<BlockHandle>> Fetch(const std::vector<int64_t>& blocks) {
    return store_->Fetch(id_, 0, blocks);
  }
  StoreStats Stats() { return store_->Stats().value_or(StoreStats{}); }

  const std::shared_ptr<ColdScript> script_ = std::make_shared<ColdScript>();
  std::unique_ptr<MemoryStore> store_;
  const ContextId id_ = NewContextId();
};

TEST_F(InProcessStoreTest, PinnedBlocksStayWhereTheyAre) {
  Open(/*ram_blocks=*/8);
  ASSERT_OK(Append(0, 8));
  ASSERT_OK_AND_ASSIGN(auto pinned, Fetch({0, 1, 2}));
  ASSERT_OK(Append(8, 100));
  for (int64_t i = 0; i < 3; ++i) EXPECT_EQ(Bytes(pinned[i]), Payloads(0, i));
  const std::byte* const address = pinned[0].payload().data();
  ASSERT_OK_AND_ASSIGN(const auto again, Fetch({0}));
  EXPECT_EQ(again[0].payload().data(), address);
  EXPECT_EQ(Stats().cold_hits, 0);
  EXPECT_LE(Stats().ram_bytes, 8 * kPayloadBytes);
}

TEST_F(InProcessStoreTest, RamFullOfPinsIsResourceExhausted) {
  Open(/*ram_blocks=*/4);
  ASSERT_OK(Append(0, 8));
  ASSERT_OK_AND_ASSIGN(auto pinned, Fetch({4, 5, 6, 7}));
  const auto exhausted =
      StatusIs(absl::StatusCode::kResourceExhausted,
               AllOf(HasSubstr("16384 of 16384"), HasSubstr("4096"), HasSubstr("--ram-bytes")));
  EXPECT_THAT(Append(8, 1), exhausted);
  EXPECT_THAT(Fetch({0}), exhausted);
  EXPECT_OK(Fetch({7}));
  BlockHandle copy = pinned[0];
  pinned.clear();
  EXPECT_OK(Append(8, 1));
  EXPECT_OK(Fetch({0, 1, 2}));
  EXPECT_THAT(Fetch({0, 1, 2, 3}), exhausted) << "a copy of a handle is a pin as well";
  copy = BlockHandle();
  EXPECT_OK(Fetch({0, 1, 2, 3}));
}

TEST_F(InProcessStoreTest, AFailedFetchLeavesNothingPinned) {
  Open(/*ram_blocks=*/4);
  ASSERT_OK(Append(0, 10));
  EXPECT_THAT(Fetch({0, 1, 2, 3, 4}), StatusIs(absl::StatusCode::kResourceExhausted));
  script_->FailGets(absl::UnavailableError("unplugged"));
  EXPECT_THAT(Fetch({6, 7}), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("unplugged")));
  script_->FailGets(absl::OkStatus());
  EXPECT_OK(Fetch({6, 7, 8, 9}));
  EXPECT_OK(Append(10, 10));
  EXPECT_EQ(Stats().corrupt_blocks, 0);
}

TEST_F(InProcessStoreTest, TheLeastRecentlyUsedGoesFirst) {
  Open(/*ram_blocks=*/16);
  ASSERT_OK(Append(0, 16));
  ASSERT_OK(Fetch({0, 5}));  // used, so 1 is the oldest
  ASSERT_OK(Append(16, 3));  // drops 1, 2, 3
  const auto misses = [&](int64_t block) {
    const int64_t before = Stats().cold_hits;
    EXPECT_OK(Fetch({block}));
    return Stats().cold_hits - before;
  };
  for (const int64_t block : {4, 6, 7, 0, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18}) {
    EXPECT_EQ(misses(block), 0) << block;
  }
  EXPECT_EQ(misses(1), 1);  // drops 4
  EXPECT_EQ(misses(6), 0);
  EXPECT_EQ(misses(4), 1);  // drops 7: 6 has been used since
  EXPECT_EQ(misses(6), 0);
  EXPECT_EQ(misses(0), 0);
  EXPECT_EQ(misses(7), 1);
}

TEST_F(InProcessStoreTest, ABlockIsWrittenOnce) {
  Open(/*ram_blocks=*/8);
  ASSERT_OK(Append(0, 64));
  for (int round = 0; round < 3; ++round) {
    for (int64_t block = 0; block < 64; ++block) ASSERT_OK(Fetch({block}));
  }
  const auto writes = script_->writes();
  EXPECT_GE(writes.size(), 56u);
  for (const auto& [key, count] : writes) EXPECT_EQ(count, 1);
}

TEST_F(InProcessStoreTest, NothingIsWrittenWhileRamHasRoom) {
  Open(/*ram_blocks=*/80);
  ASSERT_OK(Append(0, 70));
  EXPECT_EQ(script_->keys(), 0u);
  EXPECT_EQ(Stats().blocks_cold, 0);
}

TEST_F(InProcessStoreTest, WritesComeInLargeBatches) {
  Open(/*ram_blocks=*/4096);
  ASSERT_OK(Append(0, 20000));
  const std::vector<size_t> batches = script_->put_bytes();
  EXPECT_GT(batches.size(), 5u);
  EXPECT_THAT(batches, Each(AllOf(Ge(size_t{512} << 10), Le(size_t{10} << 20))));
}

TEST_F(InProcessStoreTest, AppendWaitsForTheColdTierAndDoesNotFail) {
  Open(/*ram_blocks=*/8);
  script_->HoldPuts();
  ASSERT_OK(Append(0, 8));
  std::thread appender([&] { EXPECT_OK(Append(8, 20)); });
  script_->WaitForHeldPut();
  EXPECT_LE(Stats().ram_bytes, 8 * kPayloadBytes);
  EXPECT_OK(Fetch({0})) << "blocks that are being written can be read";
  script_->ReleasePuts();
  appender.join();
  for (int64_t block = 0; block < 28; ++block) {
    ASSERT_OK_AND_ASSIGN(const auto handles, Fetch({block}));
    ASSERT_EQ(Bytes(handles[0]), Payloads(0, block));
  }
}

TEST_F(InProcessStoreTest, AFailingColdTierIsReportedUntilItRecovers) {
  Open(/*ram_blocks=*/8);
  script_->FailPuts(absl::ResourceExhaustedError("disk full"));
  EXPECT_THAT(Append(0, 20), StatusIs(absl::StatusCode::kResourceExhausted,
                                      AllOf(HasSubstr("disk full"), HasSubstr("32768 of 32768"))));
  EXPECT_THAT(Append(8, 1), StatusIs(absl::StatusCode::kResourceExhausted));
  for (int64_t block = 0; block < 8; ++block) {
    ASSERT_OK_AND_ASSIGN(const auto handles, Fetch({block}));
    ASSERT_EQ(Bytes(handles[0]), Payloads(0, block)) << "nothing stored is lost";
  }
  script_->FailPuts(absl::OkStatus());
  EXPECT_OK(Append(8, 20));
  for (int64_t block = 0; block < 28; ++block) EXPECT_OK(Fetch({block}));
}

TEST_F(InProcessStoreTest, ReadsGoOnWhileTheColdTierTakesNoWrites) {
  Open(/*ram_blocks=*/8);
  ASSERT_OK(Append(0, 30));
  script_->FailPuts(absl::UnavailableError("read-only"));
  while (Append(Stats().blocks, 1).ok()) {
  }
  for (int round = 0; round < 2; ++round) {
    for (int64_t block = 0; block < 30; ++block) {
      const auto handles = Fetch({block});
      // With RAM full of blocks that cannot be written there may be no room to read into.
      if (handles.ok()) {
        EXPECT_EQ(Bytes((*handles)[0]), Payloads(0, block));
      } else {
        EXPECT_THAT(handles, StatusIs(absl::StatusCode::kUnavailable));
      }
    }
  }
  script_->FailPuts(absl::OkStatus());
  for (int64_t block = 0; block < 30; ++block) EXPECT_OK(Fetch({block}));
}

TEST_F(InProcessStoreTest, AnyFlippedByteOfAColdBlockIsFound) {
  Open(/*ram_blocks=*/2);
  ASSERT_OK(Append(0, 6));
  int64_t corrupt = 0;
  const int64_t size = static_cast<int64_t>(EncodedBlockBytes(kPayloadBytes));
  for (int64_t byte = 0; byte < size; byte += byte < 400 ? 1 : 97) {
    script_->FlipReadByte(byte);
    ASSERT_THAT(Fetch({0}), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("block 0"))) << byte;
    ASSERT_EQ(Stats().corrupt_blocks, ++corrupt);
  }
  script_->FlipReadByte(-1);
  EXPECT_OK(Fetch({0}));
}

TEST_F(InProcessStoreTest, AShortWriteIsFound) {
  Open(/*ram_blocks=*/2);
  script_->TruncatePuts(4000);
  ASSERT_OK(Append(0, 6));
  EXPECT_THAT(Fetch({0}), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("block 0")));
  EXPECT_EQ(Stats().corrupt_blocks, 1);
}

TEST_F(InProcessStoreTest, ALostRecordIsDataLoss) {
  Open(/*ram_blocks=*/2);
  ASSERT_OK(Append(0, 6));
  script_->FailGets(absl::NotFoundError("gone"));
  EXPECT_THAT(Fetch({0}), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("lost")));
  EXPECT_EQ(Stats().corrupt_blocks, 1);
}

TEST_F(InProcessStoreTest, AReadThatThrowsLeavesTheBlockToOthers) {
  Open(/*ram_blocks=*/2);
  ASSERT_OK(Append(0, 6));
  script_->ThrowFromGets(true);
  EXPECT_THROW(Fetch({0, 1}).IgnoreError(), std::bad_alloc);
  script_->ThrowFromGets(false);
  ASSERT_OK_AND_ASSIGN(const auto handles, Fetch({0, 1}));
  EXPECT_EQ(Bytes(handles[1]), Payloads(0, 1));
  EXPECT_EQ(Stats().blocks_ram, 2);
  EXPECT_EQ(Stats().ram_bytes, 2 * kPayloadBytes);
}

TEST_F(InProcessStoreTest, AWriteThatThrowsIsAFailedWrite) {
  Open(/*ram_blocks=*/4);
  script_->ThrowFromPuts(true);
  EXPECT_THAT(Append(0, 20), StatusIs(absl::StatusCode::kResourceExhausted,
                                      HasSubstr("the process has no memory left")));
  const int64_t stored = Stats().blocks;
  script_->ThrowFromPuts(false);
  EXPECT_OK(Append(stored, 20 - stored));
  for (int64_t block = 0; block < 20; ++block) {
    ASSERT_OK_AND_ASSIGN(const auto handles, Fetch({block}));
    ASSERT_EQ(Bytes(handles[0]), Payloads(0, block));
  }
}

TEST_F(InProcessStoreTest, DropFreesTheColdTierWithTheLastFork) {
  Open(/*ram_blocks=*/4);
  ASSERT_OK(Append(0, 50));
  const ContextId fork = NewContextId();
  ASSERT_OK(store_->Fork(id_, fork));
  ASSERT_OK(store_->Drop(id_));
  EXPECT_GE(Stats().blocks_cold, 46);
  EXPECT_OK(store_->Fetch(fork, 0, std::vector<int64_t>{0, 1}));
  ASSERT_OK(store_->Drop(fork));
  EXPECT_EQ(script_->keys(), 0u);
  EXPECT_EQ(Stats().blocks_cold, 0);
  EXPECT_EQ(Stats().cold_bytes, 0);
  EXPECT_EQ(Stats().ram_bytes, 0);
}

TEST_F(InProcessStoreTest, DropWaitsForABatchThatIsBeingWritten) {
  Open(/*ram_blocks=*/8);
  script_->HoldPuts();
  ASSERT_OK(Append(0, 8));
  script_->WaitForHeldPut();
  std::thread dropper([&] { EXPECT_OK(store_->Drop(id_)); });
  // The context has gone, so its blocks are going; the first of them is being written.
  while (Stats().contexts > 0) std::this_thread::yield();
  bool all_stay = true;
  for (int look = 0; look < 100'000; ++look) all_stay &= Stats().blocks == 8;
  EXPECT_TRUE(all_stay);
  script_->ReleasePuts();
  dropper.join();
  EXPECT_EQ(script_->keys(), 0u);
  EXPECT_EQ(Stats().blocks, 0);
  EXPECT_EQ(Stats().ram_bytes, 0);
}

TEST_F(InProcessStoreTest, ThreadsThatWantTheSameColdBlockReadItOnce) {
  Open(/*ram_blocks=*/64);
  ASSERT_OK(Append(0, 200));
  const int64_t before = Stats().cold_hits;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int64_t block = 0; block < 20; ++block) {
        const auto handles = Fetch({block, block, block + 1});
        ASSERT_OK(handles);
        ASSERT_EQ(Bytes((*handles)[2]), Payloads(0, block + 1));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(Stats().cold_hits - before, 21);
}

TEST_F(InProcessStoreTest, BlocksOfSeveralSizesShareRam) {
  Open(/*ram_blocks=*/32);
  ContextOptions large = Options();
  large.geometry.block_tokens *= 4;
  const ContextId other = NewContextId();
  ASSERT_OK(store_->Create(other, large));
  for (int64_t block = 0; block < 60; ++block) {
    ASSERT_OK(Append(block, 1));
    ASSERT_OK(store_->Append(other, 0, block,
                             Spans(Payloads(0, block, 1, 5, large.geometry), large.geometry)));
    ASSERT_LE(Stats().ram_bytes, 32 * kPayloadBytes);
  }
  for (int64_t block = 0; block < 60; ++block) {
    ASSERT_OK_AND_ASSIGN(const auto small_handle, Fetch({block}));
    ASSERT_EQ(Bytes(small_handle[0]), Payloads(0, block));
    ASSERT_OK_AND_ASSIGN(const auto large_handle,
                         store_->Fetch(other, 0, std::vector<int64_t>{block}));
    ASSERT_EQ(Bytes(large_handle[0]), Payloads(0, block, 1, 5, large.geometry));
  }
}

TEST_F(InProcessStoreTest, AViewIsWhatSelectScores) {
  Open(/*ram_blocks=*/64);
  EXPECT_THAT(store_->View(NewContextId(), 0), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(store_->View(id_, 2), StatusIs(absl::StatusCode::kOutOfRange));
  ASSERT_OK(Append(0, 40));
  const std::vector<float> representatives = Representatives(0, 0, 30);
  ASSERT_OK(store_->Publish(id_, 0, 0, representatives));
  ASSERT_OK_AND_ASSIGN(const IndexView view, store_->View(id_, 0));
  EXPECT_EQ(view.blocks, 30);
  ASSERT_OK(store_->Publish(id_, 0, 30, Representatives(0, 30, 10)));
  const ContextId fork = NewContextId();
  ASSERT_OK(store_->Fork(id_, fork));
  ASSERT_OK_AND_ASSIGN(const IndexView of_fork, store_->View(fork, 0));
  EXPECT_EQ(of_fork.blocks, 40);
  EXPECT_EQ(of_fork.chunks[0].data, view.chunks[0].data) << "forks share";
  ASSERT_OK(store_->Drop(id_));
  std::vector<float> seen;
  for (const kernels::RepresentativeChunk& chunk : view.chunks) {
    const auto* data = static_cast<const float*>(chunk.data);
    seen.insert(seen.end(), data, data + chunk.blocks * 32);
  }
  EXPECT_EQ(seen, representatives) << "though more was published, and the context has gone";
}

// The entry of one block is given back for another of the same place in a context of another
// recipe.
TEST_F(InProcessStoreTest, ABlockOfAnotherRecipeIsRefused) {
  Open(/*ram_blocks=*/2);
  ASSERT_OK(Append(0, 6));
  const BlockIdentity own = {.key = {.context = id_, .layer = 0, .index = 0},
                             .tenant = "tenant",
                             .model = Options().model,
                             .recipe = "n_local=128 block_tokens=32",
                             .geometry = kGeometry};
  const std::vector<std::byte> payload = Payloads(0, 0);
  const BlockHeader header = EncodeHeader(own, Crc32c(payload));
  std::vector<std::byte> entry(header.begin(), header.end());
  entry.insert(entry.end(), payload.begin(), payload.end());
  script_->ReplaceReads(entry);
  EXPECT_THAT(Fetch({0}), StatusIs(absl::StatusCode::kDataLoss,
                                   AllOf(HasSubstr("block 0"), HasSubstr("recipe"))));
  EXPECT_EQ(Stats().corrupt_blocks, 1);
}

TEST(InProcessStoreOverRocksDb, ServesManyTimesItsRam) {
  const ::infllm::testing::TempDir dir;
  auto cold = OpenRocksDb({.directory = dir.path()});
  ASSERT_OK(cold);
  const auto store = Make({.ram_capacity_bytes = 100 * kPayloadBytes, .cold = *std::move(cold)});
  const ContextId id = NewContextId();
  ASSERT_OK(store->Create(id, Options()));
  for (int64_t block = 0; block < 2000; block += 50) {
    ASSERT_OK(store->Append(id, 0, block, Spans(Payloads(0, block, 50))));
  }
  ASSERT_OK(store->Publish(id, 0, 0, Representatives(0, 0, 2000)));
  for (int64_t seed = 0; seed < 100; ++seed) {
    const std::vector<float> query = Query(seed);
    const SelectQuery queries[] = {{.context = id, .query = query, .k = 16}};
    ASSERT_OK_AND_ASSIGN(const auto selections, store->Select({.queries = queries}));
    ASSERT_OK(selections[0].status);
    for (const SelectedBlock& block : selections[0].blocks) {
      ASSERT_EQ(Bytes(block.block), Payloads(0, block.index));
    }
  }
  ASSERT_OK_AND_ASSIGN(const StoreStats stats, store->Stats());
  EXPECT_GT(stats.cold_hits, 1000);
  ASSERT_OK(store->Drop(id));
}

}  // namespace
}  // namespace infllm::memstore
