#include "kernels/core/cpu_limit.h"

#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace infllm::kernels {
namespace {

using ::testing::Eq;
using ::testing::Optional;

class CgroupCpuQuotaTest : public ::testing::Test {
 protected:
  void Write(const std::string& name, std::string_view text) {
    std::filesystem::create_directories(std::filesystem::path(root_.file(name)).parent_path());
    root_.Write(name, text);
  }
  std::optional<double> Quota() const { return CgroupCpuQuota(root_.path()); }
  testing::TempDir root_;
};

TEST_F(CgroupCpuQuotaTest, NoCgroupsIsNoQuota) { EXPECT_EQ(Quota(), std::nullopt); }

TEST_F(CgroupCpuQuotaTest, ReadsV2) {
  Write("proc/self/cgroup", "0::/a/b\n");
  Write("sys/fs/cgroup/a/b/cpu.max", "250000 100000\n");
  EXPECT_THAT(Quota(), Optional(2.5));
}

TEST_F(CgroupCpuQuotaTest, MaxIsNoQuota) {
  Write("proc/self/cgroup", "0::/a\n");
  Write("sys/fs/cgroup/a/cpu.max", "max 100000\n");
  EXPECT_EQ(Quota(), std::nullopt);
}

TEST_F(CgroupCpuQuotaTest, TheTightestAncestorCounts) {
  Write("proc/self/cgroup", "0::/a/b\n");
  Write("sys/fs/cgroup/a/b/cpu.max", "400000 100000\n");
  Write("sys/fs/cgroup/a/cpu.max", "150000 100000\n");
  EXPECT_THAT(Quota(), Optional(1.5));
}

TEST_F(CgroupCpuQuotaTest, APathOfTheHostFallsBackToTheRootOfTheContainer) {
  Write("proc/self/cgroup", "0::/host/only\n");
  Write("sys/fs/cgroup/cpu.max", "100000 50000\n");
  EXPECT_THAT(Quota(), Optional(2.0));
}

TEST_F(CgroupCpuQuotaTest, ReadsV1) {
  Write("proc/self/cgroup", "3:cpuset:/x\n2:cpu,cpuacct:/x\n1:memory:/y\n");
  Write("sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "300000\n");
  Write("sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n");
  EXPECT_THAT(Quota(), Optional(3.0));
}

TEST_F(CgroupCpuQuotaTest, MinusOneIsNoQuota) {
  Write("proc/self/cgroup", "2:cpu:/\n");
  Write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  Write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(Quota(), std::nullopt);
}

TEST_F(CgroupCpuQuotaTest, GarbageIsNoQuota) {
  Write("proc/self/cgroup", "no colons\n::\n0::/a\n");
  Write("sys/fs/cgroup/a/cpu.max", "10x 0\n");
  EXPECT_EQ(Quota(), std::nullopt);
}

TEST(AvailableCpusTest, IsPositive) { EXPECT_GE(AvailableCpus(), 1); }

}  // namespace
}  // namespace infllm::kernels
