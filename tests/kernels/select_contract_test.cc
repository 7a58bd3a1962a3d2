// Block selection of every backend (Representatives, MeanQueries, TopK, LookUpBlocks) against
// numbers worked out by hand and against the reference. ScoreBlocks has a suite of its own.
#include <algorithm>
#include <cmath>
#include <cstring>
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
using ::infllm::testing::Refused;
using ::infllm::testing::RunOp;
using ::infllm::testing::SharedArray;
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using Kind = RepresentativeKind;

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

struct RepresentativesProblem {
  Kind kind = Kind::kBounds;
  int64_t q_heads = 1;
  PageShape page;
  int64_t top = 0;
  RepresentativeShape shape() const { return ShapeOf(kind, q_heads, page.kv_heads); }
};

// Of pages[i] with masses[i].
std::vector<std::vector<float>> Representatives(Backend& backend,
                                                const RepresentativesProblem& problem,
                                                const std::vector<std::vector<float>>& pages,
                                                const std::vector<std::vector<float>>& masses) {
  std::vector<std::unique_ptr<DeviceElements>> data;
  std::vector<std::unique_ptr<DeviceArray<float>>> mass, out;
  std::vector<RepresentativeItem> items;
  for (size_t i = 0; i < pages.size(); ++i) {
    data.push_back(std::make_unique<DeviceElements>(backend, pages[i], problem.page.dtype));
    mass.push_back(std::make_unique<DeviceArray<float>>(backend, masses[i]));
    out.push_back(std::make_unique<DeviceArray<float>>(
        backend,
        std::vector<float>(static_cast<size_t>(problem.shape().rows() * problem.page.head_dim))));
    items.push_back({reinterpret_cast<const std::byte*>(data.back()->data()),
                     problem.kind == Kind::kBounds ? nullptr : mass.back()->data(),
                     out.back()->data()});
  }
  const SharedArray<RepresentativeItem> list(backend, items);
  RepresentativesArgs args;
  args.items = list.data();
  args.count = static_cast<int64_t>(items.size());
  args.kind = problem.kind;
  args.q_heads = problem.q_heads;
  args.page = problem.page;
  args.top = problem.top;
  EXPECT_OK(RunOp(backend, [&](Stream stream) { return backend.Representatives(stream, args); }));
  std::vector<std::vector<float>> got;
  for (const auto& array : out) got.push_back(array->Get());
  return got;
}

// One KV head with keys (t, 10 t) but for a dip, two query heads. Head 0: tokens 1 and 3. Head 1: a
// tie of tokens 0, 2 and 3 for the second place behind token 1, which the earliest wins.
class RepresentativesByHand : public SelectContract {
 protected:
  std::vector<float> Of(Kind kind) {
    const RepresentativesProblem problem{.kind = kind,
                                         .q_heads = 2,
                                         .page = {.kv_heads = 1, .head_dim = 2, .page_tokens = 4},
                                         .top = 2};
    const std::vector<float> keys_then_values = {0, 0, 1, 10, 2, -20, 3,  30,
                                                 9, 9, 9, 9,  9, 9,   99, 99};
    return Representatives(*backend_, problem, {keys_then_values},
                           {{0.1f, 5, 0.2f, 4, 7, 9, 7, 7}})[0];
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, RepresentativesByHand, ::testing::ValuesIn(BackendsUnderTest()),
                         BackendName);

TEST_P(RepresentativesByHand, MeanKeyIsTheMeanOfTheHeaviestKeys) {
  INFLLM_NEEDS_OP("Representatives");
  EXPECT_THAT(Of(Kind::kMeanKey), ElementsAre(2, 20, 0.5f, 5));
}

TEST_P(RepresentativesByHand, BoundsAreOfEachChannelOverAllTokens) {
  INFLLM_NEEDS_OP("Representatives");
  EXPECT_THAT(Of(Kind::kBounds), ElementsAre(0, -20, 3, 30));
}

TEST_P(SelectContract, RepresentativesEqualTheReferenceAndThoseOfEachPageAlone) {
  INFLLM_NEEDS_OP("Representatives");
  constexpr int64_t kTokens = 37, kQueryHeads = 6, kKvHeads = 2, kPages = 30;
  for (const Kind kind : {Kind::kMeanKey, Kind::kBounds}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      for (const int64_t dim : {1, 7, 24, 64, 136}) {
        for (const int64_t top : {1, 4, 37}) {
          const RepresentativesProblem problem{.kind = kind,
                                               .q_heads = kQueryHeads,
                                               .page = {.kv_heads = kKvHeads,
                                                        .head_dim = dim,
                                                        .page_tokens = kTokens,
                                                        .dtype = dtype},
                                               .top = top};
          std::vector<std::vector<float>> pages, masses;
          for (uint32_t i = 0; i < kPages; ++i) {
            pages.push_back(RandomNormal(2 * kKvHeads * kTokens * dim, i));
            masses.push_back(RandomNormal(kQueryHeads * kTokens, 100 + i));
            for (float& mass : masses.back()) mass = std::round(mass * 4);  // many ties
          }
          SCOPED_TRACE(::testing::Message() << static_cast<int>(kind) << " " << Name(dtype) << " "
                                            << dim << " top " << top);
          const auto got = Representatives(*backend_, problem, pages, masses);
          const auto want = Representatives(*reference_, problem, pages, masses);
          for (size_t i = 0; i < kPages; ++i) {
            ExpectClose(got[i], want[i], kind == Kind::kMeanKey ? 1e-6 : 0);
          }
          EXPECT_EQ(Representatives(*backend_, problem, {pages[7]}, {masses[7]})[0], got[7]);
        }
      }
    }
  }
}

TEST_P(SelectContract, RepresentativesRefuse) {
  INFLLM_NEEDS_OP("Representatives");
  const auto run = [&](auto change) {
    RepresentativesArgs args;
    args.q_heads = 4;
    args.page = {.kv_heads = 2, .head_dim = 2, .page_tokens = 4};
    args.kind = Kind::kMeanKey;
    args.top = 2;
    change(args);
    return RunOp(*backend_, [&](Stream stream) { return backend_->Representatives(stream, args); });
  };
  EXPECT_OK(run([](auto&) {}));  // of no pages
  const char* op = "Representatives";
  EXPECT_THAT(run([](auto& a) { a.kind = static_cast<Kind>(9); }), Refused(op, "kind is 9"));
  EXPECT_THAT(run([](auto& a) { a.page.dtype = DType::kF16; }), Refused(op, "dtype is f16"));
  EXPECT_THAT(run([](auto& a) { a.page.kv_heads = 0; }), Refused(op, "kv_heads is 0"));
  EXPECT_THAT(run([](auto& a) { a.q_heads = 3; }),
              Refused(op, "q_heads is 3, must be a multiple of page.kv_heads = 2"));
  EXPECT_THAT(run([](auto& a) { a.top = 5; }),
              Refused(op, "top is 5, must be at most page.page_tokens = 4"));
  EXPECT_THAT(run([](auto& a) { a.top = 0; }), Refused(op, "top is 0"));
  EXPECT_THAT(run([](auto& a) { a.count = -1; }), Refused(op, "count is -1"));
  EXPECT_THAT(run([](auto& a) { a.count = 1; }), Refused(op, "items is null"));
  EXPECT_OK(run([](auto& a) { a.kind = Kind::kBounds, a.top = 0; }));
  if (!backend_->host_accessible()) return;
  std::byte page{};
  float number = 0;
  const RepresentativeItem items[] = {
      {nullptr, &number, &number}, {&page, nullptr, &number}, {&page, &number, nullptr}};
  EXPECT_THAT(run([&](auto& a) { a.items = items, a.count = 1; }), Refused(op, "page is null"));
  EXPECT_THAT(run([&](auto& a) { a.items = items + 1, a.count = 1; }), Refused(op, "mass is null"));
  EXPECT_THAT(run([&](auto& a) { a.items = items + 2, a.count = 1; }), Refused(op, "out is null"));
}

// ---- MeanQueries ----

std::vector<float> MeanQueries(Backend& backend, const std::vector<float>& rows, int64_t heads,
                               int64_t dim, const std::vector<RowRange>& ranges) {
  const DeviceArray<float> q(backend, rows);
  const SharedArray<RowRange> list(backend, ranges);
  const auto count = static_cast<int64_t>(ranges.size());
  const DeviceArray<float> out(backend, std::vector<float>(count * heads * dim, -1.0f));
  EXPECT_OK(RunOp(backend, [&](Stream stream) {
    return backend.MeanQueries(stream, {q.data(), list.data(), count, out.data(), heads, dim});
  }));
  return out.Get();
}

TEST_P(SelectContract, MeanQueriesAreTheMeansOverRows) {
  INFLLM_NEEDS_OP("MeanQueries");
  EXPECT_THAT(MeanQueries(*backend_, {1, 2, 3, 4, 5, 7, 8, 9}, 2, 2, {{0, 2}, {1, 1}}),
              ElementsAre(3, 4.5f, 5.5f, 6.5f, 5, 7, 8, 9));
  EXPECT_THAT(MeanQueries(*backend_, {}, 2, 2, {}), ElementsAre());
}

TEST_P(SelectContract, MeanQueriesEqualTheReferenceAndThoseOfEachRangeAlone) {
  INFLLM_NEEDS_OP("MeanQueries");
  const std::vector<RowRange> ranges = {{0, 1}, {1, 2}, {3, 33}, {36, 512}, {0, 548}, {547, 1}};
  for (const int64_t heads : {1, 5}) {
    for (const int64_t dim : {3, 8, 128, 200}) {
      const std::vector<float> rows = RandomNormal(548 * heads * dim, 3);
      const std::vector<float> got = MeanQueries(*backend_, rows, heads, dim, ranges);
      ExpectClose(got, MeanQueries(*reference_, rows, heads, dim, ranges), 2e-6);
      for (size_t i = 0; i < ranges.size(); ++i) {
        const auto at = got.begin() + static_cast<int64_t>(i) * heads * dim;
        EXPECT_EQ(MeanQueries(*backend_, rows, heads, dim, {ranges[i]}),
                  std::vector<float>(at, at + heads * dim));
      }
    }
  }
}

TEST_P(SelectContract, MeanQueriesRefuse) {
  INFLLM_NEEDS_OP("MeanQueries");
  const SharedArray<RowRange> ranges(*backend_, {{0, 0}});
  const DeviceArray<float> q(*backend_, {1, 2});
  const auto run = [&](auto change) {
    MeanQueriesArgs args{q.data(), ranges.data(), 1, q.data(), 1, 2};
    change(args);
    return RunOp(*backend_, [&](Stream stream) { return backend_->MeanQueries(stream, args); });
  };
  const char* op = "MeanQueries";
  EXPECT_THAT(run([](auto& a) { a.count = -1; }), Refused(op, "count is -1"));
  EXPECT_THAT(run([](auto& a) { a.q_heads = 0; }), Refused(op, "q_heads is 0"));
  EXPECT_THAT(run([](auto& a) { a.head_dim = 0; }), Refused(op, "head_dim is 0"));
  EXPECT_THAT(run([](auto& a) { a.q = nullptr; }), Refused(op, "q is null"));
  EXPECT_THAT(run([](auto& a) { a.ranges = nullptr; }), Refused(op, "ranges is null"));
  EXPECT_THAT(run([](auto& a) { a.out = nullptr; }), Refused(op, "out is null"));
  if (!backend_->host_accessible()) return;
  EXPECT_THAT(run([](auto&) {}), Refused(op, "range.rows is 0, must be at least 1"));
}

// ---- TopK ----

struct Best {
  std::vector<int64_t> index;
  std::vector<float> score;
};

// Of several lists of scores in one call.
std::vector<Best> TopOf(Backend& backend, const std::vector<std::vector<float>>& lists, int64_t k) {
  std::vector<std::unique_ptr<DeviceArray<float>>> scores;
  std::vector<std::unique_ptr<SharedArray<int64_t>>> index;
  std::vector<std::unique_ptr<SharedArray<float>>> score;
  std::vector<TopKItem> items;
  for (const std::vector<float>& list : lists) {
    const auto n = static_cast<int64_t>(list.size());
    const auto found = static_cast<size_t>(std::min(n, k));
    scores.push_back(std::make_unique<DeviceArray<float>>(backend, list));
    index.push_back(
        std::make_unique<SharedArray<int64_t>>(backend, std::vector<int64_t>(found, -1)));
    score.push_back(std::make_unique<SharedArray<float>>(backend, std::vector<float>(found)));
    items.push_back({scores.back()->data(), n, k, index.back()->data(), score.back()->data()});
  }
  const SharedArray<TopKItem> list(backend, items);
  const TopKArgs args{list.data(), static_cast<int64_t>(items.size())};
  EXPECT_OK(RunOp(backend, [&](Stream stream) { return backend.TopK(stream, args); }));
  std::vector<Best> best;
  for (size_t i = 0; i < lists.size(); ++i) best.push_back({index[i]->Get(), score[i]->Get()});
  return best;
}
std::vector<int64_t> Top(Backend& backend, const std::vector<float>& scores, int64_t k) {
  return TopOf(backend, {scores}, k)[0].index;
}

TEST_P(SelectContract, TopKAscendsByIndexAndGivesTiesToTheSmaller) {
  INFLLM_NEEDS_OP("TopK");
  const Best best = TopOf(*backend_, {{1, 3, 2, 3, -5, 3}}, 4)[0];
  EXPECT_THAT(best.index, ElementsAre(1, 2, 3, 5));
  EXPECT_THAT(best.score, ElementsAre(3, 2, 3, 3));
  EXPECT_THAT(Top(*backend_, {1, 3, 2, 3, -5, 3}, 2), ElementsAre(1, 3));
  EXPECT_THAT(Top(*backend_, {7, 7, 7}, 2), ElementsAre(0, 1));
  EXPECT_THAT(Top(*backend_, {-0.0f, 0.0f, 0.0f}, 1), ElementsAre(0));
}

TEST_P(SelectContract, TopKOfFewerThanKIsAllOfThem) {
  INFLLM_NEEDS_OP("TopK");
  EXPECT_THAT(Top(*backend_, {1, 2}, 5), ElementsAre(0, 1));
  EXPECT_THAT(Top(*backend_, {}, 5), ElementsAre());
  EXPECT_THAT(Top(*backend_, {1, 2}, 0), ElementsAre());
  EXPECT_THAT(TopOf(*backend_, {}, 5).size(), 0);
}

TEST_P(SelectContract, TopKPutsNanBehindEverything) {
  INFLLM_NEEDS_OP("TopK");
  EXPECT_THAT(Top(*backend_, {kNan, -kInf, 1, kNan, kInf}, 3), ElementsAre(1, 2, 4));
  const Best best = TopOf(*backend_, {{kNan, -kInf, 1, kNan, kInf}}, 4)[0];
  EXPECT_THAT(best.index, ElementsAre(0, 1, 2, 4));
  EXPECT_TRUE(std::isnan(best.score[0]));
  std::vector<float> scores(1000, kNan);
  scores[900] = -kInf;
  scores[950] = -7;
  EXPECT_THAT(Top(*backend_, scores, 3), ElementsAre(0, 900, 950));
}

TEST_P(SelectContract, TopKEqualsASort) {
  INFLLM_NEEDS_OP("TopK");
  std::mt19937 random(11);
  for (const int64_t k : {1, 2, 16, 96, 1000, 20000}) {
    std::vector<std::vector<float>> lists;
    for (const int64_t n : {1, 15, 16, 17, 100, 1000, 20000}) {
      std::vector<float> scores = RandomNormal(n, static_cast<uint32_t>(n + k));
      lists.push_back(scores);
      std::sort(scores.begin(), scores.end());  // every score beats all before it
      lists.push_back(scores);
      std::reverse(scores.begin(), scores.end());
      lists.push_back(scores);
      for (float& score : scores) score = static_cast<float>(random() % 5);
      lists.push_back(scores);
    }
    const std::vector<Best> best = TopOf(*backend_, lists, k);
    for (size_t i = 0; i < lists.size(); ++i) {
      const std::vector<float>& scores = lists[i];
      std::vector<int64_t> order(scores.size());
      std::iota(order.begin(), order.end(), int64_t{0});
      std::stable_sort(order.begin(), order.end(),
                       [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
      order.resize(std::min(scores.size(), static_cast<size_t>(k)));
      std::sort(order.begin(), order.end());
      ASSERT_EQ(best[i].index, order) << scores.size() << " " << k << " list " << i;
      for (size_t j = 0; j < order.size(); ++j) ASSERT_EQ(best[i].score[j], scores[order[j]]);
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

TEST_P(SelectContract, TopKRefuses) {
  INFLLM_NEEDS_OP("TopK");
  const auto run = [&](const TopKArgs& args) {
    return RunOp(*backend_, [&](Stream stream) { return backend_->TopK(stream, args); });
  };
  EXPECT_THAT(run({nullptr, -1}), Refused("TopK", "count is -1"));
  EXPECT_THAT(run({nullptr, 1}), Refused("TopK", "items is null"));
  if (!backend_->host_accessible()) return;
  int64_t index = 0;
  float score = 0;
  const auto of = [&](TopKItem item) { return run({&item, 1}); };
  EXPECT_THAT(of({&score, -1, 1, &index, &score}), Refused("TopK", "n is -1"));
  EXPECT_THAT(of({&score, (int64_t{1} << 32) + 1, 1, &index, &score}),
              Refused("TopK", "n is 4294967297, must be at most 2^32"));
  EXPECT_THAT(of({&score, 1, -1, &index, &score}), Refused("TopK", "k is -1"));
  EXPECT_THAT(of({nullptr, 1, 1, &index, &score}), Refused("TopK", "scores is null"));
  EXPECT_THAT(of({&score, 1, 1, nullptr, &score}), Refused("TopK", "out_index is null"));
  EXPECT_THAT(of({&score, 1, 1, &index, nullptr}), Refused("TopK", "out_score is null"));
}

// ---- LookUpBlocks ----

struct Found {
  std::vector<PageEntry> entries;
  int32_t misses;
};
Found LookUp(Backend& backend, const std::vector<int64_t>& index,
             const std::vector<int64_t>& cached, const std::vector<const std::byte*>& pages,
             int32_t misses_before = 0) {
  const SharedArray<int64_t> wanted(backend, index), have(backend, cached);
  const SharedArray<const std::byte*> page(backend, pages);
  const SharedArray<PageEntry> out(
      backend, std::vector<PageEntry>(index.size(), {.position = -1, .first = 9, .tokens = 9}));
  const SharedArray<int32_t> misses(backend, {misses_before});
  const SharedArray<LookUpItem> items(
      backend,
      {{wanted.data(), static_cast<int64_t>(index.size()), have.data(), page.data(),
        static_cast<int64_t>(cached.size()), /*first_position=*/1000, out.data(), misses.data()}});
  EXPECT_OK(RunOp(backend, [&](Stream stream) {
    return backend.LookUpBlocks(stream, {items.data(), 1, /*page_tokens=*/128});
  }));
  return {out.Get(), misses.Get()[0]};
}

MATCHER_P2(IsWhole, page, position, "") {
  return arg.page == page && arg.position == position && arg.first == 0 && arg.tokens == 128;
}
MATCHER(IsMissing, "") { return arg.page == nullptr && arg.tokens == 0; }

TEST_P(SelectContract, LookUpFindsCachedBlocksAndCountsTheOthers) {
  INFLLM_NEEDS_OP("LookUpBlocks");
  const std::byte storage[4] = {};
  const std::byte *a = storage, *b = storage + 1, *c = storage + 2;
  const Found found = LookUp(*backend_, {0, 3, 4, 9, 50}, {3, 9, 40}, {a, b, c}, 7);
  EXPECT_THAT(found.entries, ElementsAre(IsMissing(), IsWhole(a, 1000 + 3 * 128), IsMissing(),
                                         IsWhole(b, 1000 + 9 * 128), IsMissing()));
  EXPECT_EQ(found.misses, 7 + 3);
}

TEST_P(SelectContract, LookUpWithNothingCachedOrNothingWanted) {
  INFLLM_NEEDS_OP("LookUpBlocks");
  const Found none = LookUp(*backend_, {2, 5}, {}, {});
  EXPECT_THAT(none.entries, ElementsAre(IsMissing(), IsMissing()));
  EXPECT_EQ(none.misses, 2);
  const std::byte page{};
  EXPECT_EQ(LookUp(*backend_, {}, {2}, {&page}).misses, 0);
}

TEST_P(SelectContract, LookUpEqualsTheReference) {
  INFLLM_NEEDS_OP("LookUpBlocks");
  std::minstd_rand random(5);
  const std::vector<std::byte> storage(1000);
  for (const unsigned sparse : {1u, 2u, 7u, 100u}) {
    std::vector<int64_t> index, cached;
    std::vector<const std::byte*> pages;
    for (int64_t b = 0; b < 1000; ++b) {
      if (random() % 5 == 0) index.push_back(b);
      if (random() % sparse != 0) continue;
      cached.push_back(b);
      pages.push_back(storage.data() + random() % 1000);
    }
    const Found got = LookUp(*backend_, index, cached, pages);
    const Found want = LookUp(*reference_, index, cached, pages);
    EXPECT_EQ(got.misses, want.misses);
    for (size_t i = 0; i < index.size(); ++i) {
      EXPECT_EQ(got.entries[i].page, want.entries[i].page);
      EXPECT_EQ(got.entries[i].position, want.entries[i].position);
      EXPECT_EQ(got.entries[i].tokens, want.entries[i].tokens);
    }
  }
}

TEST_P(SelectContract, LookUpRefuses) {
  INFLLM_NEEDS_OP("LookUpBlocks");
  const auto run = [&](const LookUpBlocksArgs& args) {
    return RunOp(*backend_, [&](Stream stream) { return backend_->LookUpBlocks(stream, args); });
  };
  const char* op = "LookUpBlocks";
  EXPECT_THAT(run({nullptr, -1, 4}), Refused(op, "count is -1"));
  EXPECT_THAT(run({nullptr, 1, 4}), Refused(op, "items is null"));
  EXPECT_THAT(run({nullptr, 0, 0}), Refused(op, "page_tokens is 0"));
  if (!backend_->host_accessible()) return;
  const int64_t index = 0;
  const std::byte* page = nullptr;
  PageEntry entry;
  int32_t misses = 0;
  const auto with = [&](auto change) {
    LookUpItem item{&index, 1, &index, &page, 1, 0, &entry, &misses};
    change(item);
    return run({&item, 1, 4});
  };
  EXPECT_OK(with([](auto&) {}));
  EXPECT_THAT(with([](auto& i) { i.count = -1; }), Refused(op, "item.count is -1"));
  EXPECT_THAT(with([](auto& i) { i.cached_count = -1; }), Refused(op, "cached_count is -1"));
  EXPECT_THAT(with([](auto& i) { i.index = nullptr; }), Refused(op, "index is null"));
  EXPECT_THAT(with([](auto& i) { i.cached = nullptr; }), Refused(op, "cached is null"));
  EXPECT_THAT(with([](auto& i) { i.pages = nullptr; }), Refused(op, "pages is null"));
  EXPECT_THAT(with([](auto& i) { i.out = nullptr; }), Refused(op, "out is null"));
  EXPECT_THAT(with([](auto& i) { i.misses = nullptr; }), Refused(op, "misses is null"));
}

}  // namespace
}  // namespace infllm::kernels
