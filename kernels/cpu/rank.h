// The order in which scores and logits are the better ones, and the best of many in that order.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

namespace infllm::kernels {

// A total order of values that puts NaN last and takes -0 for 0, with the smaller index first among
// equals: the larger key is the better one. 0 <= index < 2^32.
inline uint64_t RankKey(float value, int64_t index) {
  uint32_t bits = std::bit_cast<uint32_t>(value + 0.0f);
  bits = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  if (std::isnan(value)) bits = 0;
  return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}
inline int64_t IndexOf(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }

// The keys of the min(k, n) best of values[n], in any order, into `best`. Does not allocate once
// `best` has been as large before.
void SelectBest(const float* values, int64_t n, int64_t k, std::vector<uint64_t>& best);

}  // namespace infllm::kernels
