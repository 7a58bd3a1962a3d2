#include "kernels/reference/reference_sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace infllm::kernels {
namespace {

constexpr double kNegInf = -std::numeric_limits<double>::infinity();

// e^((logit - top) / temperature), where equals are as likely as each other, infinite ones too.
double Weight(double logit, double top, double temperature) {
  return logit == top ? 1 : std::exp((logit - top) / temperature);
}

// A NaN counts as -inf.
std::vector<double> Row(const float* logits, int64_t vocab) {
  std::vector<double> row(logits, logits + vocab);
  for (double& logit : row) logit = std::isnan(logit) ? kNegInf : logit;
  return row;
}

int32_t Argmax(const std::vector<double>& row) {
  return static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
}

double LogProb(const std::vector<double>& row, int32_t token) {
  const double top = row[static_cast<size_t>(Argmax(row))];
  if (top == kNegInf) return std::numeric_limits<double>::quiet_NaN();
  const double logit = row[static_cast<size_t>(token)];
  double sum = 0;
  for (const double other : row) sum += Weight(other, top, 1);
  return (logit == top ? 0 : logit - top) - std::log(sum);
}

int32_t SampleToken(const std::vector<double>& row, const SampleItem& item) {
  std::vector<int32_t> order(row.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return row[static_cast<size_t>(a)] > row[static_cast<size_t>(b)];
  });
  if (item.temperature == 0) return order[0];
  if (item.top_k > 0 && static_cast<size_t>(item.top_k) < order.size()) {
    order.resize(static_cast<size_t>(item.top_k));
  }
  const double top = row[static_cast<size_t>(order[0])];
  std::vector<double> weights;
  double total = 0;
  for (const int32_t token : order) {
    weights.push_back(Weight(row[static_cast<size_t>(token)], top, item.temperature));
    total += weights.back();
  }
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

}  // namespace

void ReferenceSample(const SampleArgs& args) {
  for (int64_t i = 0; i < args.count; ++i) {
    const SampleItem& item = args.items[i];
    const std::vector<double> row = Row(args.logits + item.row * args.vocab, args.vocab);
    args.out_token[i] = SampleToken(row, item);
    if (args.out_logprob != nullptr) args.out_logprob[i] = LogProb(row, args.out_token[i]);
  }
}

void ReferenceLogProbs(const LogProbsArgs& args) {
  for (int64_t r = 0; r < args.rows; ++r) {
    const std::vector<double> row = Row(args.logits + r * args.vocab, args.vocab);
    args.out_argmax[r] = Argmax(row);
    args.out_logprob[r] = args.target[r] < 0 ? 0 : LogProb(row, args.target[r]);
  }
}

}  // namespace infllm::kernels
