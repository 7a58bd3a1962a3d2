// Block selection of every backend (Representatives, MeanQuery, TopK) against numbers worked out by
// hand and against the reference. ScoreBlocks has a suite of its own.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
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
using ::infllm::testing::ExpectNear;
using ::infllm::testing::RandomNormal;
using ::testing::ElementsAre;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// |got - want| <= bound (1 + |want|), for every element.
void ExpectClose(const std::vector<float>& got, const std::vector<float>& want, double bound) {
  ExpectNear(got, want, [&](size_t i) { return bound * (1 + std::abs(want[i])); });
}

class SelectContract : public testing::BackendTest {};
INSTANTIATE_TEST_SUITE_P(Backends, SelectContract, ::testing::ValuesIn(BackendsUnderTest()),
                         BackendName);

// ---- Representatives ----

// One KV head with keys (t, 10 t) but for a dip, two query heads. Head 0: tokens 1 and 3. Head 1: a
// tie of tokens 0, 2 and 3 for the second place behind token 1, which the earliest wins.
class RepresentativesByHand : public SelectContract {
 protected:
  std::vector<float> Of(RepresentativeKind kind) {
    const RepresentativeShape shape = ShapeOf(kind, /*q_heads=*/2, /*kv_heads=*/1);
    const DeviceArray<float> k(*backend_, {0, 0, 1, 10, 2, -20, 3, 30});
    const DeviceArray<float> mass(*backend_, {0.1f, 5, 0.2f, 4, -1, 7, 9, 7, 7, -1});
    const DeviceArray<float> out(*backend_, std::vector<float>(shape.rows() * 2));
    RepresentativeArgs args;
    args.kind = kind;
    args.k = k.data();
    args.out = out.data();
    args.head_stride = 8;
    args.block_tokens = 4;
    args.q_heads = 2;
    args.kv_heads = 1;
    args.head_dim = 2;
    if (kind != RepresentativeKind::kBounds) {
      args.mass = mass.data();
      args.mass_stride = 5;
      args.top = 2;
    }
    EXPECT_OK(backend_->Representatives(args));
    return out.Get();
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, RepresentativesByHand, ::testing::ValuesIn(BackendsUnderTest()),
                         BackendName);

TEST_P(RepresentativesByHand, MeanKeyIsTheMeanOfTheHeaviestKeys) {
  INFLLM_NEEDS_OP("Representatives");
  EXPECT_THAT(Of(RepresentativeKind::kMeanKey), ElementsAre(2, 20, 0.5f, 5));
}

TEST_P(RepresentativesByHand, BoundsAreOfEachChannelOverAllTokens) {
  INFLLM_NEEDS_OP("Representatives");
  EXPECT_THAT(Of(RepresentativeKind::kBounds), ElementsAre(0, -20, 3, 30));
}

TEST_P(SelectContract, RepresentativesEqualTheReference) {
  INFLLM_NEEDS_OP("Representatives");
  using Kind = RepresentativeKind;
  for (const Kind kind : {Kind::kMeanKey, Kind::kBounds}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      for (const int64_t dim : {1, 7, 8, 24, 64, 128, 136}) {
        for (const int64_t top : {1, 4, 37}) {
          const int64_t tokens = 37, q_heads = 6, kv_heads = 2, stride = (tokens + 2) * dim;
          const int64_t rows = ShapeOf(kind, q_heads, kv_heads).rows();
          const std::vector<float> keys = RandomNormal(kv_heads * stride, 1);
          std::vector<float> masses = RandomNormal(q_heads * (tokens + 3), 2);
          for (float& mass : masses) mass = std::round(mass * 4);  // many ties
          const auto run = [&](Backend& backend) {
            const DeviceElements k(backend, keys, dtype);
            const DeviceArray<float> mass(backend, masses);
            const DeviceArray<float> out(backend, std::vector<float>(rows * dim));
            RepresentativeArgs args;
            args.kind = kind;
            args.k = k.data();
            args.mass = mass.data();
            args.out = out.data();
            args.kv_dtype = dtype;
            args.head_stride = stride;
            args.mass_stride = tokens + 3;
            args.block_tokens = tokens;
            args.q_heads = q_heads;
            args.kv_heads = kv_heads;
            args.head_dim = dim;
            args.top = top;
            EXPECT_OK(backend.Representatives(args));
            return out.Get();
          };
          SCOPED_TRACE(::testing::Message() << static_cast<int>(kind) << " " << Name(dtype) << " "
                                            << dim << " top " << top);
          if (kind == Kind::kMeanKey) {
            ExpectClose(run(*backend_), run(*reference_), 1e-6);
          } else {
            EXPECT_EQ(run(*backend_), run(*reference_));
          }
        }
      }
    }
  }
}

// ---- MeanQuery ----

TEST_P(SelectContract, MeanQueryIsTheMeanOverTokens) {
  INFLLM_NEEDS_OP("MeanQuery");
  const DeviceArray<float> q(*backend_, {1, 2, 3, 4, 5, 7, 8, 9});
  const DeviceArray<float> out(*backend_, std::vector<float>(4));
  MeanQueryArgs args;
  args.q = q.data();
  args.out = out.data();
  args.tokens = args.q_heads = args.head_dim = 2;
  ASSERT_OK(backend_->MeanQuery(args));
  EXPECT_THAT(out.Get(), ElementsAre(3, 4.5f, 5.5f, 6.5f));
}

TEST_P(SelectContract, MeanQueryEqualsTheReference) {
  INFLLM_NEEDS_OP("MeanQuery");
  for (const int64_t tokens : {1, 2, 33, 512}) {
    for (const int64_t heads : {1, 5}) {
      for (const int64_t dim : {3, 8, 128, 200}) {
        const std::vector<float> values = RandomNormal(tokens * heads * dim, 3);
        const auto run = [&](Backend& backend) {
          const DeviceArray<float> q(backend, values);
          const DeviceArray<float> out(backend, std::vector<float>(heads * dim));
          EXPECT_OK(backend.MeanQuery({q.data(), out.data(), tokens, heads, dim}));
          return out.Get();
        };
        ExpectClose(run(*backend_), run(*reference_), 2e-6);
      }
    }
  }
}

// ---- TopK ----

std::vector<int64_t> Top(Backend& backend, const std::vector<float>& scores, int64_t k) {
  const auto n = static_cast<int64_t>(scores.size());
  const DeviceArray<float> data(backend, scores);
  std::vector<int64_t> best(static_cast<size_t>(std::min(n, k)));
  EXPECT_OK(backend.TopK(data.data(), n, k, best));
  return best;
}

TEST_P(SelectContract, TopKIsBestFirstWithTiesToTheSmallerIndex) {
  INFLLM_NEEDS_OP("TopK");
  EXPECT_THAT(Top(*backend_, {1, 3, 2, 3, -5, 3}, 4), ElementsAre(1, 3, 5, 2));
  EXPECT_THAT(Top(*backend_, {7, 7, 7}, 2), ElementsAre(0, 1));
  EXPECT_THAT(Top(*backend_, {0.0f, -0.0f, 0.0f}, 3), ElementsAre(0, 1, 2));
}

TEST_P(SelectContract, TopKOfFewerThanKIsAllOfThem) {
  INFLLM_NEEDS_OP("TopK");
  EXPECT_THAT(Top(*backend_, {1, 2}, 5), ElementsAre(1, 0));
  EXPECT_THAT(Top(*backend_, {}, 5), ElementsAre());
  EXPECT_THAT(Top(*backend_, {1, 2}, 0), ElementsAre());
}

TEST_P(SelectContract, TopKPutsNanBehindEverything) {
  INFLLM_NEEDS_OP("TopK");
  EXPECT_THAT(Top(*backend_, {kNan, -kInf, 1, kNan, kInf}, 5), ElementsAre(4, 2, 1, 0, 3));
  std::vector<float> scores(1000, kNan);
  scores[900] = -kInf;
  scores[950] = -7;
  EXPECT_THAT(Top(*backend_, scores, 3), ElementsAre(950, 900, 0));
}

TEST_P(SelectContract, TopKEqualsASort) {
  INFLLM_NEEDS_OP("TopK");
  std::mt19937 random(11);
  for (const int64_t n : {1, 15, 16, 17, 100, 1000, 20000}) {
    for (const int64_t k : {1, 2, 16, 96, 1000, 20000}) {
      std::vector<float> scores = RandomNormal(n, static_cast<uint32_t>(n + k));
      for (const int kind : {0, 1, 2, 3}) {
        if (kind == 1) std::sort(scores.begin(), scores.end());  // every score beats all before it
        if (kind == 2) std::reverse(scores.begin(), scores.end());
        if (kind == 3) {
          for (float& score : scores) score = static_cast<float>(random() % 5);
        }
        std::vector<int64_t> order(static_cast<size_t>(n));
        std::iota(order.begin(), order.end(), int64_t{0});
        std::stable_sort(order.begin(), order.end(),
                         [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
        order.resize(static_cast<size_t>(std::min(n, k)));
        ASSERT_EQ(Top(*backend_, scores, k), order) << n << " " << k << " " << kind;
      }
    }
  }
}

TEST_P(SelectContract, TopKOfMillions) {
  INFLLM_NEEDS_OP("TopK");
  std::vector<float> scores(3000000);
  std::minstd_rand random(12);
  for (float& score : scores) score = static_cast<float>(random() % 100000);
  EXPECT_EQ(Top(*backend_, scores, 96), Top(*reference_, scores, 96));
}

}  // namespace
}  // namespace infllm::kernels
