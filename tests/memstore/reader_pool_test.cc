#include "memstore/reader_pool.h"

#include <atomic>
#include <latch>
#include <new>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace infllm::memstore {
namespace {

TEST(ReaderPoolTest, ReadsEveryPartOnce) {
  ReaderPool pool(4);
  for (const size_t count : {0, 1, 2, 3, 100}) {
    std::vector<std::atomic<int>> reads(count);
    pool.ForEach(count, [&](size_t i) { ++reads[i]; });
    for (const std::atomic<int>& read : reads) EXPECT_EQ(read, 1);
  }
}

TEST(ReaderPoolTest, WhatAnotherThreadThrowsReachesTheCaller) {
  ReaderPool pool(2);
  const std::thread::id caller = std::this_thread::get_id();
  std::latch helper_came(1);
  EXPECT_THROW(pool.ForEach(2,
                            [&](size_t) {
                              if (std::this_thread::get_id() == caller) {
                                helper_came.wait();
                                return;
                              }
                              helper_came.count_down();
                              throw std::bad_alloc();
                            }),
               std::bad_alloc);
  std::atomic<int> reads = 0;
  pool.ForEach(10, [&](size_t) { ++reads; });
  EXPECT_EQ(reads, 10) << "the pool works on";
}

TEST(ReaderPoolTest, WhatTheCallerThrowsWaitsForTheOthers) {
  ReaderPool pool(4);
  for (int round = 0; round < 100; ++round) {
    std::atomic<int> inside = 0;
    EXPECT_THROW(pool.ForEach(8,
                              [&](size_t i) {
                                ++inside;
                                std::this_thread::yield();
                                --inside;
                                if (i == 3) throw std::bad_alloc();
                              }),
                 std::bad_alloc);
    EXPECT_EQ(inside, 0);
  }
}

}  // namespace
}  // namespace infllm::memstore
