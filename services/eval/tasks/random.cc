#include "services/eval/tasks/random.h"

#include <set>
#include <span>

#include "kernels/core/status_macros.h"
#include "services/eval/tasks/text.h"
#include "services/eval/tasks/words.h"

namespace infllm::services {
namespace {

// The finaliser of SplitMix64 (Steele, Lea and Flood 2014): spreads near inputs far apart.
uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

uint64_t StreamSeed(uint64_t seed, std::string_view name, uint64_t index) {
  uint64_t state = Mix(seed);
  for (const char c : name) state = Mix(state ^ static_cast<unsigned char>(c));
  return Mix(state ^ index);
}

}  // namespace

Random::Random(uint64_t seed, std::string_view name, uint64_t index)
    : engine_(StreamSeed(seed, name, index)) {}

uint64_t Random::Below(uint64_t limit) {
  INFLLM_CHECK(limit > 0);
  // Draws past the last whole multiple of `limit` would favour small results.
  const uint64_t excess = (UINT64_MAX % limit + 1) % limit;
  uint64_t draw = engine_();
  while (draw > UINT64_MAX - excess) draw = engine_();
  return draw % limit;
}

int64_t Random::Between(int64_t low, int64_t high) {
  return low + static_cast<int64_t>(Below(static_cast<uint64_t>(high - low) + 1));
}

double Random::Fraction() { return static_cast<double>(Below(uint64_t{1} << 53)) * 0x1p-53; }

std::vector<int64_t> Random::Distinct(int64_t n, int64_t limit) {
  INFLLM_CHECK(n <= limit);
  // Floyd's algorithm (Bentley and Floyd 1987): n draws, whatever the limit.
  std::set<int64_t> chosen;
  for (int64_t last = limit - n; last < limit; ++last) {
    if (!chosen.insert(Between(0, last)).second) chosen.insert(last);
  }
  return {chosen.begin(), chosen.end()};
}

std::string RandomDigits(Random& random, int64_t n) {
  std::string digits;
  for (int64_t i = 0; i < n; ++i) digits += static_cast<char>('0' + random.Below(10));
  return digits;
}

std::string RandomLetters(Random& random, int64_t n, char first) {
  std::string letters;
  for (int64_t i = 0; i < n; ++i) letters += static_cast<char>(first + random.Below(26));
  return letters;
}

std::string RandomNumber(Random& random) {
  return std::to_string(random.Between(1000000, 9999999));
}

std::string RandomUuid(Random& random) {
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string uuid;
  uuid.reserve(36);
  for (const int group : {8, 4, 4, 4, 12}) {
    if (!uuid.empty()) uuid += '-';
    uint64_t bits = random.Below(uint64_t{1} << 48);
    for (int i = 0; i < group; ++i, bits >>= 4) uuid += kHex[bits & 15];
  }
  uuid[14] = '4';
  uuid[19] = kHex[8 + random.Below(4)];
  return uuid;
}

std::string NameSource::Next() {
  const std::span<const std::string_view> adjectives = Adjectives();
  const std::span<const std::string_view> nouns = Nouns();
  // Where most pairs are used up, a second adjective makes enough names.
  constexpr int kTriesForPair = 8;
  for (int tries = 0;; ++tries) {
    const uint64_t noun = random_.Below(nouns.size());
    const uint64_t last = random_.Below(adjectives.size());
    const uint64_t first = tries < kTriesForPair ? 0 : 1 + random_.Below(adjectives.size());
    if (!used_.insert((first * adjectives.size() + last) * nouns.size() + noun).second) continue;
    if (first == 0) return Concat({adjectives[last], "-", nouns[noun]});
    return Concat({adjectives[first - 1], "-", adjectives[last], "-", nouns[noun]});
  }
}

}  // namespace infllm::services
