// Random choices that come out the same on every machine. std::mt19937_64 is specified to the bit
// and the distributions of the standard library are not, so the draws are our own.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

namespace infllm::services {

class Random {
 public:
  // Each (seed, name, index) is a stream of its own.
  Random(uint64_t seed, std::string_view name, uint64_t index);

  // In [0, limit). REQUIRES: limit > 0.
  uint64_t Below(uint64_t limit);
  // In [low, high].
  int64_t Between(int64_t low, int64_t high);
  // In [0, 1), a multiple of 2^-53.
  double Fraction();
  // `n` different numbers below `limit`, ascending. REQUIRES: n <= limit.
  std::vector<int64_t> Distinct(int64_t n, int64_t limit);
  template <typename T>
  void Shuffle(std::vector<T>& values) {
    for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[Below(i)]);
  }

 private:
  std::mt19937_64 engine_;
};

// What needles are about and what they say, as RULER and InfiniteBench draw them.
std::string RandomDigits(Random& random, int64_t n);               // each 0-9
std::string RandomLetters(Random& random, int64_t n, char first);  // of the 26 from `first`
std::string RandomNumber(Random& random);                          // seven digits, the first not 0
std::string RandomUuid(Random& random);                            // version 4, lower case

// Names like "gentle-harbor", none twice.
class NameSource {
 public:
  explicit NameSource(Random& random) : random_(random) {}
  std::string Next();

 private:
  Random& random_;
  std::unordered_set<uint64_t> used_;
};

}  // namespace infllm::services
