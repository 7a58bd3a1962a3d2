#include "kernels/cpu/rank.h"

#include <algorithm>
#include <functional>

#include "kernels/core/status_macros.h"

namespace infllm::kernels {
namespace {

// Whether any of 16 values is above the threshold. Without a branch inside, so that it vectorises.
bool AnyAbove(const float* values, float threshold) {
  int above = 0;
  for (int i = 0; i < 16; ++i) above |= values[i] > threshold;
  return above != 0;
}

}  // namespace

void SelectBest(const float* values, int64_t n, int64_t k, std::vector<uint64_t>& best) {
  INFLLM_CHECK(n <= int64_t{1} << 32);
  best.clear();
  k = std::min(k, n);
  if (k <= 0) return;
  if (k == n) {
    for (int64_t i = 0; i < n; ++i) best.push_back(RankKey(values[i], i));
    return;
  }
  // Candidates gather until there are twice as many as needed; then the worse half goes, and the
  // worst that stays is the threshold for what follows. Later equals lose, so `>` is exact.
  const size_t capacity = 2 * static_cast<size_t>(k) + 64;
  const auto keep = static_cast<size_t>(k);
  const auto trim = [&] {
    std::nth_element(best.begin(), best.begin() + (k - 1), best.end(), std::greater<>());
    best.resize(keep);
  };
  bool have_threshold = false;
  float threshold = 0;
  for (int64_t begin = 0; begin < n; begin += 16) {
    const int64_t end = std::min(begin + 16, n);
    if (have_threshold && end - begin == 16 && !AnyAbove(values + begin, threshold)) continue;
    for (int64_t i = begin; i < end; ++i) {
      if (have_threshold && !(values[i] > threshold)) continue;
      best.push_back(RankKey(values[i], i));
      if (best.size() < capacity) continue;
      trim();
      threshold = values[IndexOf(best.back())];
      have_threshold = !std::isnan(threshold);
    }
  }
  if (best.size() > keep) trim();
}

}  // namespace infllm::kernels
