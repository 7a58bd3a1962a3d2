// The CUDA kernel against the reference backend. Skips, with the reason, where no device answers.
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/cuda_loader.h"
#include "tests/support/status_matchers.h"

namespace infllm::kernels {
namespace {

// Sums of up to 10^4 squares in fp32, in a tree of at least 32 leaves.
constexpr double kRelativeTolerance = 4e-6;

constexpr Stream kMain = Backend::kMainStream;

std::vector<float> Normal(int64_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(size);
  for (float& value : values) value = normal(random);
  return values;
}

class CudaRmsNorm : public ::testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<Backend>> cuda = NewCudaBackend();
    if (absl::IsUnavailable(cuda.status())) {
      GTEST_SKIP() << std::string(cuda.status().message());
    }
    ASSERT_OK(cuda);
    cuda_ = *std::move(cuda);
  }

  // Runs on `backend` with the data `offset` floats into its buffers, so that 16-byte alignment
  // can be broken. Guards behind y must survive.
  static std::vector<float> Run(Backend& backend, const std::vector<float>& x,
                                const std::vector<float>& weight, int64_t rows, int64_t width,
                                bool in_place, int64_t offset) {
    constexpr int64_t kGuards = 8;
    const int64_t size = rows * width;
    const auto upload = [&](const std::vector<float>& values, int64_t floats) {
      Buffer buffer = backend.Allocate(floats * sizeof(float)).value();
      EXPECT_OK(backend.Zero(kMain, buffer.data(), buffer.size_bytes()));
      EXPECT_OK(backend.Copy(kMain, buffer.as<float>() + offset, values.data(),
                             values.size() * sizeof(float)));
      return buffer;
    };
    const Buffer device_x = upload(x, size + offset + kGuards);
    const Buffer device_weight = upload(weight, width + offset);
    const Buffer device_y = upload({}, size + offset + kGuards);
    const Buffer& out = in_place ? device_x : device_y;
    EXPECT_OK(backend.RmsNorm(kMain, {.x = device_x.as<float>() + offset,
                                      .weight = device_weight.as<float>() + offset,
                                      .y = out.as<float>() + offset,
                                      .rows = rows,
                                      .width = width,
                                      .eps = 1e-5f}));
    std::vector<float> y(size + kGuards);
    EXPECT_OK(backend.Copy(kMain, y.data(), out.as<float>() + offset, y.size() * sizeof(float)));
    EXPECT_OK(backend.Synchronize(kMain));
    for (int64_t i = size; i < size + kGuards; ++i) EXPECT_EQ(y[i], 0.0f) << "guard " << i;
    y.resize(size);
    return y;
  }

  void ExpectLikeReference(int64_t rows, int64_t width, bool in_place = false, int64_t offset = 0) {
    SCOPED_TRACE(::testing::Message() << "rows " << rows << " width " << width << " in place "
                                      << in_place << " offset " << offset);
    const std::vector<float> x = Normal(rows * width, 1), weight = Normal(width, 2);
    const std::vector<float> want = Run(*reference_, x, weight, rows, width, in_place, offset);
    const std::vector<float> got = Run(*cuda_, x, weight, rows, width, in_place, offset);
    for (int64_t i = 0; i < rows * width; ++i) {
      ASSERT_NEAR(got[i], want[i], kRelativeTolerance * std::abs(want[i])) << "element " << i;
    }
  }

  const std::unique_ptr<Backend> reference_ = NewReferenceBackend();
  std::unique_ptr<Backend> cuda_;
};

TEST_F(CudaRmsNorm, AcceptsZeroRows) { ExpectLikeReference(0, 64); }

// Around a warp, a vector of four, the switch from a warp to a block per row, and beyond.
TEST_F(CudaRmsNorm, EqualsReferenceAtAnyWidth) {
  for (const int64_t width : {1,   2,    3,    4,    31,   32,   33,   63,   64,   127,  128,
                              129, 1000, 1023, 1024, 1025, 1028, 2047, 4096, 5120, 9999, 10000}) {
    ExpectLikeReference(3, width);
  }
}

// Around the rows of one block, and more rows than a GPU runs at once.
TEST_F(CudaRmsNorm, EqualsReferenceAtAnyNumberOfRows) {
  for (const int64_t rows : {1, 7, 8, 9, 255, 256, 257, 100001}) ExpectLikeReference(rows, 64);
  for (const int64_t rows : {1, 2, 1025}) ExpectLikeReference(rows, 4096);
}

TEST_F(CudaRmsNorm, WritesInPlace) {
  for (const int64_t width : {33, 64, 4096, 4099}) ExpectLikeReference(17, width, true);
}

TEST_F(CudaRmsNorm, TakesPointersThatForbidVectorLoads) {
  for (const int64_t width : {64, 4096}) ExpectLikeReference(5, width, false, 1);
}

TEST_F(CudaRmsNorm, RunsAfterAnEarlierCallFailed) {
  EXPECT_THAT(cuda_->Allocate(size_t{1} << 60),
              testing::StatusIs(absl::StatusCode::kResourceExhausted));
  ExpectLikeReference(3, 64);
}

}  // namespace
}  // namespace infllm::kernels
