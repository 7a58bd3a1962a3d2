#include "memstore/ram_tier.h"

#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <set>
#include <vector>

#include "tests/support/status_matchers.h"

namespace infllm::memstore {
namespace {

using ::infllm::testing::IsOk;

constexpr int64_t kMiB = 1 << 20;

TEST(RamTier, CountsPayloadBytesAndRefusesNothingThatFits) {
  RamTier ram(10 * 4096);
  std::vector<std::byte*> slots;
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(ram.HasRoom(4096));
    ASSERT_OK_AND_ASSIGN(slots.emplace_back(), ram.Allocate(4096));
    EXPECT_EQ(ram.used_bytes(), (i + 1) * 4096);
  }
  EXPECT_FALSE(ram.HasRoom(1));
  ram.Free(slots[3], 4096);
  EXPECT_TRUE(ram.HasRoom(4096));
  EXPECT_FALSE(ram.HasRoom(4097));
  EXPECT_EQ(ram.resident_bytes(), 10 * 4096);
}

TEST(RamTier, SlotsAreDistinctAlignedAndKeptForReuse) {
  RamTier ram(kMiB);
  std::set<std::byte*> slots;
  for (int i = 0; i < 100; ++i) {
    ASSERT_OK_AND_ASSIGN(std::byte* const slot, ram.Allocate(5000));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(slot) % 4096, 0u);
    std::memset(slot, i, 5000);
    slots.insert(slot);
  }
  EXPECT_EQ(slots.size(), 100u);
  int64_t resident = ram.resident_bytes();
  for (std::byte* slot : slots) ram.Free(slot, 5000);
  for (int i = 0; i < 100; ++i) {
    ASSERT_OK_AND_ASSIGN(std::byte* const slot, ram.Allocate(5000));
    EXPECT_TRUE(slots.erase(slot));
  }
  EXPECT_EQ(ram.resident_bytes(), resident);
}

TEST(RamTier, RoomOfOneSizeServesAnother) {
  RamTier ram(8 * kMiB);
  for (const int64_t size : {kMiB, int64_t{64} << 10, 2 * kMiB, int64_t{4096}}) {
    std::vector<std::byte*> slots;
    while (ram.HasRoom(size)) {
      ASSERT_OK_AND_ASSIGN(slots.emplace_back(), ram.Allocate(size));
      std::memset(slots.back(), 1, size);
      ASSERT_LE(ram.resident_bytes(), ram.capacity_bytes());
    }
    EXPECT_EQ(static_cast<int64_t>(slots.size()) * size, ram.capacity_bytes());
    for (std::byte* slot : slots) ram.Free(slot, size);
  }
}

TEST(RamTier, MixedSizesKeepTheirBytesThroughReuse) {
  RamTier ram(kMiB);
  std::multimap<size_t, std::byte*> live;
  uint64_t random = 1;
  for (int step = 0; step < 5000; ++step) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    const size_t size = 4096u << (random >> 33) % 5;
    if (ram.HasRoom(size)) {
      ASSERT_OK_AND_ASSIGN(std::byte* const slot, ram.Allocate(size));
      std::memset(slot, static_cast<int>(reinterpret_cast<uintptr_t>(slot) >> 12), size);
      live.emplace(size, slot);
    } else {
      const auto victim =
          std::next(live.begin(), static_cast<int64_t>((random >> 40) % live.size()));
      const std::byte expected{
          static_cast<uint8_t>(reinterpret_cast<uintptr_t>(victim->second) >> 12)};
      ASSERT_EQ(victim->second[0], expected);
      ASSERT_EQ(victim->second[victim->first - 1], expected);
      ram.Free(victim->second, victim->first);
      live.erase(victim);
    }
    ASSERT_LE(ram.used_bytes(), ram.capacity_bytes());
    ASSERT_LE(ram.resident_bytes(), ram.capacity_bytes());
  }
}

TEST(RamTier, TheProcessDoesNotGrowBeyondTheCapacity) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's shadow memory counts too";
#endif
  const auto rss = [] {
    std::FILE* const file = std::fopen("/proc/self/statm", "r");
    int64_t total = 0, resident = 0;
    EXPECT_EQ(std::fscanf(file, "%ld %ld", &total, &resident), 2);
    std::fclose(file);
    return resident * ::sysconf(_SC_PAGESIZE);
  };
  constexpr int64_t kCapacity = 64 * kMiB;
  const int64_t before = rss();
  RamTier ram(kCapacity);
  for (const int64_t size : {kMiB, 64 * (kMiB / 1024), 3 * kMiB, int64_t{4096}}) {
    std::vector<std::byte*> slots;
    while (ram.HasRoom(size)) {
      ASSERT_OK_AND_ASSIGN(slots.emplace_back(), ram.Allocate(size));
      std::memset(slots.back(), 1, size);
    }
    EXPECT_LT(rss() - before, kCapacity + 8 * kMiB) << "slots of " << size;
    for (std::byte* slot : slots) ram.Free(slot, size);
  }
}

}  // namespace
}  // namespace infllm::memstore
