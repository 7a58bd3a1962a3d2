// KV retrieval and Math.Find of OpenBMB/InfiniteBench (data/construct_synthetic_dataset.py,
// src/prompt.py, src/eval_utils.py), and KV retrieval as thunlp/InfLLM asks it (benchmark/config).
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "services/eval/tasks/fit.h"
#include "services/eval/tasks/plan.h"
#include "services/eval/tasks/random.h"
#include "services/eval/tasks/task_makers.h"
#include "services/eval/tasks/text.h"

namespace infllm::services {
namespace {

// The depths that one text of pairs is asked at.
constexpr int64_t kPairsAsked = 10;

struct Pairs {
  std::string text;
  std::vector<TextRange> places;  // of "key": "value"
  std::vector<std::string> keys;
  std::vector<std::string> values;
};

Pairs DrawPairs(Random& random, int64_t n) {
  Pairs pairs;
  pairs.text = "JSON data:\n{";
  for (int64_t i = 0; i < n; ++i) {
    pairs.keys.push_back(RandomUuid(random));
    pairs.values.push_back(RandomUuid(random));
    if (i > 0) pairs.text += ", ";
    const auto begin = static_cast<int64_t>(pairs.text.size());
    pairs.text += Concat({"\"", pairs.keys.back(), "\": \"", pairs.values.back(), "\""});
    pairs.places.push_back({begin, static_cast<int64_t>(pairs.text.size())});
  }
  pairs.text += "}";
  return pairs;
}

// The pair that is `depth` of the way from the first to the last.
size_t PairAt(double depth, size_t pairs) {
  return static_cast<size_t>(std::llround(depth * static_cast<double>(pairs - 1)));
}

Question AskForPair(const Pairs& pairs, double depth, int64_t offset) {
  const size_t i = PairAt(depth, pairs.keys.size());
  return {
      .prompt = Concat(
          {"\nKey: \"", pairs.keys[i], "\"\nThe value associated with the specified key is:"}),
      .answers = {pairs.values[i]},
      .evidence = {{offset + pairs.places[i].begin, offset + pairs.places[i].end}},
      .depth = depth,
      .label = pairs.keys[i],
  };
}

// `depths` of one slot are asked of one text. `key_first`: the instruction names the first's key.
Samples MakePairs(const TaskRequest& request, std::string_view task, const std::vector<Slot>& slots,
                  bool key_first, const std::function<std::vector<double>(const Slot&)>& depths) {
  const SizeRange sizes{.smallest = 2, .largest = 2 * request.length, .step = 16};
  return FitSamples(
      request, task, static_cast<int64_t>(slots.size()), sizes, [&](int64_t index, int64_t size) {
        const Slot& slot = slots[static_cast<size_t>(index)];
        Random random = slot.random;
        const Pairs pairs = DrawPairs(random, size);
        const std::vector<double> asked = depths(slot);
        const size_t first = PairAt(asked[0], pairs.keys.size());
        std::string before = "Extract the value corresponding to the specified key ";
        if (key_first) before += Concat({"\"", pairs.keys[first], "\" "});
        before += "in the JSON object below.\n\n";
        Sample sample{.id = slot.id, .metric = Metric::kWordMatch, .max_new_tokens = 100};
        for (const double depth : asked) {
          sample.questions.push_back(AskForPair(pairs, depth, static_cast<int64_t>(before.size())));
        }
        sample.text = std::move(before) + pairs.text;
        return sample;
      });
}

struct FindKind {
  std::string_view what;  // is asked for
  int rank;               // among the different numbers of the list; negative: from the largest
};
constexpr FindKind kFindKinds[] = {
    {"largest number", -1}, {"second largest number", -2}, {"third largest number", -3},
    {"smallest number", 1}, {"second smallest number", 2}, {"third smallest number", 3},
    {"median number", 0},
};

// Sorts `numbers`, an odd number of them.
int64_t Find(const FindKind& kind, std::vector<int64_t>& numbers) {
  std::sort(numbers.begin(), numbers.end());
  if (kind.rank == 0) return numbers[numbers.size() / 2];
  numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
  const size_t place =
      std::min(numbers.size(), static_cast<size_t>(std::abs(kind.rank)));  // all may be equal
  return kind.rank > 0 ? numbers[place - 1] : numbers[numbers.size() - place];
}

// The range the list is drawn from is its own, so that the extreme number is not always the same.
std::pair<int64_t, int64_t> FindRange(const FindKind& kind, Random& random) {
  constexpr int64_t kLargest = 99;
  const bool shrink_above = kind.rank < 0 || (kind.rank == 0 && random.Below(2) == 0);
  if (shrink_above) return {0, random.Between(kLargest * 4 / 5, kLargest)};
  return {random.Between(0, kLargest / 5), kLargest};
}

}  // namespace

Samples MakeKvRetrieval(const TaskRequest& request) {
  std::vector<double> depths = request.depths;
  if (depths.empty()) depths = EvenDepths(request.needles > 0 ? request.needles : kPairsAsked);
  return MakePairs(request, "kv-retrieval", Slots(request, "kv-retrieval"), /*key_first=*/false,
                   [&](const Slot&) { return depths; });
}

Samples MakeKvRetrievalKeyFirst(const TaskRequest& request) {
  return MakePairs(
      request, "kv-retrieval-key-first", SlotsPerDepth(request, "kv-retrieval-key-first"),
      /*key_first=*/true, [](const Slot& slot) {
        Random random = slot.random;
        return std::vector<double>{slot.depth >= 0 ? slot.depth : RulerDepths(random, 1)[0]};
      });
}

Samples MakeMathFind(const TaskRequest& request) {
  const std::vector<Slot> slots = Slots(request, "math-find");
  const SizeRange sizes{.smallest = 5, .largest = 2 * request.length, .step = 256};
  return FitSamples(
      request, "math-find", static_cast<int64_t>(slots.size()), sizes,
      [&](int64_t index, int64_t size) {
        const Slot& slot = slots[static_cast<size_t>(index)];
        const FindKind& kind = kFindKinds[static_cast<size_t>(index) % std::size(kFindKinds)];
        Random random = slot.random;
        const auto [low, high] = FindRange(kind, random);
        // An odd number of them has an integer in the middle.
        std::vector<int64_t> numbers(static_cast<size_t>(size - 1 + size % 2));
        Sample sample{.id = slot.id, .metric = Metric::kFirstInteger, .max_new_tokens = 32};
        sample.text = Concat({"What is the ", kind.what, " in the following list?\n\n["});
        for (int64_t& number : numbers) {
          number = random.Between(low, high);
          if (&number != &numbers.front()) sample.text += ", ";
          sample.text += std::to_string(number);
        }
        sample.text += "]";
        sample.questions.push_back(
            {.prompt = Concat({"\n\nYou should answer with only one number, no other words. The ",
                               kind.what, " of the list is:"}),
             .answers = {std::to_string(Find(kind, numbers))},
             .label = std::string(kind.what)});
        return sample;
      });
}

}  // namespace infllm::services
