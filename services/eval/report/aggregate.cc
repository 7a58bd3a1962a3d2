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
    if (is_new) {
      kept.push_back(&record);
    } else {
      kept[it->second] = &record;
    }
  }
  return kept;
}

// Sums of a Share.
class ShareSum {
 public:
  void Add(double value) {
    ++n_;
    sum_ += value;
  }
  Share share() const {
    if (n_ == 0) return {};
    const double mean = std::clamp(sum_ / static_cast<double>(n_), 0.0, 1.0);
    return {.n = n_, .mean = mean, .interval = WilsonInterval(mean, n_)};
  }

 private:
  int64_t n_ = 0;
  double sum_ = 0;
};

struct AnswerSums {
  ShareSum score;
  ShareSum recall;
  ShareSum kept;
  void Add(const AnswerRecord& answer) {
    score.Add(answer.score);
    if (!answer.retrieval.has_value()) return;
    recall.Add(answer.retrieval->hit() ? 1 : 0);
    kept.Add(answer.retrieval->kept);
  }
  AnswerShares shares() const {
    return {.score = score.share(), .recall = recall.share(), .kept = kept.share()};
  }
};

std::optional<double> Median(std::vector<int64_t> values) {
  if (values.empty()) return std::nullopt;
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  const double upper = static_cast<double>(values[half]);
  if (values.size() % 2 == 1) return upper;
  return (static_cast<double>(values[half - 1]) + upper) / 2;
}

double RoundedDepth(double depth, double steps) { return std::round(depth * steps) / steps; }

// The depths of a grid are its rows. Needles at random depths would make rows with a few answers
// each, and are rounded to tenths.
struct DepthRows {
  static constexpr double kFineSteps = 1000;  // 2.5% is a row
  static constexpr double kCoarseSteps = 10;
  double steps = kFineSteps;
  std::vector<double> depths;

  explicit DepthRows(const std::vector<const AnswerRecord*>& answers) {
    std::set<double> exact;
    std::map<int64_t, std::set<double>> by_length;
    for (const AnswerRecord* answer : answers) {
      if (answer->depth < 0) continue;
      exact.insert(RoundedDepth(answer->depth, steps));
      by_length[answer->length].insert(RoundedDepth(answer->depth, steps));
    }
    const bool full_grid = exact.size() <= kMostDepthRows &&
                           std::all_of(by_length.begin(), by_length.end(), [&](const auto& entry) {
                             return entry.second.size() == exact.size();
                           });
    if (!full_grid) {
      steps = kCoarseSteps;
      std::set<double> coarse;
      for (const double depth : exact) coarse.insert(RoundedDepth(depth, steps));
      exact = std::move(coarse);
    }
    depths.assign(exact.begin(), exact.end());
  }

  size_t RowOf(const AnswerRecord& answer) const {
    return IndexOf(depths, RoundedDepth(RoundedDepth(answer.depth, kFineSteps), steps));
  }
};

void AddAnswers(const std::vector<const AnswerRecord*>& answers, const DepthRows& rows,
                Cell& cell) {
  AnswerSums all;
  std::vector<AnswerSums> by_depth(rows.depths.size());
  std::vector<int64_t> ranks;
  double seconds = 0, layers = 0;
  int64_t retrieved = 0;
  for (const AnswerRecord* answer : answers) {
    all.Add(*answer);
    if (answer->depth >= 0) by_depth[rows.RowOf(*answer)].Add(*answer);
    if (answer->retrieval.has_value() && !answer->retrieval->in_window) {
      ++retrieved;
      layers += static_cast<double>(answer->retrieval->layers.size());
      if (answer->retrieval->best_rank > 0) ranks.push_back(answer->retrieval->best_rank);
    }
    seconds += answer->seconds;
    cell.cache_hits += static_cast<double>(answer->cache_hits);
    cell.cache_misses += static_cast<double>(answer->cache_misses);
    cell.miss_bytes += static_cast<double>(answer->miss_bytes);
  }
  cell.all = all.shares();
  for (const AnswerSums& sums : by_depth) cell.by_depth.push_back(sums.shares());
  if (retrieved > 0) cell.mean_layers = layers / static_cast<double>(retrieved);
  cell.median_rank = Median(std::move(ranks));
  if (!answers.empty()) cell.answer_seconds = seconds / static_cast<double>(answers.size());
}

void AddIngest(const IngestRecord& ingest, Cell& cell) {
  ++cell.texts;
  cell.tokens_read += static_cast<double>(ingest.tokens_read);
  cell.read_seconds += ingest.seconds;
  cell.ram_bytes = std::max(cell.ram_bytes, ingest.ram_bytes);
  cell.cold_bytes = std::max(cell.cold_bytes, ingest.cold_bytes);
  cell.peak_rss_bytes = std::max(cell.peak_rss_bytes, ingest.peak_rss_bytes);
}

int64_t EffectiveLength(const std::vector<int64_t>& lengths, const std::vector<Cell>& cells) {
  constexpr double kRounding = 1e-9;
  int64_t effective = 0;
  for (size_t i = 0; i < lengths.size(); ++i) {
    const Share& score = cells[i].all.score;
    if (score.n > 0 && score.mean >= kEffectiveScore - kRounding) effective = lengths[i];
  }
  return effective;
}

// A broken configuration would fill the list alone, so each gives its worst in turn.
void PickWorst(const std::vector<const AnswerRecord*>& answers, TaskSummary& task) {
  std::vector<std::vector<const AnswerRecord*>> wrong(task.configs.size());
  for (const AnswerRecord* answer : answers) {
    if (answer->score >= 1) continue;
    ++task.wrong;
    wrong[IndexOf(task.configs, answer->config)].push_back(answer);
  }
  for (auto& list : wrong) {
    std::stable_sort(list.begin(), list.end(), [](const AnswerRecord* a, const AnswerRecord* b) {
      return a->score < b->score;
    });
  }
  const size_t most = std::min(kMostWorst, static_cast<size_t>(task.wrong));
  std::vector<size_t> taken(wrong.size());
  for (size_t total = 0; total < most;) {
    for (size_t i = 0; i < wrong.size() && total < most; ++i) {
      if (taken[i] == wrong[i].size()) continue;
      ++taken[i];
      ++total;
    }
  }
  for (size_t i = 0; i < wrong.size(); ++i) {
    task.worst.insert(task.worst.end(), wrong[i].begin(),
                      wrong[i].begin() + static_cast<ptrdiff_t>(taken[i]));
  }
}

// The records of one task, each key once.
struct TaskRecords {
  std::vector<const AnswerRecord*> answers;
  std::vector<const IngestRecord*> ingests;
  std::vector<const SkipRecord*> skips;
};

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

  const DepthRows rows(records.answers);
  task.depths = rows.depths;
  task.cells.assign(task.configs.size(), std::vector<Cell>(task.lengths.size()));
  const auto cell_of = [&](const auto& record) -> Cell& {
    return task.cells[IndexOf(task.configs, record.config)][IndexOf(task.lengths, record.length)];
  };
  std::map<Cell*, std::vector<const AnswerRecord*>> answers;
  for (auto& row : task.cells) {
    for (Cell& cell : row) answers[&cell];
  }
  for (const AnswerRecord* answer : records.answers) answers[&cell_of(*answer)].push_back(answer);
  for (auto& [cell, some] : answers) AddAnswers(some, rows, *cell);
  for (const IngestRecord* ingest : records.ingests) AddIngest(*ingest, cell_of(*ingest));
  for (const SkipRecord* skip : records.skips) {
    Cell& cell = cell_of(*skip);
    if (cell.all.score.n == 0 && cell.texts == 0) {
      cell.skip_reason = skip->reason.empty() ? "no reason given" : skip->reason;
    }
  }

  if (task.lengths.size() > 1) {
    for (const auto& row : task.cells) {
      task.effective_lengths.push_back(EffectiveLength(task.lengths, row));
    }
  }
  PickWorst(records.answers, task);
  return task;
}

std::vector<PerplexitySummary> SummarizePerplexities(const std::vector<std::string>& configs,
                                                     const Records& records) {
  std::vector<PerplexitySummary> summaries;
  std::map<std::pair<std::string, int64_t>, size_t> index;
  const auto last = LastOfEach(records.perplexities, [](const PerplexityRecord& r) {
    return std::tie(r.config, r.text, r.length, r.begin, r.end);
  });
  for (const PerplexityRecord* record : last) {
    const auto [it, is_new] = index.try_emplace({record->text, record->length}, summaries.size());
    if (is_new) summaries.push_back({.text = record->text, .length = record->length});
    auto& curves = summaries[it->second].curves;
    const size_t config = IndexOf(configs, record->config);
    auto curve = std::find_if(curves.begin(), curves.end(),
                              [&](const PerplexityCurve& c) { return c.config == config; });
    if (curve == curves.end()) curve = curves.insert(curve, {.config = config});
    curve->points.push_back(*record);
  }
  for (PerplexitySummary& summary : summaries) {
    std::sort(summary.curves.begin(), summary.curves.end(),
              [](const auto& a, const auto& b) { return a.config < b.config; });
    for (PerplexityCurve& curve : summary.curves) {
      std::sort(curve.points.begin(), curve.points.end(), [](const auto& a, const auto& b) {
        return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
      });
    }
  }
  return summaries;
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

std::optional<double> Cell::cache_hit_share() const {
  if (cache_hits + cache_misses == 0) return std::nullopt;
  return cache_hits / (cache_hits + cache_misses);
}

std::optional<double> Cell::read_tokens_per_second() const {
  if (texts == 0 || read_seconds <= 0) return std::nullopt;
  return tokens_read / read_seconds;
}

Summary Summarize(const Records& records) {
  Summary summary;
  std::vector<std::string> names;
  std::map<std::string, TaskRecords> tasks;
  for (const AnswerRecord* answer : LastOfEach(records.answers, [](const AnswerRecord& r) {
         return std::tie(r.config, r.task, r.length, r.sample, r.question);
       })) {
    AddOnce(summary.configs, answer->config);
    AddOnce(names, answer->task);
    tasks[answer->task].answers.push_back(answer);
  }
  for (const PerplexityRecord& record : records.perplexities) {
    AddOnce(summary.configs, record.config);
  }
  for (const IngestRecord* ingest : LastOfEach(records.ingests, [](const IngestRecord& r) {
         return std::tie(r.config, r.task, r.length, r.sample);
       })) {
    AddOnce(summary.configs, ingest->config);
    AddOnce(names, ingest->task);
    tasks[ingest->task].ingests.push_back(ingest);
  }
  for (const SkipRecord* skip : LastOfEach(records.skips, [](const SkipRecord& r) {
         return std::tie(r.config, r.task, r.length);
       })) {
    AddOnce(summary.configs, skip->config);
    AddOnce(names, skip->task);
    tasks[skip->task].skips.push_back(skip);
  }
  for (const std::string& name : names) {
    TaskSummary task = SummarizeTask(name, summary.configs, tasks[name]);
    if (name == kPerplexityTask) {
      summary.perplexity_runs = std::move(task);
    } else {
      summary.tasks.push_back(std::move(task));
    }
  }
  summary.perplexities = SummarizePerplexities(summary.configs, records);
  return summary;
}

}  // namespace infllm::services
