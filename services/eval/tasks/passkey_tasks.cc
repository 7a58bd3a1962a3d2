// Passkey and number string of OpenBMB/InfiniteBench (data/construct_synthetic_dataset.py,
// src/prompt.py), and many named keys in one text, which are our own.
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "services/eval/tasks/haystack.h"
#include "services/eval/tasks/plan.h"
#include "services/eval/tasks/random.h"
#include "services/eval/tasks/task_makers.h"
#include "services/eval/tasks/text.h"

namespace infllm::services {
namespace {

constexpr std::string_view kMemorize =
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.\n\n";
constexpr std::string_view kFind =
    "There is an important info hidden inside a lot of irrelevant text. Find it. "
    "I will quiz you about the important information there.\n\n";

// `subject` is what is hidden: "The SUBJECT is KEY. Remember it. KEY is the SUBJECT."
Statement KeyStatement(std::string_view subject, std::string_view key, double depth) {
  return {Concat({"The ", subject, " is ", key, ". Remember it. ", key, " is the ", subject, "."}),
          depth};
}

PlannedQuestion AskForKey(std::string_view subject, std::string key, size_t statement,
                          std::string label) {
  return {.prompt = Concat({"\n\nWhat is the ", subject, "? The ", subject, " is"}),
          .answers = {std::move(key)},
          .evidence = {statement},
          .label = std::move(label)};
}

// One key in each text.
Samples MakeOneKey(const TaskRequest& request, std::string_view task, std::string_view before,
                   std::string_view subject, std::string (*draw_key)(Random&)) {
  const PlanTraits traits{.task = task, .metric = Metric::kFirstDigits, .max_new_tokens = 32};
  return MakePlanned(
      request, traits, Haystack::Of(request.haystack), SlotsPerDepth(request, task),
      [&](Slot& slot) {
        const double depth = slot.depth >= 0 ? slot.depth : RulerDepths(slot.random, 1)[0];
        std::string key = draw_key(slot.random);
        return SamplePlan{
            .before = std::string(before),
            .statements = {KeyStatement(subject, key, depth)},
            .questions = {AskForKey(subject, std::move(key), 0, std::string(subject))}};
      });
}

}  // namespace

Samples MakePasskey(const TaskRequest& request) {
  return MakeOneKey(request, "passkey", kMemorize, "pass key",
                    [](Random& random) { return RandomDigits(random, 5); });
}

Samples MakeNumberString(const TaskRequest& request) {
  return MakeOneKey(request, "number-string", kFind, "sequence of digits", [](Random& random) {
    std::string key = RandomDigits(random, 5);
    for (int i = 0; i < 5; ++i) {
      const size_t repeated = random.Below(key.size());
      key.insert(repeated, 1, key[repeated]);
    }
    return key;
  });
}

Samples MakeMultikey(const TaskRequest& request) {
  constexpr int64_t kKeys = 20;
  const std::vector<double> depths = EvenDepths(request.needles > 0 ? request.needles : kKeys);
  const PlanTraits traits{.task = "multikey", .metric = Metric::kFirstDigits, .max_new_tokens = 16};
  return MakePlanned(
      request, traits, Haystack::Of(request.haystack), Slots(request, traits.task),
      [&](Slot& slot) {
        NameSource names(slot.random);
        SamplePlan plan{.before = std::string(kMemorize)};
        for (size_t i = 0; i < depths.size(); ++i) {
          std::string name = names.Next();
          std::string key = RandomDigits(slot.random, 5);
          const std::string subject = Concat({"pass key of ", name});
          plan.statements.push_back(KeyStatement(subject, key, depths[i]));
          plan.questions.push_back(AskForKey(subject, std::move(key), i, std::move(name)));
        }
        return plan;
      });
}

}  // namespace infllm::services
