// What an evaluation's tables and pictures show, computed once for all of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
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

// A mean of values in [0, 1]. REQUIRES for mean() and interval(): n > 0.
struct Share {
  int64_t n = 0;
  double sum = 0;

  void Add(double value) {
    ++n;
    sum += value;
  }
  double mean() const { return std::clamp(sum / static_cast<double>(n), 0.0, 1.0); }
  Interval interval() const { return WilsonInterval(mean(), n); }
};

struct AnswerShares {
  Share score;
  Share recall;  // whether the memory found the evidence, where that is known
  Share kept;    // Retrieval::kept, where that is known

  void Add(const AnswerRecord& answer);
};

// Nothing where nothing was counted.
inline std::optional<double> Quotient(double sum, double count) {
  return count > 0 ? std::optional(sum / count) : std::nullopt;
}

// One configuration at one length of a task. Sums over answers are double, which does not overflow.
struct Cell {
  AnswerShares all;
  std::vector<AnswerShares> by_depth;  // as TaskSummary::depths
  // Of the answers whose retrieval is known and whose evidence had left the window.
  double retrieved = 0;
  double layers = 0;           // that selected it
  std::vector<int64_t> ranks;  // the best, where any did
  double seconds = 0;
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

  std::optional<double> mean_layers() const { return Quotient(layers, retrieved); }
  std::optional<double> median_rank() const;
  std::optional<double> answer_seconds() const {  // mean
    return Quotient(seconds, static_cast<double>(all.score.n));
  }
  std::optional<double> cache_hit_share() const {
    return Quotient(cache_hits, cache_hits + cache_misses);
  }
  std::optional<double> read_tokens_per_second() const {
    return Quotient(tokens_read, read_seconds);
  }
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

// One text read up to one length.
struct PerplexitySummary {
  using Curve = std::map<std::pair<int64_t, int64_t>, double>;  // [begin, end) -> mean_nll

  std::string text;
  int64_t length = 0;
  std::map<size_t, Curve> curves;  // by index in Summary::configs
};

struct Summary {
  std::vector<std::string> configs;  // all, as they first appear
  std::vector<TaskSummary> tasks;    // as they first appear, without kPerplexityTask
  std::vector<PerplexitySummary> perplexities;
  std::optional<TaskSummary> perplexity_runs;  // kPerplexityTask: time, memory, what was not run
};

// A record that was made again (by a resumed run) replaces the one before. The result points into
// `records`.
Summary Summarize(const Records& records);

}  // namespace infllm::services
