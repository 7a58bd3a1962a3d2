// Backend::SelectBlocks with the codes of EncodeBounds: always what ScoreBlocks and TopK select,
// and of blocks that the codes rule out it reads nothing more.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/kernels/backends_under_test.h"
#include "tests/support/status_matchers.h"

namespace infllm::kernels {
namespace {

using ::infllm::testing::BackendName;
using ::infllm::testing::BackendsUnderTest;
using ::infllm::testing::DeviceArray;
using ::infllm::testing::DeviceElements;
using ::infllm::testing::RandomNormal;
using ::infllm::testing::Refused;
using ::infllm::testing::RunOp;
using ::infllm::testing::SharedArray;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kMax = std::numeric_limits<float>::max();
constexpr int64_t kQueryHeads = 4, kKvHeads = 2;

struct Selected {
  std::vector<int64_t> index;
  std::vector<uint32_t> score_bits;
  friend bool operator==(const Selected&, const Selected&) = default;
};
void PrintTo(const Selected& selected, std::ostream* os) {
  for (size_t i = 0; i < selected.index.size(); ++i) {
    *os << selected.index[i] << ": " << std::bit_cast<float>(selected.score_bits[i]) << "  ";
  }
}

// Bounds in chunks, coded as the memory store does it.
class Index {
 public:
  Index(Backend& backend, DType dtype, int64_t head_dim, const std::vector<float>& bounds,
        const std::vector<int64_t>& chunks)
      : backend_(backend), dtype_(dtype), head_dim_(head_dim) {
    auto at = bounds.begin();
    for (const int64_t blocks : chunks) {
      const int64_t runs = blocks / kRunBlocks;
      blocks_.push_back(blocks);
      data_.push_back(std::make_unique<DeviceElements>(
          backend, std::vector<float>(at, at + blocks * width()), dtype));
      at += blocks * width();
      codes_.push_back(std::make_unique<DeviceArray<uint8_t>>(
          backend, std::vector<uint8_t>(static_cast<size_t>(runs) * RunCodeBytes(width()) + 1)));
      EXPECT_OK(RunOp(backend, [&](Stream stream) {
        return backend.EncodeBounds(stream, {.bounds = data_.back()->data(),
                                             .runs = runs,
                                             .dtype = dtype,
                                             .kv_heads = kKvHeads,
                                             .head_dim = head_dim,
                                             .codes = codes(codes_.size() - 1)});
      }));
    }
    EXPECT_EQ(at, bounds.end());
  }

  // Of the first ends[i] blocks the ks[i] best by queries[i], all in one call.
  std::vector<Selected> Select(bool coded, const std::vector<std::vector<float>>& queries,
                               const std::vector<int64_t>& ends, const std::vector<int64_t>& ks) {
    const size_t count = queries.size();
    std::vector<std::unique_ptr<DeviceArray<float>>> query, scores;
    std::vector<std::unique_ptr<SharedArray<RepresentativeChunk>>> chunks;
    std::vector<std::unique_ptr<SharedArray<int64_t>>> index;
    std::vector<std::unique_ptr<SharedArray<float>>> score;
    std::vector<ScoreItem> score_items;
    std::vector<TopKItem> best_items;
    for (size_t i = 0; i < count; ++i) {
      std::vector<RepresentativeChunk> list;
      int64_t left = ends[i];
      for (size_t c = 0; left > 0; left -= list[c++].blocks) {
        list.push_back({data_[c]->data(), std::min(left, blocks_[c]), coded ? codes(c) : nullptr});
      }
      const auto wanted = static_cast<size_t>(std::min(ks[i], ends[i]));
      query.push_back(std::make_unique<DeviceArray<float>>(backend_, queries[i]));
      scores.push_back(std::make_unique<DeviceArray<float>>(
          backend_, std::vector<float>(static_cast<size_t>(ends[i]))));
      chunks.push_back(std::make_unique<SharedArray<RepresentativeChunk>>(backend_, list));
      index.push_back(
          std::make_unique<SharedArray<int64_t>>(backend_, std::vector<int64_t>(wanted, -1)));
      score.push_back(
          std::make_unique<SharedArray<float>>(backend_, std::vector<float>(wanted, -1.0f)));
      score_items.push_back({query[i]->data(), chunks[i]->data(), static_cast<int64_t>(list.size()),
                             scores[i]->data()});
      best_items.push_back({scores[i]->data(), ends[i], ks[i], index[i]->data(), score[i]->data()});
    }
    const SharedArray<ScoreItem> score_list(backend_, score_items);
    const SharedArray<TopKItem> best_list(backend_, best_items);
    SelectBlocksArgs args;
    args.score.items = score_list.data();
    args.score.count = args.best.count = static_cast<int64_t>(count);
    args.score.dtype = dtype_;
    args.score.q_heads = kQueryHeads;
    args.score.kv_heads = kKvHeads;
    args.score.head_dim = head_dim_;
    args.best.items = best_list.data();
    EXPECT_OK(RunOp(backend_, [&](Stream stream) -> absl::Status {
      if (coded) return backend_.SelectBlocks(stream, args);
      const absl::Status status = backend_.ScoreBlocks(stream, args.score);
      return status.ok() ? backend_.TopK(stream, args.best) : status;
    }));
    std::vector<Selected> selected(count);
    for (size_t i = 0; i < count; ++i) {
      for (int64_t j = 0; j < std::min(ks[i], ends[i]); ++j) {
        selected[i].index.push_back(index[i]->data()[j]);
        selected[i].score_bits.push_back(std::bit_cast<uint32_t>(score[i]->data()[j]));
      }
    }
    return selected;
  }

  DeviceElements& data(size_t chunk) { return *data_[chunk]; }
  int64_t width() const { return 2 * kKvHeads * head_dim_; }

 private:
  std::byte* codes(size_t chunk) { return reinterpret_cast<std::byte*>(codes_[chunk]->data()); }

  Backend& backend_;
  const DType dtype_;
  const int64_t head_dim_;
  std::vector<int64_t> blocks_;
  std::vector<std::unique_ptr<DeviceElements>> data_;
  std::vector<std::unique_ptr<DeviceArray<uint8_t>>> codes_;
};

class SelectBlocksContract : public testing::BackendTest {};
INSTANTIATE_TEST_SUITE_P(Backends, SelectBlocksContract, ::testing::ValuesIn(BackendsUnderTest()),
                         BackendName);

// value(block, element) made into bounds.
std::vector<float> Bounds(int64_t blocks, int64_t head_dim,
                          const std::function<float(int64_t, int64_t)>& value) {
  const int64_t width = 2 * kKvHeads * head_dim, slot = width / 2;
  std::vector<float> bounds(static_cast<size_t>(blocks * width));
  for (int64_t b = 0; b < blocks; ++b) {
    float* const row = bounds.data() + b * width;
    for (int64_t i = 0; i < width; ++i) row[i] = value(b, i);
    for (int64_t i = 0; i < slot; ++i) {
      if (row[i] > row[i + slot]) std::swap(row[i], row[i + slot]);
    }
  }
  return bounds;
}

// Long enough for codes; runs that are whole, cut and shorter than one.
const std::vector<int64_t> kChunks = {40, 300, 1030, 256, 4900};
constexpr int64_t kBlocks = 40 + 300 + 1030 + 256 + 4900;

TEST_P(SelectBlocksContract, SelectsWhatTheBestOfAllScoresAre) {
  INFLLM_NEEDS_OP("SelectBlocks");
  struct Case {
    const char* name;
    std::function<float(int64_t, int64_t, float)> value;  // of block, element, a normal number
  };
  const auto sign = [](int64_t b, int64_t i) { return (b * 31 + i * 17) % 5 < 2 ? -1.0f : 1.0f; };
  const std::vector<Case> cases = {
      {"normal", [](int64_t, int64_t, float x) { return x; }},
      {"ties", [](int64_t, int64_t, float x) { return x > 1    ? 1.0f
                                                      : x < -1 ? -1.0f
                                                               : 0.0f; }},
      {"equal runs", [](int64_t b, int64_t i, float) { return static_cast<float>(i + b / 512); }},
      {"all equal", [](int64_t, int64_t, float) { return 0.5f; }},
      {"zeros of both signs", [&](int64_t b, int64_t i, float) { return sign(b, i) * 0.0f; }},
      {"scales of channels",
       [](int64_t, int64_t i, float x) { return std::ldexp(x, static_cast<int>(i % 61) - 30); }},
      {"scales of blocks",
       [](int64_t b, int64_t, float x) { return std::ldexp(x, static_cast<int>(b % 81) - 40); }},
      {"far from zero", [](int64_t, int64_t, float x) { return 1e6f + x; }},
      {"subnormal", [](int64_t, int64_t, float x) { return x * 1e-39f; }},
      {"sums overflow", [&](int64_t b, int64_t i, float) { return sign(b, i) * 0.9f * kMax; }},
      {"some infinite",
       [](int64_t b, int64_t i, float x) {
         return b % 700 == 3 && i % 9 == 1 ? std::copysign(kInf, x) : x;
       }},
      {"some NaN",
       [](int64_t b, int64_t i, float x) { return b % 900 == 7 && i % 9 == 1 ? kNan : x; }},
  };
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t dim : {3, 20}) {
      const std::vector<float> normal = RandomNormal(kBlocks * 2 * kKvHeads * dim, 1);
      for (const Case& c : cases) {
        SCOPED_TRACE(::testing::Message() << c.name << ", " << Name(dtype) << ", dim " << dim);
        const auto value = [&](int64_t b, int64_t i) {
          return c.value(b, i, normal[static_cast<size_t>(b * 2 * kKvHeads * dim + i)]);
        };
        Index index(*backend_, dtype, dim, Bounds(kBlocks, dim, value), kChunks);
        std::vector<std::vector<float>> queries;
        const auto add = [&](float factor) {
          queries.push_back(RandomNormal(kQueryHeads * dim, static_cast<uint32_t>(queries.size())));
          for (float& q : queries.back()) q *= factor;
        };
        for (const float factor : {1.0f, 0.0f, 1e-39f, 1e-30f, 1e30f, 0.1f * kMax}) add(factor);
        add(1), queries.back()[1] = kNan;
        add(1), queries.back()[2] = -kInf;
        for (size_t q = 0; q < 4; ++q) {  // one channel each
          queries.push_back(std::vector<float>(static_cast<size_t>(kQueryHeads * dim)));
          queries.back()[q * static_cast<size_t>(dim)] = q % 2 == 0 ? 2.0f : -3.0f;
        }
        std::vector<int64_t> ends(queries.size(), kBlocks), ks(queries.size(), 24);
        EXPECT_EQ(index.Select(true, queries, ends, ks), index.Select(false, queries, ends, ks));
      }
    }
  }
}

TEST_P(SelectBlocksContract, OfAnyNumberOfBlocksAndAnyK) {
  INFLLM_NEEDS_OP("SelectBlocks");
  constexpr int64_t kDim = 8;
  const std::vector<float> normal = RandomNormal(kBlocks * 2 * kKvHeads * kDim, 2);
  Index index(*backend_, DType::kBF16, kDim,
              Bounds(kBlocks, kDim,
                     [&](int64_t b, int64_t i) {
                       return normal[static_cast<size_t>(b * 2 * kKvHeads * kDim + i)];
                     }),
              kChunks);
  std::vector<std::vector<float>> queries;
  std::vector<int64_t> ends, ks;
  for (const int64_t end : {kBlocks, kBlocks - 1, kBlocks - 200, kBlocks - 1000, int64_t{4600},
                            int64_t{1200}, int64_t{39}, int64_t{0}}) {
    for (const int64_t k : {int64_t{0}, int64_t{1}, int64_t{48}, int64_t{300}, end, end + 7}) {
      queries.push_back(
          RandomNormal(kQueryHeads * kDim, 100 + static_cast<uint32_t>(queries.size())));
      ends.push_back(end);
      ks.push_back(k);
    }
  }
  const std::vector<Selected> want = index.Select(false, queries, ends, ks);
  EXPECT_EQ(index.Select(true, queries, ends, ks), want);
  for (size_t i = 0; i < queries.size(); i += 7) {
    EXPECT_EQ(index.Select(true, {queries[i]}, {ends[i]}, {ks[i]})[0], want[i]) << "alone, " << i;
  }
}

// Representatives that would win are put where codes say that blocks are bad: nobody looks.
TEST_P(SelectBlocksContract, ReadsNothingOfWhatCodesRuleOut) {
  INFLLM_NEEDS_OP("SelectBlocks");
  if (!backend_->name().starts_with("cpu")) GTEST_SKIP() << "scores every block";
  constexpr int64_t kDim = 16, kRuns = 20, kWidth = 2 * kKvHeads * kDim;
  const std::vector<float> normal = RandomNormal(kRuns * kRunBlocks * kWidth, 3);
  const auto good = [](int64_t b) { return b / kRunBlocks % 4 == 2; };
  const auto value = [&](int64_t b, int64_t i) {
    return normal[static_cast<size_t>(b * kWidth + i)] +
           (i >= kWidth / 2 && good(b) ? 40.0f : 0.0f);
  };
  std::vector<float> bounds = Bounds(kRuns * kRunBlocks, kDim, value);
  Index index(*backend_, DType::kF32, kDim, bounds, {kRuns * kRunBlocks});
  std::vector<float> query = RandomNormal(kQueryHeads * kDim, 4);
  for (float& q : query) q = std::abs(q);
  const auto want = index.Select(false, {query}, {kRuns * kRunBlocks}, {40});
  auto* const data = reinterpret_cast<float*>(index.data(0).data());
  for (int64_t b = 0; b < kRuns * kRunBlocks; ++b) {
    if (!good(b)) std::fill_n(data + b * kWidth, kWidth, 1000.0f);
  }
  EXPECT_NE(index.Select(false, {query}, {kRuns * kRunBlocks}, {40}), want);
  EXPECT_EQ(index.Select(true, {query}, {kRuns * kRunBlocks}, {40}), want);
}

TEST_P(SelectBlocksContract, Refuses) {
  INFLLM_NEEDS_OP("SelectBlocks");
  const auto encode = [&](auto change) {
    EncodeBoundsArgs args{.kv_heads = 1, .head_dim = 4};
    change(args);
    return RunOp(*backend_, [&](Stream stream) { return backend_->EncodeBounds(stream, args); });
  };
  EXPECT_OK(encode([](auto&) {}));  // of no runs
  EXPECT_THAT(encode([](auto& a) { a.runs = -1; }), Refused("EncodeBounds", "runs is -1"));
  EXPECT_THAT(encode([](auto& a) { a.runs = 1; }), Refused("EncodeBounds", "bounds is null"));
  EXPECT_THAT(encode([](auto& a) { a.kv_heads = 0; }), Refused("EncodeBounds", "kv_heads is 0"));
  EXPECT_THAT(encode([](auto& a) { a.head_dim = 0; }), Refused("EncodeBounds", "head_dim is 0"));
  EXPECT_THAT(encode([](auto& a) { a.dtype = DType::kF16; }),
              Refused("EncodeBounds", "dtype is f16"));
  float number = 0, other = 0;
  int64_t index = 0;
  const RepresentativeChunk chunk{&number, 1};
  const ScoreItem score{&number, &chunk, 1, &number};
  TopKItem best{&number, 1, 1, &index, &other};
  const auto select = [&](auto change) {
    SelectBlocksArgs args;
    args.score.q_heads = args.score.kv_heads = args.score.head_dim = 1;
    change(args);
    return RunOp(*backend_, [&](Stream stream) { return backend_->SelectBlocks(stream, args); });
  };
  const auto one = [&](SelectBlocksArgs& a) {
    a.score.items = &score, a.best.items = &best, a.score.count = a.best.count = 1;
  };
  EXPECT_OK(select([](auto&) {}));  // of no items
  EXPECT_THAT(select([&](auto& a) { one(a), a.best.count = 0; }),
              Refused("SelectBlocks", "best.count is 0, must be score.count = 1"));
  EXPECT_THAT(select([&](auto& a) { one(a), a.score.q_heads = 0; }),
              Refused("ScoreBlocks", "q_heads is 0"));
  if (!backend_->host_accessible()) return;
  best.n = 2;
  EXPECT_THAT(select(one), Refused("SelectBlocks", "best.item.n is 2"));
  best.n = 1;
  best.scores = &other;
  EXPECT_THAT(select(one), Refused("SelectBlocks", "best.item.scores"));
}

}  // namespace
}  // namespace infllm::kernels
