#include "kernels/core/thread_pool.h"

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/core/cpu_limit.h"

namespace infllm::kernels {
namespace {

using ::testing::Each;
using ::testing::Eq;

class ThreadPoolTest : public ::testing::TestWithParam<int> {
 protected:
  ThreadPool pool_{GetParam()};
};

TEST_P(ThreadPoolTest, HasTheRequestedThreads) { EXPECT_EQ(pool_.threads(), GetParam()); }

TEST_P(ThreadPoolTest, RunsEveryItemOnceForManySizes) {
  for (const int64_t items : {0, 1, 2, 3, 7, 64, 1000}) {
    for (const int64_t grain : {1, 2, 3, 64, 5000}) {
      std::vector<std::atomic<int>> runs(items);
      pool_.ParallelFor(items, grain, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) runs[i].fetch_add(1);
      });
      for (const std::atomic<int>& r : runs) ASSERT_EQ(r.load(), 1) << items << " by " << grain;
    }
  }
}

TEST_P(ThreadPoolTest, RangesDependOnItemsAndGrainOnly) {
  std::mutex mutex;
  std::set<std::pair<int64_t, int64_t>> ranges;
  pool_.ParallelFor(10, 4, [&](int64_t begin, int64_t end, int) {
    std::lock_guard lock(mutex);
    ranges.emplace(begin, end);
  });
  EXPECT_THAT(ranges, ::testing::ElementsAre(std::pair(0, 4), std::pair(4, 8), std::pair(8, 10)));
}

TEST_P(ThreadPoolTest, NoTwoRangesShareAWorkerAtOnce) {
  std::vector<int64_t> sums(pool_.threads());  // plain: a shared worker id is a race
  for (int repeat = 0; repeat < 100; ++repeat) {
    pool_.ParallelFor(200, 1, [&](int64_t begin, int64_t, int worker) { sums[worker] += begin; });
  }
  int64_t total = 0;
  for (const int64_t sum : sums) total += sum;
  EXPECT_EQ(total, 100 * 199 * 200 / 2);
}

TEST_P(ThreadPoolTest, ServesSeveralCallers) {
  constexpr int kCallers = 4, kJobs = 200, kItems = 50;
  std::vector<std::vector<int>> counts(kCallers, std::vector<int>(kItems));
  std::vector<int64_t> per_worker(pool_.threads());  // plain: callers must not overlap
  std::vector<std::thread> callers;
  for (int c = 0; c < kCallers; ++c) {
    callers.emplace_back([&, c] {
      for (int job = 0; job < kJobs; ++job) {
        pool_.ParallelFor(kItems, 3, [&](int64_t begin, int64_t end, int worker) {
          for (int64_t i = begin; i < end; ++i) ++counts[c][i];
          per_worker[worker] += end - begin;
        });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_THAT(counts, Each(Each(Eq(kJobs))));
}

void Burn(std::chrono::microseconds time) {
  const auto end = std::chrono::steady_clock::now() + time;
  while (std::chrono::steady_clock::now() < end) {
  }
}

// Chunks and pauses longer than any spinning, so that caller and workers sleep and are woken.
TEST_P(ThreadPoolTest, WakesUpAfterItsThreadsSlept) {
  std::atomic<int> runs{0};
  for (int job = 0; job < 5; ++job) {
    pool_.ParallelFor(6, 1, [&](int64_t, int64_t, int) {
      Burn(std::chrono::milliseconds(2));
      runs.fetch_add(1);
    });
    Burn(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(runs.load(), 5 * 6);
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, ::testing::Values(1, 2, 3, 7));

TEST(ThreadPoolLifetimeTest, ComesAndGoesWithoutWork) {
  for (int i = 0; i < 50; ++i) ThreadPool pool(4);
}

TEST(ThreadPoolLifetimeTest, DefaultLeavesOneOfManyCpusFree) {
  const int cpus = AvailableCpus();
  EXPECT_EQ(ThreadPool::DefaultThreads(), cpus <= 2 ? cpus : cpus - 1);
  EXPECT_EQ(ThreadPool(0).threads(), ThreadPool::DefaultThreads());
}

TEST(ThreadPoolDeathTest, NestedCallIsACheckFailureNotADeadlock) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        ThreadPool pool(2);
        pool.ParallelFor(1, 1, [&](int64_t, int64_t, int) {
          pool.ParallelFor(1, 1, [](int64_t, int64_t, int) {});
        });
      },
      "check failed: !t_inside_body");
}

}  // namespace
}  // namespace infllm::kernels
