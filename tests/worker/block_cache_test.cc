#include "worker/attention/block_cache.h"

#include <array>
#include <memory>
#include <vector>

#include "tests/support/status_matchers.h"

namespace infllm::worker {
namespace {

using ::testing::ElementsAre;

// A store's blocks are one byte, their index.
class BlockCacheTest : public ::testing::Test {
 protected:
  static memstore::BlockHandle Block(int64_t index) {
    auto bytes = std::make_shared<std::array<std::byte, 1>>();
    (*bytes)[0] = std::byte(index);
    return memstore::BlockHandle(*bytes, bytes);
  }
  void Use(BlockCache& cache, std::vector<int64_t> indices) {
    BlockCache::Retired retired;
    cache.Evict(indices, indices, retired);
    for (const int64_t index : indices) {
      if (cache.Find(index) != nullptr) continue;
      const memstore::BlockHandle block = Block(index);
      cache.Insert(index, cache.TakeSlot(), block.payload().data(), block);
    }
    cache.Touch(indices);
    for (const int64_t index : indices) {
      ASSERT_NE(cache.Find(index), nullptr);
      EXPECT_EQ(int64_t(*cache.Find(index)), index);
    }
  }
  void UseWithMass(BlockCache& cache, std::vector<int64_t> indices, std::vector<float> mass) {
    Use(cache, indices);
    cache.Score(indices, mass);
  }
};

TEST_F(BlockCacheTest, LruDropsTheBlockSelectedLongestAgo) {
  BlockCache cache({.capacity_blocks = 3}, {});
  Use(cache, {1, 2});
  Use(cache, {2, 3});
  Use(cache, {1});
  Use(cache, {4});
  EXPECT_THAT(cache.indices(), ElementsAre(1, 3, 4));
  Use(cache, {5, 6});
  EXPECT_THAT(cache.indices(), ElementsAre(4, 5, 6));
}

TEST_F(BlockCacheTest, NeverDropsWhatTheSelectionUses) {
  BlockCache cache({.capacity_blocks = 3}, {});
  Use(cache, {1, 2, 3});
  Use(cache, {1, 4, 5});
  EXPECT_THAT(cache.indices(), ElementsAre(1, 4, 5));
}

TEST_F(BlockCacheTest, EvictedPinsAreHandedOverAndWhatMustBeKeptStays) {
  BlockCache cache({.capacity_blocks = 2}, {});
  Use(cache, {1, 2});
  BlockCache::Retired retired;
  const std::vector<int64_t> selected = {3}, keep = {1, 3};
  cache.Evict(selected, keep, retired);
  ASSERT_EQ(retired.size(), 1u);
  EXPECT_EQ(retired[0].first, 2);
  EXPECT_EQ(int64_t(retired[0].second.payload()[0]), 2);
  EXPECT_THAT(cache.indices(), ElementsAre(1));
}

TEST_F(BlockCacheTest, LruSKeepsWhatDrewAttention) {
  BlockCache cache({.capacity_blocks = 3, .policy = CachePolicy::kLruS, .decay = 0.5}, {});
  UseWithMass(cache, {1}, {10});       // 1: 10
  UseWithMass(cache, {2, 3}, {1, 2});  // 1: 5, 2: 1, 3: 2
  UseWithMass(cache, {4}, {9});        // 2 goes; 1: 2.5, 3: 1, 4: 9
  EXPECT_THAT(cache.indices(), ElementsAre(1, 3, 4));
  UseWithMass(cache, {3}, {5});  // a hit adds to its history: 1: 1.25, 3: 5.5, 4: 4.5
  UseWithMass(cache, {5}, {0});
  EXPECT_THAT(cache.indices(), ElementsAre(3, 4, 5));
}

TEST_F(BlockCacheTest, AForkHoldsTheSamePinsAndGrowsApart) {
  BlockCache cache({.capacity_blocks = 2}, {});
  Use(cache, {1, 2});
  BlockCache fork = cache.Fork({});
  Use(cache, {3, 4});
  EXPECT_THAT(fork.indices(), ElementsAre(1, 2));
  Use(fork, {1, 2});
  EXPECT_EQ(fork.size_bytes(), 2);
}

TEST_F(BlockCacheTest, CopiesTakeSlotsThatEvictionGivesBack) {
  BlockCache cache({.capacity_blocks = 2}, {7, 8});
  Use(cache, {1, 2});
  EXPECT_EQ(cache.TakeSlot(), -1);
  Use(cache, {2});
  BlockCache::Retired retired;
  const std::vector<int64_t> selected = {2, 3};
  cache.Evict(selected, selected, retired);
  const PageNumber slot = cache.TakeSlot();
  EXPECT_TRUE(slot == 7 || slot == 8);
  EXPECT_THAT(cache.Fork({1, 2}).indices(), ElementsAre());  // copies are not shared
}

}  // namespace
}  // namespace infllm::worker
