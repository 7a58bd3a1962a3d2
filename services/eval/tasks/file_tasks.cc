// Tasks whose samples are read from the benchmarks' own files: lines of DachengLi1/LongChat, pairs
// of nelson-liu/lost-in-the-middle, and bAbI's facts spread over a haystack as booydar/babilong
// does.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "kernels/core/status_macros.h"
#include "services/eval/tasks/fit.h"
#include "services/eval/tasks/haystack.h"
#include "services/eval/tasks/plan.h"
#include "services/eval/tasks/random.h"
#include "services/eval/tasks/task_files.h"
#include "services/eval/tasks/task_makers.h"
#include "services/eval/tasks/text.h"

namespace infllm::services {
namespace {

template <typename Record>
absl::StatusOr<std::vector<Record>> ReadRecords(
    const TaskRequest& request, absl::StatusOr<std::vector<Record>> (*parse)(std::string_view)) {
  INFLLM_ASSIGN_OR_RETURN(const std::string text, ReadTaskFile(request.data_file));
  absl::StatusOr<std::vector<Record>> records = parse(text);
  if (!records.ok()) {
    return absl::Status(records.status().code(),
                        request.data_file + ": " + std::string(records.status().message()));
  }
  return records;
}

// The records in an order of their own for each seed.
template <typename Record>
std::vector<Record> Shuffled(const TaskRequest& request, std::string_view task,
                             std::vector<Record> records) {
  Random random(request.seed, task, 0);
  random.Shuffle(records);
  return records;
}

absl::Status TooFewRecords(const TaskRequest& request, size_t records) {
  return absl::InvalidArgumentError(
      absl::StrFormat("samples %d: %s holds %d", request.samples, request.data_file, records));
}

// `n` of a record's `all` entries: the asked one, which comes to `place`, and the others in order.
std::vector<size_t> Chosen(size_t all, size_t asked, size_t n, size_t place) {
  std::vector<size_t> chosen;
  for (size_t i = 0; i < all && chosen.size() + 1 < n; ++i) {
    if (i != asked) chosen.push_back(i);
  }
  chosen.insert(chosen.begin() + static_cast<std::ptrdiff_t>(std::min(place, chosen.size())),
                asked);
  return chosen;
}

// Where the asked entry stands among n, when it stands at `asked` among `all`.
size_t Scaled(size_t asked, size_t all, size_t n) {
  return static_cast<size_t>(std::llround(static_cast<double>(asked) * static_cast<double>(n - 1) /
                                          static_cast<double>(std::max<size_t>(all - 1, 1))));
}

Sample LongChatSample(const LongChatRecord& record, std::string id, size_t lines) {
  const size_t place = Scaled(record.asked, record.lines.size(), lines);
  Sample sample{.id = std::move(id), .text = record.before, .metric = Metric::kFirstInteger};
  sample.max_new_tokens = 100;
  Question question{
      .prompt = Concat({"\n\nNow the record is over. Tell me what is the <REGISTER_CONTENT> in "
                        "line ",
                        record.name, "? The <REGISTER_CONTENT> in line ", record.name, " is"}),
      .answers = {record.answer},
      .label = record.name};
  for (const size_t i : Chosen(record.lines.size(), record.asked, lines, place)) {
    if (sample.text.size() > record.before.size()) sample.text += '\n';
    const auto begin = static_cast<int64_t>(sample.text.size());
    sample.text += record.lines[i];
    if (i == record.asked) question.evidence = {{begin, static_cast<int64_t>(sample.text.size())}};
  }
  question.depth =
      static_cast<double>(question.evidence[0].begin) / static_cast<double>(sample.text.size());
  sample.questions.push_back(std::move(question));
  return sample;
}

// `depth` below 0: where the file has the pair.
Sample KeyValueSample(const KeyValueRecord& record, std::string id, double depth, size_t pairs) {
  const size_t place =
      depth < 0 ? Scaled(record.asked, record.pairs.size(), pairs)
                : static_cast<size_t>(std::llround(depth * static_cast<double>(pairs - 1)));
  Sample sample{.id = std::move(id), .metric = Metric::kAnySubstring, .max_new_tokens = 100};
  sample.text =
      "Extract the value corresponding to the specified key in the JSON object below.\n\n"
      "JSON data:\n{";
  const auto& [key, value] = record.pairs[record.asked];
  Question question{.prompt = Concat({"\n\nKey: \"", key, "\"\nCorresponding value:"}),
                    .answers = {value},
                    .depth = depth,
                    .label = key};
  if (depth < 0) question.depth = static_cast<double>(place) / static_cast<double>(pairs - 1);
  bool first = true;
  for (const size_t i : Chosen(record.pairs.size(), record.asked, pairs, place)) {
    if (!std::exchange(first, false)) sample.text += ",\n ";
    const auto begin = static_cast<int64_t>(sample.text.size());
    sample.text += Concat({"\"", record.pairs[i].first, "\": \"", record.pairs[i].second, "\""});
    if (i == record.asked) question.evidence = {{begin, static_cast<int64_t>(sample.text.size())}};
  }
  sample.text += "}";
  sample.questions.push_back(std::move(question));
  return sample;
}

// One sample, as long as the record allows.
template <typename Build>
Samples FitRecord(const TaskRequest& request, std::string_view task, size_t entries,
                  const Build& build) {
  const SizeRange sizes{
      .smallest = 2, .largest = static_cast<int64_t>(std::max<size_t>(entries, 2)), .step = 32};
  return FitSamples(request, task, 1, sizes, [&](int64_t, int64_t size) {
    return build(static_cast<size_t>(std::min(size, static_cast<int64_t>(entries))));
  });
}

SamplePlan PlanBabi(const BabiQuestion& babi, Random random) {
  SamplePlan plan{
      .before =
          "I will give you context with the facts hidden in some random text and a question. "
          "You need to answer the question based only on the information from the facts.\n"
          "<context>\n"};
  std::vector<double> depths(babi.facts.size());
  std::generate(depths.begin(), depths.end(), [&] { return random.Fraction(); });
  std::sort(depths.begin(), depths.end());
  for (size_t i = 0; i < depths.size(); ++i) plan.statements.push_back({babi.facts[i], depths[i]});
  plan.questions.push_back(
      {.prompt = Concat({"\n</context>\nQuestion: ", babi.question, "\nAnswer:"}),
       .answers = {babi.answer},
       .evidence = babi.supporting,
       .label = babi.question});
  return plan;
}

}  // namespace

Samples MakeLongChatLines(const TaskRequest& request) {
  constexpr std::string_view kTask = "longchat-lines";
  INFLLM_ASSIGN_OR_RETURN(std::vector<LongChatRecord> records,
                          ReadRecords(request, ParseLongChatLines));
  if (request.samples > static_cast<int64_t>(records.size())) {
    return TooFewRecords(request, records.size());
  }
  records = Shuffled(request, kTask, std::move(records));
  std::vector<Sample> samples;
  for (const Slot& slot : Slots(request, kTask)) {
    const LongChatRecord& record = records[samples.size()];
    INFLLM_ASSIGN_OR_RETURN(std::vector<Sample> fitted,
                            FitRecord(request, kTask, record.lines.size(), [&](size_t lines) {
                              return LongChatSample(record, slot.id, lines);
                            }));
    samples.push_back(std::move(fitted[0]));
  }
  return samples;
}

Samples MakeLostInTheMiddleKv(const TaskRequest& request) {
  constexpr std::string_view kTask = "lost-in-the-middle-kv";
  INFLLM_ASSIGN_OR_RETURN(std::vector<KeyValueRecord> records,
                          ReadRecords(request, ParseKeyValueRecords));
  if (request.samples > static_cast<int64_t>(records.size())) {
    return TooFewRecords(request, records.size());
  }
  records = Shuffled(request, kTask, std::move(records));
  std::vector<Sample> samples;
  for (const Slot& slot : SlotsPerDepth(request, kTask)) {
    // The same records at each depth: what differs is where the pair stands.
    const KeyValueRecord& record = records[samples.size() % static_cast<size_t>(request.samples)];
    INFLLM_ASSIGN_OR_RETURN(std::vector<Sample> fitted,
                            FitRecord(request, kTask, record.pairs.size(), [&](size_t pairs) {
                              return KeyValueSample(record, slot.id, slot.depth, pairs);
                            }));
    samples.push_back(std::move(fitted[0]));
  }
  return samples;
}

Samples MakeBabiInHaystack(const TaskRequest& request) {
  const PlanTraits traits{
      .task = "babi-in-haystack", .metric = Metric::kFirstSentence, .max_new_tokens = 20};
  INFLLM_ASSIGN_OR_RETURN(std::vector<BabiQuestion> questions, ReadRecords(request, ParseBabi));
  questions = Shuffled(request, traits.task, std::move(questions));
  const Haystack haystack = Haystack::Of(request.haystack);
  std::vector<Sample> samples;
  std::vector<Slot> slots = Slots(request, traits.task);
  absl::Status too_long;
  for (const BabiQuestion& question : questions) {
    if (samples.size() == slots.size()) break;
    const Slot& slot = slots[samples.size()];
    Samples made = MakePlanned(request, traits, haystack, {slot},
                               [&](Slot& own) { return PlanBabi(question, own.random); });
    // A story too long for the length gives way to the next one.
    if (!made.ok()) {
      too_long = made.status();
      continue;
    }
    samples.push_back(std::move((*made)[0]));
  }
  if (samples.empty()) return too_long;
  if (samples.size() < slots.size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("samples %d: %s holds %d questions whose facts fit into %d tokens",
                        request.samples, request.data_file, samples.size(), request.length));
  }
  return samples;
}

}  // namespace infllm::services
