#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "kernels/core/status_macros.h"
#include "services/eval/tasks/plan.h"
#include "services/eval/tasks/task.h"
#include "services/eval/tasks/task_makers.h"

namespace infllm::services {
namespace {

enum Traits : int { kPlain = 0, kDepths = 1, kFile = 2 };

class ListedTask final : public Task {
 public:
  ListedTask(std::string_view name, int traits, Samples (*make)(const TaskRequest&),
             std::string_view summary)
      : name_(name), summary_(summary), traits_(traits), make_(make) {}

  std::string_view name() const override { return name_; }
  std::string_view summary() const override { return summary_; }
  bool has_depths() const override { return (traits_ & kDepths) != 0; }
  bool needs_file() const override { return (traits_ & kFile) != 0; }
  Samples Make(const TaskRequest& request) const override {
    INFLLM_RETURN_IF_ERROR(CheckRequest(request));
    if (needs_file() && request.data_file.empty()) {
      return absl::InvalidArgumentError("data_file is empty: " + std::string(name_) +
                                        " reads its samples from a file");
    }
    return make_(request);
  }

 private:
  const std::string_view name_;
  const std::string_view summary_;
  const int traits_;
  Samples (*const make_)(const TaskRequest&);
};

const std::vector<ListedTask>& ListedTasks() {
  static const std::vector<ListedTask> tasks = {
      {"passkey", kDepths, MakePasskey, "one five-digit key hidden in the text (InfiniteBench)"},
      {"number-string", kDepths, MakeNumberString,
       "ten digits with repeats hidden in the text (InfiniteBench)"},
      {"multikey", kPlain, MakeMultikey, "20 named keys hidden in one text, each asked for"},
      {"needle", kDepths, MakeNeedle,
       "a named number at each depth of one text, each asked for (needle in a haystack grid)"},
      {"kv-retrieval", kDepths, MakeKvRetrieval,
       "values of a JSON object of UUIDs, several asked of one text (InfiniteBench)"},
      {"kv-retrieval-key-first", kDepths, MakeKvRetrievalKeyFirst,
       "the same, the key named before the object, too (as InfLLM asks it)"},
      {"math-find", kPlain, MakeMathFind,
       "the largest, second smallest, median... of a list of numbers (InfiniteBench)"},
      {"niah_single_1", kDepths, MakeNiahSingle1, "a number in repeated noise (RULER)"},
      {"niah_single_2", kDepths, MakeNiahSingle2, "a number in running text (RULER)"},
      {"niah_single_3", kDepths, MakeNiahSingle3, "a UUID in running text (RULER)"},
      {"niah_multikey_1", kPlain, MakeNiahMultikey1, "one of four named numbers (RULER)"},
      {"niah_multikey_2", kPlain, MakeNiahMultikey2,
       "one of very many named numbers, nothing else in the text (RULER)"},
      {"niah_multikey_3", kPlain, MakeNiahMultikey3, "the same with UUIDs for both (RULER)"},
      {"niah_multivalue", kPlain, MakeNiahMultivalue, "four numbers of one name (RULER)"},
      {"niah_multiquery", kPlain, MakeNiahMultiquery,
       "four named numbers, asked for in one question (RULER)"},
      {"vt", kPlain, MakeVariableTracking, "all variables of a chain of five assignments (RULER)"},
      {"cwe", kPlain, MakeCommonWords, "the ten most common words of a list (RULER)"},
      {"fwe", kPlain, MakeFrequentWords, "the three most frequent coded words (RULER)"},
      {"longchat-lines", kFile, MakeLongChatLines,
       "the number of one of many lines; a JSON lines file of LongChat"},
      {"lost-in-the-middle-kv", kDepths | kFile, MakeLostInTheMiddleKv,
       "a value of a JSON object; a JSON lines file of lost-in-the-middle"},
      {"babi-in-haystack", kFile, MakeBabiInHaystack,
       "a question about facts spread over the text (BABILong); a file of bAbI"},
  };
  return tasks;
}

}  // namespace

std::span<const Task* const> Tasks() {
  static const std::vector<const Task*> pointers = [] {
    std::vector<const Task*> all;
    for (const ListedTask& task : ListedTasks()) all.push_back(&task);
    return all;
  }();
  return pointers;
}

absl::StatusOr<const Task*> FindTask(std::string_view name) {
  std::string names;
  for (const Task* const task : Tasks()) {
    if (task->name() == name) return task;
    names += (names.empty() ? "" : ", ") + std::string(task->name());
  }
  return absl::NotFoundError("no task is called \"" + std::string(name) + "\"; there are " + names);
}

}  // namespace infllm::services
