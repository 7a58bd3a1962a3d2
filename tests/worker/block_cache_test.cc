#include "worker/attention/block_cache.h"

#include <array>
#include <memory>
#include <vector>

#include "tests/support/status_matchers.h"

namespace infllm::worker {
namespace {

using ::testing::ElementsAre;

class BlockCacheTest : public ::testing::Test {
 protected:
  // Blocks `indices`, ascending; those that the cache lacks carry a payload, as a store gives it.
  memstore::Selection Select(const BlockCache& cache, std::vector<int64_t> indices) {
    memstore::Selection selection;
    for (const int64_t index : indices) {
      memstore::SelectedBlock block{.index = index};
      const auto have = cache.indices();
      if (std::find(have.begin(), have.end(), index) == have.end()) {
        auto bytes = std::make_shared<std::array<std::byte, 1>>();
        (*bytes)[0] = std::byte(index);
        block.block = memstore::BlockHandle(*bytes, bytes);
      }
      selection.blocks.push_back(block);
    }
    return selection;
  }
  void Use(BlockCache& cache, std::vector<int64_t> indices) {
    std::vector<const std::byte*> records;
    ASSERT_OK(cache.Admit(Select(cache, indices), records));
    ASSERT_EQ(records.size(), indices.size());
    for (size_t i = 0; i < records.size(); ++i) EXPECT_EQ(int64_t(*records[i]), indices[i]);
  }
  void UseWithMass(BlockCache& cache, std::vector<int64_t> indices, std::vector<float> mass) {
    const memstore::Selection selection = Select(cache, indices);
    std::vector<const std::byte*> records;
    ASSERT_OK(cache.Admit(selection, records));
    cache.Score(selection, mass);
  }

  std::unique_ptr<kernels::Backend> backend_ = kernels::NewReferenceBackend();
};

TEST_F(BlockCacheTest, LruDropsTheBlockSelectedLongestAgo) {
  BlockCache cache(*backend_, {.capacity_blocks = 3});
  Use(cache, {1, 2});
  Use(cache, {2, 3});
  Use(cache, {1});
  Use(cache, {4});
  EXPECT_THAT(cache.indices(), ElementsAre(1, 3, 4));
  Use(cache, {5, 6});
  EXPECT_THAT(cache.indices(), ElementsAre(4, 5, 6));
}

TEST_F(BlockCacheTest, NeverDropsWhatTheSelectionUses) {
  BlockCache cache(*backend_, {.capacity_blocks = 3});
  Use(cache, {1, 2, 3});
  Use(cache, {1, 4, 5});
  EXPECT_THAT(cache.indices(), ::testing::ElementsAre(1, 4, 5));
}

TEST_F(BlockCacheTest, LruSKeepsWhatDrewAttention) {
  BlockCache cache(*backend_, {.capacity_blocks = 3, .policy = CachePolicy::kLruS, .decay = 0.5});
  UseWithMass(cache, {1}, {10});       // 1: 10
  UseWithMass(cache, {2, 3}, {1, 2});  // 1: 5, 2: 1, 3: 2
  UseWithMass(cache, {4}, {9});        // 2 goes; 1: 2.5, 3: 1, 4: 9
  EXPECT_THAT(cache.indices(), ElementsAre(1, 3, 4));
  UseWithMass(cache, {3}, {5});  // a hit adds to its history: 1: 1.25, 3: 5.5, 4: 4.5
  UseWithMass(cache, {5}, {0});
  EXPECT_THAT(cache.indices(), ElementsAre(3, 4, 5));
}

TEST_F(BlockCacheTest, ForkHoldsTheSamePins) {
  BlockCache cache(*backend_, {.capacity_blocks = 2});
  Use(cache, {1, 2});
  BlockCache fork = cache.Fork();
  Use(cache, {3, 4});
  EXPECT_THAT(fork.indices(), ElementsAre(1, 2));
  Use(fork, {1, 2});  // served without payloads
  EXPECT_EQ(fork.size_bytes(), 2);
}

TEST_F(BlockCacheTest, AStoreThatOmitsAPayloadIsAnError) {
  BlockCache cache(*backend_, {.capacity_blocks = 2});
  memstore::Selection selection;
  selection.blocks.push_back({.index = 7});
  std::vector<const std::byte*> records;
  EXPECT_THAT(cache.Admit(selection, records),
              infllm::testing::StatusIs(absl::StatusCode::kInternal));
}

}  // namespace
}  // namespace infllm::worker
