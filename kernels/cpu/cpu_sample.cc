#include "kernels/cpu/cpu_sample.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <vector>

#include "kernels/cpu/rank.h"
#include "kernels/cpu/select_ranges.h"

namespace infllm::kernels {
namespace {

constexpr float kNegInf = -std::numeric_limits<float>::infinity();

struct Likeliest {
  float logit;
  int32_t token;
};

// -inf and token 0 where no logit is above -inf.
Likeliest FindLikeliest(const float* logits, int64_t vocab) {
  constexpr int kLanes = 32;
  float lanes[kLanes];
  std::fill_n(lanes, kLanes, kNegInf);
  int64_t i = 0;
  for (; i + kLanes <= vocab; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] = logits[i + l] > lanes[l] ? logits[i + l] : lanes[l];
  }
  for (; i < vocab; ++i) lanes[0] = logits[i] > lanes[0] ? logits[i] : lanes[0];
  const float top = *std::max_element(lanes, lanes + kLanes);
  if (top == kNegInf) return {top, 0};
  return {top, static_cast<int32_t>(std::find(logits, logits + vocab, top) - logits)};
}

// e^((logit - top) / temperature), 0 for NaN. REQUIRES: top is the largest, and not -inf.
double Weight(float logit, double top, double temperature) {
  if (logit == top) return 1;  // +inf too
  return logit > kNegInf ? std::exp((logit - top) / temperature) : 0;
}

double LogSumOfWeights(const float* logits, int64_t vocab, double top) {
  double sum = 0;
  for (int64_t i = 0; i < vocab; ++i) sum += Weight(logits[i], top, 1);
  return std::log(sum);
}

// ln softmax(logits)[token]; NaN where no logit is above -inf.
double LogProb(const float* logits, int64_t vocab, float top, int32_t token) {
  if (top == kNegInf) return std::numeric_limits<double>::quiet_NaN();
  const double log_sum = LogSumOfWeights(logits, vocab, top);
  const float logit = logits[token];
  if (logit == top) return -log_sum;
  return logit > kNegInf ? -(log_sum + (static_cast<double>(top) - logit)) : kNegInf;
}

// Which of `weights`, all that there are and the largest first.
size_t Draw(const std::vector<double>& weights, double top_p, double uniform) {
  double total = 0;
  for (const double weight : weights) total += weight;
  double kept = 0;
  size_t count = 0;
  while (count < weights.size() && (count == 0 || kept < top_p * total)) kept += weights[count++];
  double draw = uniform * kept;
  for (size_t i = 0; i + 1 < count; ++i) {
    draw -= weights[i];
    if (draw < 0) return i;
  }
  return count - 1;
}

// What Draw finds, from the largest weights only and bounds of the total as it would sum it: none
// if it may be beyond those weights, or on either side of a rounding error. Rounding is monotonic,
// so whatever is computed from bounds bounds what is computed from the total.
std::optional<size_t> DrawFromLargest(const std::vector<double>& weights, double least_total,
                                      double largest_total, double top_p, double uniform) {
  if (top_p < 1) {
    double kept = 0;
    size_t count = 0;
    while (kept < top_p * largest_total) {
      if (count == weights.size() || (count > 0 && kept >= top_p * least_total)) {
        return std::nullopt;
      }
      kept += weights[count++];
    }
    double draw = uniform * kept;
    for (size_t i = 0; i + 1 < count; ++i) {
      draw -= weights[i];
      if (draw < 0) return i;
    }
    return count - 1;
  }
  // All are kept until their sum is the total.
  double kept = 0;
  double least_draw = uniform * least_total, largest_draw = uniform * largest_total;
  for (size_t i = 0; i < weights.size(); ++i) {
    kept += weights[i];
    least_draw -= weights[i];
    largest_draw -= weights[i];
    if (largest_draw < 0) return i;
    if (least_draw < 0 || kept >= least_total) return std::nullopt;
  }
  return std::nullopt;
}

// Puts the `count` likeliest tokens in order, and their weights.
void Sort(const float* logits, int64_t vocab, int64_t count, double top, double temperature,
          std::vector<uint64_t>& tokens, std::vector<double>& weights) {
  SelectBest(logits, vocab, count, tokens);
  std::sort(tokens.begin(), tokens.end(), std::greater<>());
  weights.clear();
  for (const uint64_t key : tokens) {
    weights.push_back(Weight(logits[IndexOf(key)], top, temperature));
  }
}

// Sorting the vocabulary is what takes time, and the token is mostly among the first few. So those
// are sorted, ever more until the token is certain to be what sorting all would give.
int32_t SampleToken(const float* logits, int64_t vocab, float top, const SampleItem& item) {
  static thread_local std::vector<uint64_t> tokens;
  static thread_local std::vector<double> weights;
  constexpr int64_t kFewest = 64;
  const int64_t candidates = item.top_k > 0 ? std::min(item.top_k, vocab) : vocab;
  if (top == kNegInf) {
    weights.assign(static_cast<size_t>(candidates), 1.0);
    return static_cast<int32_t>(Draw(weights, item.top_p, item.uniform));
  }
  if (candidates == vocab && vocab > kFewest) {
    // Less than e^kNegligible of the likeliest: its weight is left to the bounds.
    constexpr double kNegligible = -40;
    double total = 0;
    for (int64_t i = 0; i < vocab; ++i) {
      const double x = (logits[i] - static_cast<double>(top)) / item.temperature;
      if (logits[i] == top) {
        total += 1;
      } else if (x > kNegligible) {
        total += std::exp(x);
      }
    }
    // n roundings in any order err by less than n u of the sum, u = 2^-53: here and in Draw.
    const double n = static_cast<double>(vocab);
    const double error = total * (4 * n * 0x1p-53) + n * 4.3e-18;  // e^-40
    for (int64_t count = kFewest; count < vocab; count *= 8) {
      Sort(logits, vocab, count, top, item.temperature, tokens, weights);
      const std::optional<size_t> drawn =
          DrawFromLargest(weights, total - error, total + error, item.top_p, item.uniform);
      if (drawn.has_value()) return static_cast<int32_t>(IndexOf(tokens[*drawn]));
    }
  }
  Sort(logits, vocab, candidates, top, item.temperature, tokens, weights);
  return static_cast<int32_t>(IndexOf(tokens[Draw(weights, item.top_p, item.uniform)]));
}

}  // namespace

void CpuSample(ThreadPool& pool, const SampleArgs& args) {
  const auto row_bytes = args.vocab * static_cast<int64_t>(sizeof(float));
  ForRanges(pool, args.count, RangeItems(row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const SampleItem& item = args.items[i];
      const float* logits = args.logits + item.row * args.vocab;
      const Likeliest likeliest = FindLikeliest(logits, args.vocab);
      const int32_t token = item.temperature == 0
                                ? likeliest.token
                                : SampleToken(logits, args.vocab, likeliest.logit, item);
      args.out_token[i] = token;
      if (args.out_logprob != nullptr) {
        args.out_logprob[i] = LogProb(logits, args.vocab, likeliest.logit, token);
      }
    }
  });
}

void CpuLogProbs(ThreadPool& pool, const LogProbsArgs& args) {
  const auto row_bytes = args.vocab * static_cast<int64_t>(sizeof(float));
  ForRanges(pool, args.rows, RangeItems(row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* logits = args.logits + r * args.vocab;
      const Likeliest likeliest = FindLikeliest(logits, args.vocab);
      args.out_argmax[r] = likeliest.token;
      args.out_logprob[r] =
          args.target[r] < 0 ? 0 : LogProb(logits, args.vocab, likeliest.logit, args.target[r]);
    }
  });
}

}  // namespace infllm::kernels
