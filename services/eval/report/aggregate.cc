#include "services/eval/report/aggregate.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <tuple>

namespace infllm::services {
namespace {

constexpr size_t kMostDepthRows = 21;
constexpr size_t kMostWorst = 20;

template <typename T>
size_t IndexOf(const std::vector<T>& values, const T& value) {
  return static_cast<size_t>(std::find(values.begin(), values.end(), value) - values.begin());
}

template <typename T>
void AddOnce(std::vector<T>& values, const T& value) {
  if (IndexOf(values, value) == values.size()) values.push_back(value);
}

// The last record of each key, in the order in which the keys first appear.
template <typename Record, typename KeyOf>
std::vector<const Record*> LastOfEach(const std::vector<Record>& records, KeyOf key_of) {
  std::vector<const Record*> kept;
  std::map<decltype(key_of(records.front())), size_t> index;
  for (const Record& record : records) {
    const auto [it, is_new] = index.try_emplace(key_of(record), kept.size());
    if (is_new) kept.emplace_back();
    kept[it->second] = &record;
  }
  return kept;
}

// The records of one task, each key once.
struct TaskRecords {
  std::vector<const AnswerRecord*> answers;
  std::vector<const IngestRecord*> ingests;
  std::vector<const SkipRecord*> skips;
};

double Rounded(double depth, double steps) { return std::round(depth * steps) / steps; }

// The depths of a grid are rows. Needles at random depths would make rows with a few answers each,
// and are rounded to tenths.
double DepthSteps(const std::vector<const AnswerRecord*>& answers) {
  constexpr double kFine = 1000, kCoarse = 10;  // 2.5% is a row
  std::map<int64_t, std::set<double>> by_length;
  for (const AnswerRecord* answer : answers) {
    if (answer->depth >= 0) by_length[answer->length].insert(Rounded(answer->depth, kFine));
  }
  const bool grid = std::all_of(by_length.begin(), by_length.end(), [&](const auto& entry) {
    return entry.second.size() <= kMostDepthRows && entry.second == by_length.begin()->second;
  });
  return grid ? kFine : kCoarse;
}

void AddAnswer(const AnswerRecord& answer, Cell& cell) {
  cell.all.Add(answer);
  cell.seconds += answer.seconds;
  cell.cache_hits += static_cast<double>(answer.cache_hits);
  cell.cache_misses += static_cast<double>(answer.cache_misses);
  cell.miss_bytes += static_cast<double>(answer.miss_bytes);
  if (!answer.retrieval.has_value() || answer.retrieval->in_window) return;
  ++cell.retrieved;
  cell.layers += static_cast<double>(answer.retrieval->layers.size());
  if (answer.retrieval->best_rank > 0) cell.ranks.push_back(answer.retrieval->best_rank);
}

void AddIngest(const IngestRecord& ingest, Cell& cell) {
  ++cell.texts;
  cell.tokens_read += static_cast<double>(ingest.tokens_read);
  cell.read_seconds += ingest.seconds;
  cell.ram_bytes = std::max(cell.ram_bytes, ingest.ram_bytes);
  cell.cold_bytes = std::max(cell.cold_bytes, ingest.cold_bytes);
  cell.peak_rss_bytes = std::max(cell.peak_rss_bytes, ingest.peak_rss_bytes);
}

// A broken configuration would fill the list alone, so each gives its worst in turn.
void PickWorst(std::vector<const AnswerRecord*> answers, TaskSummary& task) {
  std::erase_if(answers, [](const AnswerRecord* answer) { return answer->score >= 1; });
  task.wrong = static_cast<int64_t>(answers.size());
  std::stable_sort(answers.begin(), answers.end(),
                   [](const auto* a, const auto* b) { return a->score < b->score; });
  std::map<std::string, size_t> turns;
  std::vector<std::pair<size_t, const AnswerRecord*>> order;  // by turn
  for (const AnswerRecord* answer : answers) order.emplace_back(turns[answer->config]++, answer);
  std::stable_sort(order.begin(), order.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  order.resize(std::min(order.size(), kMostWorst));
  for (const std::string& config : task.configs) {
    for (const auto& [turn, answer] : order) {
      if (answer->config == config) task.worst.push_back(answer);
    }
  }
}

TaskSummary SummarizeTask(const std::string& name, const std::vector<std::string>& all_configs,
                          const TaskRecords& records) {
  TaskSummary task{.name = name};
  std::set<std::string> configs;
  std::set<int64_t> lengths;
  const auto note = [&](const auto& some) {
    for (const auto* record : some) {
      configs.insert(record->config);
      lengths.insert(record->length);
    }
  };
  note(records.answers);
  note(records.ingests);
  note(records.skips);
  std::copy_if(all_configs.begin(), all_configs.end(), std::back_inserter(task.configs),
               [&](const std::string& config) { return configs.contains(config); });
  task.lengths.assign(lengths.begin(), lengths.end());

  const double steps = DepthSteps(records.answers);
  std::set<double> depths;
  for (const AnswerRecord* answer : records.answers) {
    if (answer->depth >= 0) depths.insert(Rounded(answer->depth, steps));
  }
  task.depths.assign(depths.begin(), depths.end());
  Cell empty;
  empty.by_depth.resize(depths.size());
  task.cells.assign(task.configs.size(), std::vector<Cell>(task.lengths.size(), empty));
  const auto cell_of = [&](const auto& record) -> Cell& {
    return task.cells[IndexOf(task.configs, record.config)][IndexOf(task.lengths, record.length)];
  };
  for (const AnswerRecord* answer : records.answers) {
    Cell& cell = cell_of(*answer);
    AddAnswer(*answer, cell);
    if (answer->depth < 0) continue;
    cell.by_depth[IndexOf(task.depths, Rounded(answer->depth, steps))].Add(*answer);
  }
  for (const IngestRecord* ingest : records.ingests) AddIngest(*ingest, cell_of(*ingest));
  for (const SkipRecord* skip : records.skips) {
    Cell& cell = cell_of(*skip);
    if (cell.all.score.n > 0 || cell.texts > 0) continue;
    cell.skip_reason = skip->reason.empty() ? "no reason given" : skip->reason;
  }
  constexpr double kRounding = 1e-9;
  for (const auto& row : task.cells) {
    if (task.lengths.size() == 1) break;
    int64_t& effective = task.effective_lengths.emplace_back(0);
    for (size_t i = 0; i < row.size(); ++i) {
      const Share& score = row[i].all.score;
      if (score.n > 0 && score.mean() >= kEffectiveScore - kRounding) effective = task.lengths[i];
    }
  }
  PickWorst(records.answers, task);
  return task;
}

}  // namespace

Interval WilsonInterval(double mean, int64_t n) {
  constexpr double kZ = 1.959963984540054;  // normal quantile of 0.975
  const double trials = static_cast<double>(n);
  const double z2_n = kZ * kZ / trials;
  const double center = mean + z2_n / 2;
  const double spread = kZ * std::sqrt(mean * (1 - mean) / trials + z2_n / (4 * trials));
  return {.low = std::max(0.0, (center - spread) / (1 + z2_n)),
          .high = std::min(1.0, (center + spread) / (1 + z2_n))};
}

void AnswerShares::Add(const AnswerRecord& answer) {
  score.Add(answer.score);
  if (!answer.retrieval.has_value()) return;
  recall.Add(answer.retrieval->hit() ? 1 : 0);
  kept.Add(answer.retrieval->kept);
}

std::optional<double> Cell::median_rank() const {
  if (ranks.empty()) return std::nullopt;
  std::vector<int64_t> sorted = ranks;
  std::sort(sorted.begin(), sorted.end());
  const size_t last = sorted.size() - 1;
  return static_cast<double>(sorted[last / 2] + sorted[(last + 1) / 2]) / 2;
}

Summary Summarize(const Records& records) {
  Summary summary;
  std::vector<std::string> names;
  std::map<std::string, TaskRecords> tasks;
  const auto collect = [&](const auto& all, auto key_of, auto TaskRecords::*list) {
    for (const auto* record : LastOfEach(all, key_of)) {
      AddOnce(summary.configs, record->config);
      AddOnce(names, record->task);
      (tasks[record->task].*list).push_back(record);
    }
  };
  collect(
      records.answers,
      [](const auto& r) { return std::tie(r.config, r.task, r.length, r.sample, r.question); },
      &TaskRecords::answers);
  for (const PerplexityRecord& record : records.perplexities) {
    AddOnce(summary.configs, record.config);
    auto& all = summary.perplexities;
    auto it = std::find_if(all.begin(), all.end(), [&](const PerplexitySummary& one) {
      return one.text == record.text && one.length == record.length;
    });
    if (it == all.end()) {
      it = all.insert(it, {.text = record.text, .length = record.length, .curves = {}});
    }
    it->curves[IndexOf(summary.configs, record.config)][{record.begin, record.end}] =
        record.mean_nll;
  }
  collect(
      records.ingests, [](const auto& r) { return std::tie(r.config, r.task, r.length, r.sample); },
      &TaskRecords::ingests);
  collect(
      records.skips, [](const auto& r) { return std::tie(r.config, r.task, r.length); },
      &TaskRecords::skips);
  for (const std::string& name : names) {
    TaskSummary task = SummarizeTask(name, summary.configs, tasks[name]);
    if (name == kPerplexityTask) {
      summary.perplexity_runs = std::move(task);
    } else {
      summary.tasks.push_back(std::move(task));
    }
  }
  return summary;
}

}  // namespace infllm::services
