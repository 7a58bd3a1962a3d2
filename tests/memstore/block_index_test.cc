#include "memstore/block_index.h"

#include <algorithm>
#include <array>
#include <bit>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/memstore/device_double.h"
#include "tests/memstore/test_blocks.h"
#include "tests/support/status_matchers.h"

namespace infllm::memstore {
namespace {

using ::infllm::testing::IsOk;
using ::infllm::testing::StatusIs;
using kernels::DType;
using kernels::RepresentativeKind;
using ::testing::HasSubstr;

constexpr kernels::Stream kStream = kernels::Backend::kMainStream;

MATCHER_P(IsOkAndHolds, expected, "") { return arg.ok() && *arg == expected; }

using MakeBackend = std::unique_ptr<kernels::Backend> (*)();

class BlockIndexTest
    : public ::testing::TestWithParam<std::tuple<MakeBackend, DType, RepresentativeKind>> {
 protected:
  Geometry Shape(int32_t q_heads, int32_t kv_heads, int32_t head_dim) const {
    Geometry shape = kGeometry;
    shape.q_heads = q_heads;
    shape.kv_heads = kv_heads;
    shape.head_dim = head_dim;
    shape.dtype = std::get<1>(GetParam());
    shape.representative = std::get<2>(GetParam());
    return shape;
  }
  BlockIndex NewIndex(const Geometry& shape) {
    return BlockIndex(*backend_, kStream, shape, allocated_);
  }
  // All representatives as they are kept.
  std::vector<std::byte> Kept(const IndexView& view, const Geometry& shape) {
    const size_t block_bytes = shape.representative_floats() * kernels::SizeOf(shape.dtype);
    std::vector<std::byte> kept(static_cast<size_t>(view.blocks) * block_bytes);
    size_t at = 0;
    for (const kernels::RepresentativeChunk& chunk : view.chunks) {
      const size_t bytes = static_cast<size_t>(chunk.blocks) * block_bytes;
      EXPECT_OK(backend_->Copy(kStream, kept.data() + at, chunk.data, bytes));
      at += bytes;
    }
    EXPECT_EQ(at, kept.size());
    EXPECT_OK(backend_->Synchronize(kStream));
    return kept;
  }

  const std::unique_ptr<kernels::Backend> backend_ = std::get<0>(GetParam())();
  std::atomic<int64_t> allocated_ = 0;
};

std::vector<std::byte> InDtype(std::span<const float> values, DType dtype) {
  std::vector<std::byte> bytes;
  for (const float value : values) {
    const auto bits = std::bit_cast<std::array<std::byte, 4>>(value);
    const auto rounded = std::bit_cast<std::array<std::byte, 2>>(kernels::BF16(value));
    if (dtype == DType::kF32) bytes.insert(bytes.end(), bits.begin(), bits.end());
    if (dtype == DType::kBF16) bytes.insert(bytes.end(), rounded.begin(), rounded.end());
  }
  return bytes;
}

std::unique_ptr<kernels::Backend> Reference() { return kernels::NewReferenceBackend(); }
std::unique_ptr<kernels::Backend> Device() { return std::make_unique<DeviceDouble>(); }
std::string ParamName(const ::testing::TestParamInfo<BlockIndexTest::ParamType>& info) {
  const auto [make, dtype, kind] = info.param;
  return absl::StrCat(make == &Device ? "device_" : "host_",
                      dtype == DType::kF32 ? "f32_" : "bf16_",
                      kind == RepresentativeKind::kBounds ? "bounds" : "mean_key");
}
INSTANTIATE_TEST_SUITE_P(All, BlockIndexTest,
                         ::testing::Combine(::testing::Values(&Reference, &Device),
                                            ::testing::Values(DType::kF32, DType::kBF16),
                                            ::testing::Values(RepresentativeKind::kMeanKey,
                                                              RepresentativeKind::kBounds)),
                         ParamName);

TEST_P(BlockIndexTest, AViewHasAllRepresentativesInTheirDtype) {
  const Geometry shape = Shape(6, 2, 20);
  BlockIndex index = NewIndex(shape);
  EXPECT_EQ(index.View().blocks, 0);
  std::vector<float> all;
  for (const int64_t count : {1, 7, 8, 1, 30, 200}) {
    const std::vector<float> added =
        WideRepresentatives(static_cast<uint64_t>(index.size()), count, shape);
    ASSERT_OK(index.Add(added));
    all.insert(all.end(), added.begin(), added.end());
    const IndexView view = index.View();
    EXPECT_EQ(view.blocks, index.size());
    ASSERT_EQ(Kept(view, shape), InDtype(all, shape.dtype));
  }
}

TEST_P(BlockIndexTest, AViewStaysAsItIs) {
  const Geometry shape = Shape(2, 1, 4);
  IndexView view;
  const std::vector<float> first = WideRepresentatives(1, 5, shape);  // leaves room in its chunk
  {
    BlockIndex index = NewIndex(shape);
    ASSERT_OK(index.Add(first));
    view = index.View();
    ASSERT_OK(index.Add(WideRepresentatives(2, 100, shape)));
    EXPECT_EQ(view.blocks, 5);
    EXPECT_EQ(index.View().chunks[0].data, view.chunks[0].data) << "what stays is shared";
  }
  EXPECT_GT(allocated_, 0);
  EXPECT_EQ(Kept(view, shape), InDtype(first, shape.dtype)) << "though the index has gone";
  view = {};
  EXPECT_EQ(allocated_, 0);
}

TEST_P(BlockIndexTest, ForksShareThePastAndGrowApart) {
  const Geometry shape = Shape(4, 2, 8);
  auto root = std::make_optional(NewIndex(shape));
  const auto blocks = [&](int64_t first, int64_t count, int64_t flavour) {
    return Representatives(0, first, count, flavour, shape);
  };
  ASSERT_OK(root->Add(blocks(0, 21, 0)));
  const int64_t before = allocated_;
  auto fork = std::make_optional(root->Fork(root->size()));
  auto second = std::make_optional(fork->Fork(fork->size()));
  EXPECT_EQ(allocated_, before) << "a fork copies nothing";
  EXPECT_EQ(fork->View().chunks[0].data, root->View().chunks[0].data);
  ASSERT_OK(root->Add(blocks(21, 5, 1)));
  ASSERT_OK(fork->Add(blocks(21, 40, 2)));
  ASSERT_OK(second->Add(blocks(21, 1, 3)));
  ASSERT_OK(root->Add(blocks(26, 30, 1)));

  const auto expect = [&](const BlockIndex& index, int64_t size, int64_t flavour) {
    ASSERT_EQ(index.size(), size);
    std::vector<float> all = blocks(0, 21, 0);
    const std::vector<float> own = blocks(21, size - 21, flavour);
    all.insert(all.end(), own.begin(), own.end());
    ASSERT_EQ(Kept(index.View(), shape), InDtype(all, shape.dtype));
    const size_t floats = shape.representative_floats();
    for (int64_t i = 0; i < size; ++i) {
      ASSERT_OK_AND_ASSIGN(const bool same,
                           index.Holds(i, std::span(all).subspan(i * floats, floats)));
      EXPECT_TRUE(same) << i;
    }
  };
  expect(*root, 56, 1);
  expect(*fork, 61, 2);
  root.reset();
  expect(*second, 22, 3);
  expect(*fork, 61, 2);
  fork.reset();
  second.reset();
  EXPECT_EQ(allocated_, 0);
}

TEST_P(BlockIndexTest, HoldsComparesAsKept) {
  const Geometry shape = Shape(2, 1, 4);
  BlockIndex index = NewIndex(shape);
  const size_t floats = shape.representative_floats();
  // To nearest even: 1 + 2^-8 lies half way to 1 + 2^-7, 1 + 3 * 2^-8 half way to 1 + 2^-6.
  std::vector<float> first(floats, 1.00390625f), last(floats, 1.01171875f);
  ASSERT_OK(index.Add(std::vector<float>(9 * floats, 7.0f)));  // more than a chunk
  ASSERT_OK(index.Add(first));
  ASSERT_OK(index.Add(last));
  EXPECT_THAT(index.Holds(9, first), IsOkAndHolds(true));
  EXPECT_THAT(index.Holds(10, last), IsOkAndHolds(true));
  const bool rounds = shape.dtype == DType::kBF16;
  EXPECT_THAT(index.Holds(9, std::vector<float>(floats, 1.0f)), IsOkAndHolds(rounds));
  EXPECT_THAT(index.Holds(10, std::vector<float>(floats, 1.015625f)), IsOkAndHolds(rounds));
  EXPECT_THAT(index.Holds(9, std::vector<float>(floats, 1.0078125f)), IsOkAndHolds(false));
  EXPECT_THAT(index.Holds(9, last), IsOkAndHolds(false));
  last.back() = -last.back();
  EXPECT_THAT(index.Holds(10, last), IsOkAndHolds(false)) << "to the last value";
  EXPECT_THAT(index.Holds(9, std::span(first).first(floats - 1)), IsOkAndHolds(false))
      << "of another shape";
}

TEST_P(BlockIndexTest, MemoryIsThatOfTheDtype) {
  const Geometry shape = Shape(4, 2, 8);
  BlockIndex index = NewIndex(shape);
  EXPECT_EQ(index.size_bytes(), 0u);
  ASSERT_OK(index.Add(Representatives(0, 0, 64, 0, shape)));
  const size_t bytes = 64 * shape.representative_floats() * kernels::SizeOf(shape.dtype);
  EXPECT_EQ(index.size_bytes(), bytes);
  EXPECT_EQ(static_cast<size_t>(allocated_), bytes) << "a first chunk holds what it was made for";
}

TEST_P(BlockIndexTest, RepresentativesLargerThanAChunkAreKept) {
  const Geometry shape = Shape(1024, 1024, 1024);  // bounds: 8 MiB as fp32
  BlockIndex index = NewIndex(shape);
  std::vector<float> one(shape.representative_floats(), 1.0f);
  ASSERT_OK(index.Add(one));
  EXPECT_EQ(static_cast<size_t>(allocated_), std::max<size_t>(index.size_bytes(), 4 << 20));
  one.back() = 2;
  ASSERT_OK(index.Add(one));
  EXPECT_THAT(index.Holds(1, one), IsOkAndHolds(true));
  EXPECT_THAT(index.Holds(0, one), IsOkAndHolds(false));
}

TEST_P(BlockIndexTest, WrongSizesAreRefused) {
  const Geometry shape = Shape(2, 2, 8);
  BlockIndex index = NewIndex(shape);
  EXPECT_THAT(index.Add(std::vector<float>(shape.representative_floats() + 1)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("slots * heads")));
  EXPECT_EQ(index.size(), 0);
}

}  // namespace
}  // namespace infllm::memstore
