#include "worker/model/available_memory.h"

#include <filesystem>
#include <string>

#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace infllm::worker {
namespace {

using infllm::testing::TempDir;

constexpr int64_t kMiB = 1 << 20;

// A /proc and a /sys/fs/cgroup of our own, with 1000 MiB available.
class AvailableMemoryTest : public ::testing::Test {
 protected:
  AvailableMemoryTest() {
    Write("proc/meminfo", "MemTotal:  4096000 kB\nMemFree:  10 kB\nMemAvailable:  1024000 kB\n");
  }
  void Write(const std::string& name, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(dir_.file(name)).parent_path());
    dir_.Write(name, text);
  }
  std::optional<int64_t> Available() const {
    return AvailableMemoryBytes(dir_.file("proc"), dir_.file("cgroup"));
  }

 private:
  TempDir dir_;
};

TEST_F(AvailableMemoryTest, IsMemAvailableWithoutGroups) { EXPECT_EQ(Available(), 1000 * kMiB); }

TEST_F(AvailableMemoryTest, Version2GroupLimitsItAndCacheIsRoom) {
  Write("proc/self/cgroup", "0::/pod/container\n");
  Write("cgroup/pod/container/memory.max", "104857600\n");
  Write("cgroup/pod/container/memory.current", "62914560\n");
  EXPECT_EQ(Available(), 40 * kMiB);
  Write("cgroup/pod/container/memory.stat",
        "anon 5\ninactive_file 10485760\nactive_file 5242880\n");
  EXPECT_EQ(Available(), 55 * kMiB);
}

TEST_F(AvailableMemoryTest, AnOuterGroupLimitsItToo) {
  Write("proc/self/cgroup", "0::/pod/container\n");
  Write("cgroup/pod/container/memory.max", "max\n");
  Write("cgroup/pod/container/memory.current", "62914560\n");
  Write("cgroup/pod/memory.max", "83886080\n");
  Write("cgroup/pod/memory.current", "73400320\n");
  EXPECT_EQ(Available(), 10 * kMiB);
}

TEST_F(AvailableMemoryTest, AHostPathInsideAContainerFallsBackToTheMount) {
  Write("proc/self/cgroup", "0::/not/visible/here\n");
  Write("cgroup/memory.max", "31457280\n");
  Write("cgroup/memory.current", "10485760\n");
  EXPECT_EQ(Available(), 20 * kMiB);
}

TEST_F(AvailableMemoryTest, Version1GroupLimitsIt) {
  Write("proc/self/cgroup", "5:cpu,cpuacct:/a\n4:hugetlb,memory:/a\n0::/\n");
  Write("cgroup/memory/a/memory.limit_in_bytes", "52428800\n");
  Write("cgroup/memory/a/memory.usage_in_bytes", "41943040\n");
  Write("cgroup/memory/a/memory.stat", "inactive_file 1\ntotal_inactive_file 1048576\n");
  EXPECT_EQ(Available(), 11 * kMiB);
}

TEST_F(AvailableMemoryTest, AFullGroupHasNoRoomAndAnUnlimitedOneDoesNotMatter) {
  Write("proc/self/cgroup", "0::/a\n");
  Write("cgroup/a/memory.max", "1048576\n");
  Write("cgroup/a/memory.current", "2097152\n");
  EXPECT_EQ(Available(), 0);
  Write("cgroup/a/memory.max", "9223372036854771712\n");
  EXPECT_EQ(Available(), 1000 * kMiB);
}

TEST_F(AvailableMemoryTest, GarbageIsNoLimit) {
  Write("proc/self/cgroup", "nonsense\n0::\n::\n0::/a\n");
  Write("cgroup/a/memory.max", "lots\n");
  Write("cgroup/a/memory.current", "1\n");
  EXPECT_EQ(Available(), 1000 * kMiB);
}

TEST_F(AvailableMemoryTest, IsUnknownWithoutMeminfo) {
  Write("proc/meminfo", "MemTotal: 1 kB\n");
  EXPECT_EQ(Available(), std::nullopt);
}

TEST(AvailableMemoryOfThisMachineTest, IsPositive) { EXPECT_GT(AvailableMemoryBytes(), 0); }

}  // namespace
}  // namespace infllm::worker
