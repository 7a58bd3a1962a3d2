// Variable tracking, frequent and common words of NVIDIA/RULER (scripts/data/synthetic/
// variable_tracking.py, freq_words_extraction.py, common_words_extraction.py and constants.py).
#include <algorithm>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "services/eval/tasks/fit.h"
#include "services/eval/tasks/haystack.h"
#include "services/eval/tasks/plan.h"
#include "services/eval/tasks/random.h"
#include "services/eval/tasks/task_makers.h"
#include "services/eval/tasks/text.h"
#include "services/eval/tasks/words.h"

namespace infllm::services {
namespace {

constexpr int64_t kHops = 4;

struct Chain {
  std::vector<std::string> names;  // kHops + 1 of them
  std::vector<std::string>
      statements;  // the first gives the value, each other names the one before
  std::string value;
};

Chain DrawChain(Random& random, int64_t letters) {
  Chain chain;
  chain.value = std::to_string(random.Between(10000, 99998));
  std::set<std::string> used;
  while (chain.names.size() < static_cast<size_t>(kHops) + 1) {
    std::string name = RandomLetters(random, letters, 'A');
    if (used.insert(name).second) chain.names.push_back(std::move(name));
  }
  chain.statements.push_back(Concat({"VAR ", chain.names[0], " = ", chain.value}));
  for (size_t i = 1; i < chain.names.size(); ++i) {
    chain.statements.push_back(Concat({"VAR ", chain.names[i], " = VAR ", chain.names[i - 1]}));
  }
  return chain;
}

struct TrackingText {
  std::string text;
  std::vector<TextRange> places;  // of the statements
};

// `lines` of noise, the statements before some of them, as RULER joins them: a noise line ends with
// a newline, every statement but the first with a space, and all are joined by spaces.
TrackingText TrackingContext(Random& random, const Chain& chain, int64_t lines) {
  const std::vector<int64_t> before =
      random.Distinct(static_cast<int64_t>(chain.statements.size()), lines);
  TrackingText context;
  size_t next = 0;  // statement
  for (int64_t line = 0; line < lines; ++line) {
    if (next < before.size() && before[next] == line) {
      if (line > 0) context.text += ' ';
      const auto begin = static_cast<int64_t>(context.text.size());
      context.text += chain.statements[next];
      context.places.push_back({begin, static_cast<int64_t>(context.text.size())});
      if (next > 0) context.text += ' ';
      context.text += ' ';
      ++next;
    } else if (line > 0) {
      context.text += ' ';
    }
    context.text += kNoiseLine;
    context.text += '\n';
  }
  return context;
}

constexpr std::string_view kTrackBefore =
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n";

// "assgined" is RULER's spelling, and what published scores were asked with.
std::string TrackPrompt(const Chain& chain) {
  return Concat({"\nQuestion: Find all variables that are assigned the value ", chain.value,
                 " in the text above. Answer: According to the chain(s) of variable assignment in "
                 "the text above, ",
                 std::to_string(chain.names.size()), " variables are assgined the value ",
                 chain.value, ", they are:"});
}

// A solved example of about 500 tokens precedes the text. RULER takes its newlines out of the
// question, not of the context.
std::string TrackExample(const TaskRequest& request, Random random) {
  constexpr int64_t kExampleTokens = 500;
  constexpr int64_t kAnswerTokens = 30;
  const Chain chain = DrawChain(random, /*letters=*/3);
  const auto build = [&](int64_t lines) {
    Random places = random;
    std::string prompt = TrackPrompt(chain);
    prompt[0] = ' ';
    std::string example = Concat({kTrackBefore.substr(0, kTrackBefore.size() - 2), " ",
                                  TrackingContext(places, chain, lines).text, prompt});
    for (const std::string& name : chain.names) example += Concat({" ", name});
    return example + "\n\n\n\n";
  };
  int64_t lines = kHops + 2;
  while (request.count_tokens(build(lines + 5)) + kAnswerTokens <= kExampleTokens) lines += 5;
  return build(lines);
}

// The share of rank k is k^-2 / zeta(2), zeta(2) = pi^2 / 6. In integers and one division: the same
// everywhere.
int64_t ZetaCount(int64_t words, int64_t rank) {
  constexpr double kZeta2 = 1.6449340668482264;
  const double rank_squared = static_cast<double>(rank) * static_cast<double>(rank);
  return static_cast<int64_t>(static_cast<double>(words) / (rank_squared * kZeta2));
}

struct CommonShape {
  int64_t common_repeats;
  int64_t other_repeats;
  int64_t example_words;
  int64_t example_common_repeats;
  int64_t example_other_repeats;
};

constexpr int64_t kCommonWords = 10;

// "1. word 2. word ...", and the words that are common in it.
struct WordList {
  std::string text;
  std::vector<std::string> common;
};

// Words of the list, then pairs of them where there are not enough.
std::vector<std::string> DrawWords(Random& random, int64_t n) {
  std::vector<std::string> words;
  for (const std::string_view word : Nouns()) words.emplace_back(word);
  for (const std::string_view word : Adjectives()) words.emplace_back(word);
  random.Shuffle(words);
  NameSource names(random);
  while (static_cast<int64_t>(words.size()) < n) words.push_back(names.Next());
  words.resize(static_cast<size_t>(n));
  return words;
}

WordList DrawWordList(Random& random, int64_t n, int64_t common_repeats, int64_t other_repeats) {
  const std::vector<std::string> words = DrawWords(random, n);
  std::vector<size_t> order;
  for (size_t i = 0; i < words.size(); ++i) {
    const int64_t repeats = static_cast<int64_t>(i) < kCommonWords ? common_repeats : other_repeats;
    order.insert(order.end(), static_cast<size_t>(repeats), i);
  }
  random.Shuffle(order);
  WordList list;
  for (size_t i = 0; i < order.size(); ++i) {
    if (i > 0) list.text += ' ';
    list.text += Concat({std::to_string(i + 1), ". ", words[order[i]]});
  }
  list.common.assign(words.begin(), words.begin() + kCommonWords);
  return list;
}

constexpr std::string_view kCommonBefore =
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n";
constexpr std::string_view kCommonPrompt =
    "\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 words "
    "that appear most often in the list are:";

}  // namespace

Samples MakeVariableTracking(const TaskRequest& request) {
  const std::vector<Slot> slots = Slots(request, "vt");
  const std::string before =
      TrackExample(request, Random(request.seed, "vt example", 0)) + std::string(kTrackBefore);
  const SizeRange sizes{.smallest = kHops + 2, .largest = 2 * request.length, .step = 32};
  return FitSamples(
      request, "vt", static_cast<int64_t>(slots.size()), sizes, [&](int64_t index, int64_t size) {
        const Slot& slot = slots[static_cast<size_t>(index)];
        Random random = slot.random;
        const Chain chain = DrawChain(random, /*letters=*/5);
        const TrackingText context = TrackingContext(random, chain, size);
        Sample sample{.id = slot.id, .max_new_tokens = 30};
        sample.text = before + context.text;
        Question question{
            .prompt = TrackPrompt(chain), .answers = chain.names, .label = chain.value};
        const auto offset = static_cast<int64_t>(before.size());
        for (const TextRange& place : context.places) {
          question.evidence.push_back({offset + place.begin, offset + place.end});
        }
        question.depth = static_cast<double>(question.evidence[0].begin) /
                         static_cast<double>(sample.text.size());
        sample.questions.push_back(std::move(question));
        return sample;
      });
}

Samples MakeFrequentWords(const TaskRequest& request) {
  constexpr size_t kLetters = 6;
  // Fewer words, and the fourth rank is not more frequent than the fifth.
  constexpr int64_t kFewestWords = 75;
  const std::vector<Slot> slots = Slots(request, "fwe");
  const int64_t vocabulary = std::max<int64_t>(request.length / 50, 5);
  const SizeRange sizes{.smallest = kFewestWords, .largest = 2 * request.length, .step = 256};
  return FitSamples(
      request, "fwe", static_cast<int64_t>(slots.size()), sizes, [&](int64_t index, int64_t size) {
        const Slot& slot = slots[static_cast<size_t>(index)];
        Random random = slot.random;
        std::set<std::string> used;
        std::vector<std::string> words = {"..."};  // the most frequent is noise
        std::vector<size_t> order;
        for (int64_t rank = 1; rank <= vocabulary && ZetaCount(size, rank) > 0; ++rank) {
          while (static_cast<int64_t>(words.size()) < rank) {
            std::string word = RandomLetters(random, kLetters, 'a');
            if (used.insert(word).second) words.push_back(std::move(word));
          }
          order.insert(order.end(), static_cast<size_t>(ZetaCount(size, rank)), words.size() - 1);
        }
        random.Shuffle(order);
        Sample sample{.id = slot.id, .max_new_tokens = 50};
        sample.text =
            "Read the following coded text and track the frequency of each coded word. Find the "
            "three most frequently appeared coded words.";
        for (const size_t word : order) sample.text += Concat({" ", words[word]});
        sample.questions.push_back(
            {.prompt = "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. "
                       "What are the three most frequently appeared words in the above coded text? "
                       "Answer: According to the coded text above, the three most frequently "
                       "appeared words are:",
             .answers = {words[1], words[2], words[3]},
             .label = Concat({words[1], " ", words[2], " ", words[3]})});
        return sample;
      });
}

Samples MakeCommonWords(const TaskRequest& request) {
  constexpr int64_t kShortLength = 4096;
  constexpr CommonShape kShort{6, 1, 20, 3, 1};
  constexpr CommonShape kLong{30, 3, 40, 10, 3};
  const CommonShape shape = request.length < kShortLength ? kShort : kLong;
  const std::vector<Slot> slots = Slots(request, "cwe");
  const SizeRange sizes{.smallest = kCommonWords + 1, .largest = 2 * request.length, .step = 64};
  return FitSamples(
      request, "cwe", static_cast<int64_t>(slots.size()), sizes, [&](int64_t index, int64_t size) {
        const Slot& slot = slots[static_cast<size_t>(index)];
        Random random = slot.random;
        const WordList example = DrawWordList(
            random, shape.example_words, shape.example_common_repeats, shape.example_other_repeats);
        WordList list = DrawWordList(random, size, shape.common_repeats, shape.other_repeats);
        Sample sample{.id = slot.id, .max_new_tokens = 120};
        sample.text = Concat({kCommonBefore, example.text, kCommonPrompt});
        for (size_t i = 0; i < example.common.size(); ++i) {
          // RULER's answers follow the colon without a space.
          sample.text += Concat({i > 0 ? " " : "", std::to_string(i + 1), ". ", example.common[i]});
        }
        sample.text += Concat({"\n", kCommonBefore, list.text});
        sample.questions.push_back({.prompt = std::string(kCommonPrompt),
                                    .answers = std::move(list.common),
                                    .label = "10 most common words"});
        return sample;
      });
}

}  // namespace infllm::services
