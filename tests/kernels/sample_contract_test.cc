// Sample and LogProbs of every backend against a plain sorting sampler and numbers worked out by
// hand.
#include <algorithm>
#include <cmath>
#include <limits>
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
using ::infllm::testing::RandomNormal;
using ::infllm::testing::Refused;
using ::infllm::testing::RunOp;
using ::infllm::testing::SharedArray;
using ::testing::DoubleNear;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::IsNan;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr double kAlmostOne = 1 - 0x1p-53;

class SampleContract : public testing::BackendTest {};
INSTANTIATE_TEST_SUITE_P(Backends, SampleContract, ::testing::ValuesIn(BackendsUnderTest()),
                         BackendName);

struct Sampled {
  std::vector<int32_t> tokens;
  std::vector<double> logprobs;
};
Sampled SampleRows(Backend& backend, const std::vector<float>& logits, int64_t vocab,
                   const std::vector<SampleItem>& items) {
  const DeviceArray<float> device_logits(backend, logits);
  const SharedArray<SampleItem> list(backend, items);
  const SharedArray<int32_t> tokens(backend, std::vector<int32_t>(items.size(), -1));
  const SharedArray<double> logprobs(backend, std::vector<double>(items.size()));
  SampleArgs args{device_logits.data(), list.data(), static_cast<int64_t>(items.size()), vocab,
                  tokens.data(),        nullptr};
  EXPECT_OK(RunOp(backend, [&](Stream stream) { return backend.Sample(stream, args); }));
  const std::vector<int32_t> without = tokens.Get();
  args.out_logprob = logprobs.data();
  EXPECT_OK(RunOp(backend, [&](Stream stream) { return backend.Sample(stream, args); }));
  EXPECT_EQ(tokens.Get(), without) << "asking for probabilities changes the tokens";
  return {tokens.Get(), logprobs.Get()};
}
std::vector<int32_t> Tokens(Backend& backend, const std::vector<float>& row,
                            std::vector<SampleItem> items) {
  return SampleRows(backend, row, static_cast<int64_t>(row.size()), items).tokens;
}

// Sorts all, cuts, draws. Of finite logits.
int32_t Oracle(const std::vector<float>& logits, const SampleItem& item) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  if (item.temperature == 0) return order[0];
  if (item.top_k > 0) order.resize(std::min(order.size(), static_cast<size_t>(item.top_k)));
  std::vector<double> weights;
  const double top = logits[order[0]];
  for (const int32_t token : order) {
    weights.push_back(std::exp((logits[token] - top) / item.temperature));
  }
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  double kept = 0;
  size_t count = 0;
  while (count < order.size() && (count == 0 || kept < item.top_p * total)) {
    kept += weights[count++];
  }
  double draw = item.uniform * kept;
  for (size_t i = 0; i + 1 < count; ++i) {
    draw -= weights[i];
    if (draw < 0) return order[i];
  }
  return order[count - 1];
}

// ---- Sample ----

TEST_P(SampleContract, WithoutTemperatureTheLikeliestOfEqualsTheSmaller) {
  INFLLM_NEEDS_OP("Sample");
  EXPECT_THAT(Tokens(*backend_, {1, 4, 2, 4}, {{}, {.top_k = 3, .uniform = 0.99}}),
              ElementsAre(1, 1));
  std::vector<float> row(1000, -2);
  row[997] = row[998] = -1;
  EXPECT_THAT(Tokens(*backend_, row, {{}}), ElementsAre(997));
}

// Probabilities 1/2, 1/4, 1/8, 1/8: of tokens 2, 0, 1, 3.
TEST_P(SampleContract, UniformFallsOnTokensInTheOrderOfTheirLikelihood) {
  INFLLM_NEEDS_OP("Sample");
  const float ln2 = std::log(2.0f);
  const std::vector<float> row = {-ln2, -2 * ln2, 0, -2 * ln2};
  const auto at = [&](double uniform, int64_t top_k, double top_p, double temperature = 1) {
    return Tokens(*backend_, row, {{0, temperature, top_p, top_k, uniform}})[0];
  };
  EXPECT_EQ(at(0, 0, 1), 2);
  EXPECT_EQ(at(0.49, 0, 1), 2);
  EXPECT_EQ(at(0.51, 0, 1), 0);
  EXPECT_EQ(at(0.74, 0, 1), 0);
  EXPECT_EQ(at(0.76, 0, 1), 1);
  EXPECT_EQ(at(0.88, 0, 1), 3);
  EXPECT_EQ(at(kAlmostOne, 0, 1), 3);
  EXPECT_EQ(at(kAlmostOne, 1, 1), 2);
  EXPECT_EQ(at(kAlmostOne, 2, 1), 0);
  EXPECT_EQ(at(kAlmostOne, 3, 1), 1);  // of equals the smaller id is kept
  EXPECT_EQ(at(kAlmostOne, 0, 0.4), 2);
  EXPECT_EQ(at(kAlmostOne, 0, 0.6), 0);
  EXPECT_EQ(at(kAlmostOne, 0, 0.8), 1);
  EXPECT_EQ(at(0.55, 2, 1), 2);       // 2/3 and 1/3 are left
  EXPECT_EQ(at(0.79, 0, 1, 0.5), 0);  // 16, 4, 1, 1 of 22
  EXPECT_EQ(at(0.72, 0, 1, 0.5), 2);
}

TEST_P(SampleContract, TokensAreThoseOfAFullSort) {
  INFLLM_NEEDS_OP("Sample");
  std::mt19937_64 random(1);
  const auto uniform = [&] { return static_cast<double>(random() >> 11) * 0x1p-53; };
  for (const int64_t vocab : {1, 2, 63, 64, 65, 700, 20000}) {
    for (const float spread : {0.0f, 0.01f, 1.0f, 4.0f, 30.0f}) {
      constexpr int64_t kRows = 3;
      std::vector<float> logits =
          RandomNormal(kRows * vocab, static_cast<uint32_t>(vocab + 100 * spread));
      for (float& logit : logits) logit *= spread;
      for (int64_t i = 0; i < vocab; ++i) logits[i] = std::round(logits[i]);  // ties in row 0
      std::vector<SampleItem> items;
      for (int64_t row = 0; row < kRows; ++row) {
        for (const double top_p : {1.0, 0.999999, 0.95, 0.3, 1e-9}) {
          for (const int64_t top_k : {int64_t{0}, int64_t{1}, int64_t{40}, vocab - 1, vocab + 1}) {
            if (top_k < 0) continue;
            items.push_back({row, 1, top_p, top_k, uniform()});
            items.push_back({row, 0.3 + uniform(), top_p, top_k, uniform()});
            items.push_back({row, 1e-300, top_p, top_k, uniform()});
          }
          items.push_back({row, 1, top_p, 0, 0});
          items.push_back({row, 1, top_p, 0, kAlmostOne});
          items.push_back({row, 100, top_p, 0, uniform()});
        }
      }
      const std::vector<int32_t> got = SampleRows(*backend_, logits, vocab, items).tokens;
      for (size_t i = 0; i < items.size(); ++i) {
        const SampleItem& item = items[i];
        const auto at = logits.begin() + item.row * vocab;
        ASSERT_EQ(got[i], Oracle({at, at + vocab}, item))
            << vocab << " tokens, spread " << spread << ", row " << item.row << " temperature "
            << item.temperature << " top_p " << item.top_p << " top_k " << item.top_k << " uniform "
            << item.uniform;
      }
    }
  }
}

// Where uniform falls on the very boundary of two tokens, or top_p on that of a cut, rounding
// decides: it must decide as in a full sort.
TEST_P(SampleContract, BoundariesAreThoseOfAFullSort) {
  INFLLM_NEEDS_OP("Sample");
  for (const int64_t vocab : {128, 1024, 4096}) {  // each of equal weight: sums are exact
    const std::vector<float> row(static_cast<size_t>(vocab), 3.0f);
    std::vector<SampleItem> items;
    for (int64_t i = 0; i < vocab; i += vocab / 64) {
      const double boundary = static_cast<double>(i) / static_cast<double>(vocab);
      items.push_back({0, 1, 1, 0, boundary});
      items.push_back({0, 1, 0.5, 0, boundary});
      if (i == 0) continue;
      items.push_back({0, 1, 1, 0, std::nextafter(boundary, 0)});
      items.push_back({0, 1, boundary, 0, kAlmostOne});
      items.push_back({0, 1, std::nextafter(boundary, 1), 0, kAlmostOne});
      items.push_back({0, 1, std::nextafter(boundary, 0), 0, kAlmostOne});
    }
    const std::vector<int32_t> got = Tokens(*backend_, row, items);
    for (size_t i = 0; i < items.size(); ++i) {
      EXPECT_EQ(got[i], Oracle(row, items[i]))
          << vocab << " tokens, top_p " << items[i].top_p << " uniform " << items[i].uniform;
    }
  }
}

TEST_P(SampleContract, TokensAreDrawnAsOftenAsTheyAreLikely) {
  INFLLM_NEEDS_OP("Sample");
  constexpr int64_t kVocab = 300;
  constexpr int kDraws = 3000;
  std::vector<float> row = RandomNormal(kVocab, 8);
  std::vector<SampleItem> items;
  for (int i = 0; i < kDraws; ++i) items.push_back({0, 0.7, 1, 0, (i + 0.5) / kDraws});
  std::vector<int> drawn(kVocab);
  for (const int32_t token : Tokens(*backend_, row, items)) ++drawn[static_cast<size_t>(token)];
  double total = 0;
  for (const float logit : row) total += std::exp(logit / 0.7);
  for (size_t t = 0; t < row.size(); ++t) {  // evenly spread uniforms miss by one at either end
    EXPECT_NEAR(drawn[t], kDraws * std::exp(row[t] / 0.7) / total, 1.001) << t;
  }
}

TEST_P(SampleContract, ItemsAreSampledAsEachAlone) {
  INFLLM_NEEDS_OP("Sample");
  constexpr int64_t kVocab = 5000, kRows = 4;
  const std::vector<float> logits = RandomNormal(kRows * kVocab, 9);
  std::vector<SampleItem> items;
  for (int i = 0; i < 64; ++i) {
    items.push_back({i % kRows, 0.5 + i % 3, i % 5 == 0 ? 1.0 : 0.9, i % 7 * 20, i / 64.0});
  }
  const Sampled together = SampleRows(*backend_, logits, kVocab, items);
  for (size_t i = 0; i < items.size(); ++i) {
    const Sampled alone = SampleRows(*backend_, logits, kVocab, {items[i]});
    EXPECT_EQ(alone.tokens[0], together.tokens[i]);
    EXPECT_EQ(alone.logprobs[0], together.logprobs[i]);
  }
}

TEST_P(SampleContract, NanCountsAsMinusInfinityAndEqualsAreAsLikely) {
  INFLLM_NEEDS_OP("Sample");
  const SampleItem greedy{}, first{0, 1, 1, 0, 0}, middle{0, 1, 1, 0, 0.5},
      last{0, 1, 1, 0, kAlmostOne};
  EXPECT_THAT(Tokens(*backend_, {kNan, -kInf, 1, kNan}, {greedy, first, last}), Each(2));
  EXPECT_THAT(Tokens(*backend_, {5, kInf, 7, kInf}, {greedy, first, middle, last}),
              ElementsAre(1, 1, 3, 3));
  EXPECT_THAT(Tokens(*backend_, {kNan, -kInf, kNan, -kInf}, {greedy, first, middle, last}),
              ElementsAre(0, 0, 2, 3));
  std::vector<float> row(1000, kNan);
  EXPECT_THAT(Tokens(*backend_, row, {greedy, first, middle, last}), ElementsAre(0, 0, 500, 999));
  row[700] = -3;
  EXPECT_THAT(Tokens(*backend_, row, {greedy, first, middle, last}), Each(700));
  EXPECT_THAT(SampleRows(*backend_, {kNan, 0, -kInf, 0}, 4, {greedy, last}).logprobs,
              Each(DoubleNear(-std::log(2.0), 1e-15)));
  EXPECT_THAT(SampleRows(*backend_, {kNan, -kInf, kNan, kNan}, 4, {greedy, last}).logprobs,
              Each(IsNan()));
}

TEST_P(SampleContract, LogProbsAreThoseBeforeTemperatureAndCuts) {
  INFLLM_NEEDS_OP("Sample");
  const float ln3 = std::log(3.0f);
  const Sampled sampled = SampleRows(*backend_, {0, ln3}, 2, {{}, {0, 0.1, 0.5, 1, 0.9}});
  EXPECT_THAT(sampled.tokens, Each(1));
  EXPECT_THAT(sampled.logprobs, Each(DoubleNear(std::log(0.75), 1e-7)));
  EXPECT_EQ(SampleRows(*backend_, {1, 2}, 2, {}).tokens.size(), 0u);
}

TEST_P(SampleContract, SampleRefuses) {
  INFLLM_NEEDS_OP("Sample");
  const DeviceArray<float> logits(*backend_, {1, 2});
  const SharedArray<int32_t> token(*backend_, {0});
  const auto run = [&](auto change, SampleItem item = {}) {
    const SharedArray<SampleItem> items(*backend_, {item});
    SampleArgs args{logits.data(), items.data(), 1, 2, token.data(), nullptr};
    change(args);
    return RunOp(*backend_, [&](Stream stream) { return backend_->Sample(stream, args); });
  };
  EXPECT_OK(run([](auto&) {}));
  EXPECT_THAT(run([](auto& a) { a.count = -1; }), Refused("Sample", "count is -1"));
  EXPECT_THAT(run([](auto& a) { a.vocab = 0; }), Refused("Sample", "vocab is 0"));
  EXPECT_THAT(run([](auto& a) { a.vocab = int64_t{1} << 31; }), Refused("Sample", "vocab is 2147"));
  EXPECT_THAT(run([](auto& a) { a.logits = nullptr; }), Refused("Sample", "logits is null"));
  EXPECT_THAT(run([](auto& a) { a.items = nullptr; }), Refused("Sample", "items is null"));
  EXPECT_THAT(run([](auto& a) { a.out_token = nullptr; }), Refused("Sample", "out_token is null"));
  if (!backend_->host_accessible()) return;
  const auto of = [&](SampleItem item) { return run([](auto&) {}, item); };
  EXPECT_THAT(of({.row = -1}), Refused("Sample", "row is -1"));
  EXPECT_THAT(of({.temperature = -1}), Refused("Sample", "temperature is -1"));
  EXPECT_THAT(of({.temperature = kNan}), Refused("Sample", "temperature is nan"));
  EXPECT_THAT(of({.temperature = kInf}), Refused("Sample", "temperature is inf"));
  EXPECT_THAT(of({.top_p = 0}), Refused("Sample", "top_p is 0, must be in (0, 1]"));
  EXPECT_THAT(of({.top_p = 1.5}), Refused("Sample", "top_p is 1.5"));
  EXPECT_THAT(of({.top_k = -1}), Refused("Sample", "top_k is -1"));
  EXPECT_THAT(of({.uniform = 1}), Refused("Sample", "uniform is 1, must be in [0, 1)"));
}

// ---- LogProbs ----

struct Probed {
  std::vector<double> logprobs;
  std::vector<int32_t> argmax;
};
Probed Probe(Backend& backend, const std::vector<float>& logits, int64_t vocab,
             const std::vector<int32_t>& targets) {
  const DeviceArray<float> device_logits(backend, logits);
  const SharedArray<int32_t> target(backend, targets);
  const SharedArray<double> logprobs(backend, std::vector<double>(targets.size(), 7));
  const SharedArray<int32_t> argmax(backend, std::vector<int32_t>(targets.size(), -1));
  EXPECT_OK(RunOp(backend, [&](Stream stream) {
    return backend.LogProbs(
        stream, {device_logits.data(), target.data(), static_cast<int64_t>(targets.size()), vocab,
                 logprobs.data(), argmax.data()});
  }));
  return {logprobs.Get(), argmax.Get()};
}

TEST_P(SampleContract, LogProbsOfTargetsAndTheLikeliest) {
  INFLLM_NEEDS_OP("LogProbs");
  const float ln2 = std::log(2.0f);
  const Probed probed = Probe(
      *backend_, {0, ln2, 0, 5, 5, 5, 1, 2, 3, kNan, 0, -kInf, kNan, kNan, -kInf, kInf, 0, kInf}, 3,
      {1, 2, -1, 0, 1, 1});
  EXPECT_THAT(probed.argmax, ElementsAre(1, 0, 2, 1, 0, 0));
  EXPECT_NEAR(probed.logprobs[0], std::log(0.5), 1e-7);
  EXPECT_NEAR(probed.logprobs[1], -std::log(3.0), 1e-15);
  EXPECT_EQ(probed.logprobs[2], 0);
  EXPECT_EQ(probed.logprobs[3], -kInf);
  EXPECT_TRUE(std::isnan(probed.logprobs[4]));
  EXPECT_EQ(probed.logprobs[5], -kInf);
  EXPECT_EQ(Probe(*backend_, {}, 3, {}).argmax.size(), 0u);
}

TEST_P(SampleContract, LogProbsEqualTheReferenceAndThoseOfEachRowAlone) {
  INFLLM_NEEDS_OP("LogProbs");
  for (const int64_t vocab : {1, 31, 32, 33, 20000}) {
    constexpr int64_t kRows = 17;
    std::vector<float> logits = RandomNormal(kRows * vocab, static_cast<uint32_t>(vocab));
    for (float& logit : logits) logit = std::round(logit * 40) / 8;  // ties
    std::vector<int32_t> targets;
    for (int64_t r = 0; r < kRows; ++r) {
      targets.push_back(static_cast<int32_t>(r * 7919 % (vocab + 1)) - 1);
    }
    const Probed got = Probe(*backend_, logits, vocab, targets);
    const Probed want = Probe(*reference_, logits, vocab, targets);
    EXPECT_EQ(got.argmax, want.argmax);
    for (int64_t r = 0; r < kRows; ++r) {
      EXPECT_NEAR(got.logprobs[r], want.logprobs[r], 1e-12 * (1 + std::abs(want.logprobs[r])));
      const auto at = logits.begin() + r * vocab;
      EXPECT_EQ(Probe(*backend_, {at, at + vocab}, vocab, {targets[r]}).logprobs[0],
                got.logprobs[r]);
    }
  }
}

TEST_P(SampleContract, LogProbsRefuse) {
  INFLLM_NEEDS_OP("LogProbs");
  const DeviceArray<float> logits(*backend_, {1, 2});
  const SharedArray<double> logprob(*backend_, {0});
  const SharedArray<int32_t> argmax(*backend_, {0});
  const auto run = [&](auto change, int32_t target = 1) {
    const SharedArray<int32_t> targets(*backend_, {target});
    LogProbsArgs args{logits.data(), targets.data(), 1, 2, logprob.data(), argmax.data()};
    change(args);
    return RunOp(*backend_, [&](Stream stream) { return backend_->LogProbs(stream, args); });
  };
  EXPECT_OK(run([](auto&) {}));
  EXPECT_THAT(run([](auto& a) { a.rows = -1; }), Refused("LogProbs", "rows is -1"));
  EXPECT_THAT(run([](auto& a) { a.vocab = 0; }), Refused("LogProbs", "vocab is 0"));
  EXPECT_THAT(run([](auto& a) { a.logits = nullptr; }), Refused("LogProbs", "logits is null"));
  EXPECT_THAT(run([](auto& a) { a.target = nullptr; }), Refused("LogProbs", "target is null"));
  EXPECT_THAT(run([](auto& a) { a.out_logprob = nullptr; }),
              Refused("LogProbs", "out_logprob is null"));
  EXPECT_THAT(run([](auto& a) { a.out_argmax = nullptr; }),
              Refused("LogProbs", "out_argmax is null"));
  if (!backend_->host_accessible()) return;
  EXPECT_THAT(run([](auto&) {}, 2), Refused("LogProbs", "target is 2, must be at most vocab - 1"));
  EXPECT_THAT(run([](auto&) {}, -2), Refused("LogProbs", "target is -2"));
}

}  // namespace
}  // namespace infllm::kernels
