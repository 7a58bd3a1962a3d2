// Needles in a haystack as NVIDIA/RULER asks for them (scripts/data/synthetic/niah.py, constants.py
// and synthetic.yaml), and a grid of depths asked of one text, which is our own.
#include <algorithm>
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

namespace infllm::services {
namespace {

enum class Value { kNumber, kUuid };

struct NiahKind {
  std::string_view task;
  bool noise = false;  // the noise line, whatever haystack the request has
  Value value = Value::kNumber;
  int64_t keys = 1;
  int64_t values = 1;   // of each key
  int64_t queries = 1;  // keys asked for in one question
};

std::string_view Plural(Value value) { return value == Value::kNumber ? "numbers" : "uuids"; }
std::string_view Singular(Value value) { return value == Value::kNumber ? "number" : "uuid"; }

std::string DrawValue(Random& random, Value value) {
  return value == Value::kNumber ? RandomNumber(random) : RandomUuid(random);
}

std::string Needle(Value kind, std::string_view key, std::string_view value) {
  return Concat({"One of the special magic ", Plural(kind), " for ", key, " is: ", value, "."});
}

std::string Instruction(Value value, bool several) {
  if (several) {
    return Concat({"Some special magic ", Plural(value),
                   " are hidden within the following text. Make sure to memorize it. I will quiz "
                   "you about the ",
                   Plural(value), " afterwards.\n"});
  }
  return Concat({"A special magic ", Singular(value),
                 " is hidden within the following text. Make sure to memorize it. I will quiz you "
                 "about the ",
                 Singular(value), " afterwards.\n"});
}

std::string Prompt(Value value, std::string_view query, bool several) {
  if (several) {
    return Concat({"\nWhat are all the special magic ", Plural(value), " for ", query,
                   " mentioned in the provided text? The special magic ", Plural(value), " for ",
                   query, " mentioned in the provided text are"});
  }
  return Concat({"\nWhat is the special magic ", Singular(value), " for ", query,
                 " mentioned in the provided text? The special magic ", Singular(value), " for ",
                 query, " mentioned in the provided text is"});
}

// "a", "a, and b", "a, b, and c", with RULER's comma between two.
std::string Enumerate(const std::vector<std::string>& names) {
  std::string all;
  for (size_t i = 0; i < names.size(); ++i) {
    if (i > 0) all += i + 1 == names.size() ? ", and " : ", ";
    all += names[i];
  }
  return all;
}

SamplePlan PlanNiah(const NiahKind& kind, Slot& slot) {
  const bool several = kind.queries * kind.values > 1;
  SamplePlan plan{.before = Instruction(kind.value, several)};
  struct Hidden {
    std::string key;
    std::string value;
  };
  std::vector<Hidden> hidden;
  NameSource names(slot.random);
  std::vector<std::string> keys;
  for (int64_t k = 0; k < kind.keys; ++k) {
    keys.push_back(names.Next());
    for (int64_t v = 0; v < kind.values; ++v) {
      hidden.push_back({keys.back(), DrawValue(slot.random, kind.value)});
    }
  }
  std::vector<std::string> asked = keys;
  slot.random.Shuffle(asked);
  asked.resize(static_cast<size_t>(kind.queries));

  // The needles are in any order.
  slot.random.Shuffle(hidden);
  std::vector<double> depths = RulerDepths(slot.random, kind.keys * kind.values);
  if (slot.depth >= 0) depths = {slot.depth};
  for (size_t i = 0; i < hidden.size(); ++i) {
    plan.statements.push_back({Needle(kind.value, hidden[i].key, hidden[i].value), depths[i]});
  }
  PlannedQuestion question{.label = Enumerate(asked)};
  question.prompt = Prompt(kind.value, question.label, several);
  for (size_t i = 0; i < hidden.size(); ++i) {
    if (std::find(asked.begin(), asked.end(), hidden[i].key) == asked.end()) continue;
    question.answers.push_back(hidden[i].value);
    question.evidence.push_back(i);
  }
  plan.questions.push_back(std::move(question));
  return plan;
}

Samples MakeNiah(const TaskRequest& request, const NiahKind& kind) {
  const bool has_depths = kind.keys * kind.values == 1;
  const PlanTraits traits{.task = kind.task, .max_new_tokens = 128};
  return MakePlanned(request, traits,
                     kind.noise ? Haystack::Noise() : Haystack::Of(request.haystack),
                     has_depths ? SlotsPerDepth(request, kind.task) : Slots(request, kind.task),
                     [&](Slot& slot) { return PlanNiah(kind, slot); });
}

// The haystack is needles too, a line each, and one of them is asked for. `uuids`: as keys and
// values.
Samples MakeAllNeedles(const TaskRequest& request, std::string_view task, bool uuids) {
  const Value value = uuids ? Value::kUuid : Value::kNumber;
  const std::vector<Slot> slots = Slots(request, task);
  const SizeRange sizes{.smallest = 1, .largest = 2 * request.length, .step = 32};
  return FitSamples(
      request, task, static_cast<int64_t>(slots.size()), sizes, [&](int64_t index, int64_t size) {
        const Slot& slot = slots[static_cast<size_t>(index)];
        Random random = slot.random;
        NameSource names(random);
        const auto asked = static_cast<int64_t>(random.Fraction() * static_cast<double>(size));
        Sample sample{.id = slot.id, .max_new_tokens = 128};
        sample.text = Instruction(value, /*several=*/false);
        for (int64_t i = 0; i < size; ++i) {
          const std::string key = uuids ? RandomUuid(random) : names.Next();
          std::string hidden = DrawValue(random, value);
          if (i > 0) sample.text += '\n';
          const auto begin = static_cast<int64_t>(sample.text.size());
          sample.text += Needle(value, key, hidden);
          if (i != asked) continue;
          sample.questions.push_back(
              {.prompt = Prompt(value, key, /*several=*/false),
               .answers = {std::move(hidden)},
               .evidence = {{begin, static_cast<int64_t>(sample.text.size())}},
               .depth = static_cast<double>(i) / static_cast<double>(size),
               .label = key});
        }
        return sample;
      });
}

}  // namespace

Samples MakeNeedle(const TaskRequest& request) {
  constexpr int64_t kNeedles = 10;
  std::vector<double> depths = request.depths;
  if (depths.empty()) depths = EvenDepths(request.needles > 0 ? request.needles : kNeedles);
  const PlanTraits traits{.task = "needle", .max_new_tokens = 32};
  return MakePlanned(
      request, traits, Haystack::Of(request.haystack), Slots(request, traits.task),
      [&](Slot& slot) {
        SamplePlan plan{.before = Instruction(Value::kNumber, /*several=*/true)};
        NameSource names(slot.random);
        for (size_t i = 0; i < depths.size(); ++i) {
          std::string name = names.Next();
          std::string number = RandomNumber(slot.random);
          plan.statements.push_back({Needle(Value::kNumber, name, number), depths[i]});
          plan.questions.push_back({.prompt = Prompt(Value::kNumber, name, /*several=*/false),
                                    .answers = {std::move(number)},
                                    .evidence = {i},
                                    .label = std::move(name)});
        }
        return plan;
      });
}

Samples MakeNiahSingle1(const TaskRequest& request) {
  return MakeNiah(request, {.task = "niah_single_1", .noise = true});
}
Samples MakeNiahSingle2(const TaskRequest& request) {
  return MakeNiah(request, {.task = "niah_single_2"});
}
Samples MakeNiahSingle3(const TaskRequest& request) {
  return MakeNiah(request, {.task = "niah_single_3", .value = Value::kUuid});
}
Samples MakeNiahMultikey1(const TaskRequest& request) {
  return MakeNiah(request, {.task = "niah_multikey_1", .keys = 4});
}
Samples MakeNiahMultikey2(const TaskRequest& request) {
  return MakeAllNeedles(request, "niah_multikey_2", /*uuids=*/false);
}
Samples MakeNiahMultikey3(const TaskRequest& request) {
  return MakeAllNeedles(request, "niah_multikey_3", /*uuids=*/true);
}
Samples MakeNiahMultivalue(const TaskRequest& request) {
  return MakeNiah(request, {.task = "niah_multivalue", .values = 4});
}
Samples MakeNiahMultiquery(const TaskRequest& request) {
  return MakeNiah(request, {.task = "niah_multiquery", .keys = 4, .queries = 4});
}

}  // namespace infllm::services
