// What an evaluation's tables and pictures show, computed once for all of them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "services/eval/report/record.h"

namespace infllm::services {

struct Interval {
  double low = 0;
  double high = 1;
};

// 95% score interval of a share `mean` seen in `n` independent trials (E. B. Wilson, JASA 22,
// 1927). For scores in between it is wider than it need be: of all distributions over [0, 1] with
// one mean, 0 and 1 vary most. REQUIRES: n > 0, mean in [0, 1].
Interval WilsonInterval(double mean, int64_t n);

// A mean of values in [0, 1]. Without values (n = 0) the other fields say nothing.
struct Share {
  int64_t n = 0;
  double mean = 0;
  Interval interval;
};

struct AnswerShares {
  Share score;
  Share recall;  // whether the memory found the evidence, where that is known
  Share kept;    // Retrieval::kept, where that is known
};

// One configuration at one length of a task.
struct Cell {
  AnswerShares all;
  std::vector<AnswerShares> by_depth;  // as TaskSummary::depths
  // Of the answers whose retrieval is known and whose evidence had left the window: the layers that
  // selected it; the best rank, where any did.
  std::optional<double> mean_layers;
  std::optional<double> median_rank;
  double answer_seconds = 0;  // mean
  // Sums over the answers; double, which does not overflow.
  double cache_hits = 0;
  double cache_misses = 0;
  double miss_bytes = 0;

  int64_t texts = 0;  // that were read; without, the rest says nothing
  double tokens_read = 0;
  double read_seconds = 0;
  int64_t ram_bytes = 0;  // the most that any text needed
  int64_t cold_bytes = 0;
  int64_t peak_rss_bytes = 0;  // 0: not known

  std::string skip_reason;  // set only in a cell without answers and texts

  std::optional<double> cache_hit_share() const;
  std::optional<double> read_tokens_per_second() const;
};

struct TaskSummary {
  std::string name;
  std::vector<std::string> configs;  // in the order of Summary::configs
  std::vector<int64_t> lengths;      // ascending
  // Rows of the heatmaps, ascending: the depths asked for, rounded to a thousandth; or, if those
  // are too many or differ between lengths, rounded to a tenth. Empty where depth does not apply.
  std::vector<double> depths;
  std::vector<std::vector<Cell>> cells;  // [configs][lengths]
  // RULER's effective length per configuration: the last with a mean score of 85.6% or more; 0 if
  // none has it. Empty if there is only one length.
  std::vector<int64_t> effective_lengths;
  int64_t wrong = 0;  // answers with a score below 1
  // Some of them, worst first, and each configuration's in turn.
  std::vector<const AnswerRecord*> worst;
};

inline constexpr double kEffectiveScore = 0.856;  // RULER: Llama-2-7B at 4K

struct PerplexityCurve {
  size_t config = 0;                     // in Summary::configs
  std::vector<PerplexityRecord> points;  // by position
};

// One text read up to one length.
struct PerplexitySummary {
  std::string text;
  int64_t length = 0;
  std::vector<PerplexityCurve> curves;
};

struct Summary {
  std::vector<std::string> configs;  // all, as they first appear
  std::vector<TaskSummary> tasks;    // as they first appear, without kPerplexityTask
  std::vector<PerplexitySummary> perplexities;
  std::optional<TaskSummary> perplexity_runs;  // kPerplexityTask: time, memory, what was not run

  bool empty() const {
    return tasks.empty() && perplexities.empty() && !perplexity_runs.has_value();
  }
};

// A record that was made again (by a resumed run) replaces the one before. The result points into
// `records`.
Summary Summarize(const Records& records);

}  // namespace infllm::services
