// What the CPU backend promises beyond the contract of all backends.
#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/core/thread_pool.h"
#include "kernels/cpu/isa.h"
#include "tests/kernels/backends_under_test.h"
#include "tests/support/status_matchers.h"

namespace infllm::kernels {
namespace {

using ::infllm::testing::RandomNormal;

class CpuBackendTest : public ::testing::TestWithParam<Isa> {
 protected:
  static std::vector<float> Multiply(Backend& backend, const std::vector<float>& w,
                                     const std::vector<float>& x, int64_t in, DType compute) {
    const int64_t out = static_cast<int64_t>(w.size()) / in;
    const int64_t rows = static_cast<int64_t>(x.size()) / in;
    const WeightSource source = {w.data(), DType::kF32, out};
    const Weight weight = backend.PackWeight({&source, 1}, in, compute).value();
    std::vector<float> y(rows * out);
    EXPECT_OK(
        backend.Linear(Backend::kMainStream,
                       {.x = x.data(), .weight = weight.packed, .y = y.data(), .rows = rows}));
    return y;
  }
};
INSTANTIATE_TEST_SUITE_P(Isas, CpuBackendTest, ::testing::ValuesIn(SupportedIsas()),
                         [](const auto& info) { return std::string(Name(info.param)); });

TEST_P(CpuBackendTest, PrefersBf16WhereItHasTheInstructions) {
  ThreadPool pool(1);
  EXPECT_EQ(NewCpuBackend(pool, GetParam())->preferred_dtype(),
            GetParam() == Isa::kAvx512Bf16 ? DType::kBF16 : DType::kF32);
}

// Bit for bit: neither the number of threads nor the rows that come along change a row.
TEST_P(CpuBackendTest, ARowIsTheSameAloneAndInAnyCompany) {
  constexpr int64_t kIn = 700, kOut = 333, kRows = 260;
  const std::vector<float> w = RandomNormal(kIn * kOut, 1), x = RandomNormal(kIn * kRows, 2);
  ThreadPool one(1), four(4);
  const auto alone = NewCpuBackend(one, GetParam()), together = NewCpuBackend(four, GetParam());
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    const std::vector<float> all = Multiply(*together, w, x, kIn, compute);
    EXPECT_EQ(Multiply(*alone, w, x, kIn, compute), all);
    for (const int64_t rows : {1, 2, 3, 4, 6, 7, 11, 12, 13, 30}) {
      const std::vector<float> few(x.begin(), x.begin() + rows * kIn);
      const std::vector<float> y = Multiply(*together, w, few, kIn, compute);
      EXPECT_EQ(std::memcmp(y.data(), all.data(), y.size() * sizeof(float)), 0) << rows;
    }
  }
}

TEST_P(CpuBackendTest, ServesSeveralThreadsAtOnce) {
  constexpr int64_t kIn = 300, kOut = 200;
  const std::vector<float> w = RandomNormal(kIn * kOut, 1);
  ThreadPool pool(3);
  const auto backend = NewCpuBackend(pool, GetParam());
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      const std::vector<float> x = RandomNormal(kIn * (1 + 9 * caller), caller);
      const std::vector<float> first = Multiply(*backend, w, x, kIn, DType::kBF16);
      for (int i = 0; i < 10; ++i) {
        EXPECT_EQ(Multiply(*backend, w, x, kIn, DType::kBF16), first);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

TEST(SupportedIsasTest, StartsWithGenericAndAscends) {
  const std::vector<Isa> isas = SupportedIsas();
  EXPECT_EQ(isas.front(), Isa::kGeneric);
  EXPECT_TRUE(std::is_sorted(isas.begin(), isas.end()));
  EXPECT_EQ(Name(Isa::kAvx512Bf16), "avx512bf16");
}

}  // namespace
}  // namespace infllm::kernels
