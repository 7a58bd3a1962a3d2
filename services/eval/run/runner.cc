#include "services/eval/run/runner.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <set>
#include <span>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/status_macros.h"
#include "services/common/progress.h"
#include "services/eval/report/report.h"
#include "services/eval/report/text.h"

namespace infllm::services {
namespace {

using Clock = std::chrono::steady_clock;

// Sums of negative log-likelihood by position in a text of `tokens` tokens. The first token has
// none.
class PerplexityBins {
 public:
  PerplexityBins(int64_t bins, int64_t tokens) {
    constexpr int64_t kFirstDoubling = 256;
    const int64_t predicted = tokens - 1;
    if (bins == 0) {
      int64_t begin = 1;
      for (int64_t end = kFirstDoubling; begin < tokens; begin = end, end *= 2) {
        bins_.push_back({.begin = begin, .end = std::min(end, tokens)});
      }
      return;
    }
    bins = std::min(bins, predicted);
    for (int64_t i = 0; i < bins; ++i) {
      bins_.push_back({.begin = 1 + predicted * i / bins, .end = 1 + predicted * (i + 1) / bins});
    }
  }

  // Positions ascend.
  void Add(int64_t position, double nll) {
    while (position >= bins_[current_].end) ++current_;
    bins_[current_].sum += nll;
  }
  template <typename Visit>
  absl::Status ForEach(Visit visit) const {
    for (const Bin& bin : bins_) {
      INFLLM_RETURN_IF_ERROR(
          visit(bin.begin, bin.end, bin.sum / static_cast<double>(bin.end - bin.begin)));
    }
    return absl::OkStatus();
  }

 private:
  struct Bin {
    int64_t begin = 0;
    int64_t end = 0;
    double sum = 0;
  };
  std::vector<Bin> bins_;
  size_t current_ = 0;
};

class Run {
 public:
  Run(const EvalPlan& plan, RecordLog& log, const std::atomic<bool>* cancel)
      : plan_(plan), log_(log), cancel_(cancel) {
    for (const AnswerRecord& r : log.records().answers) Note(r);
    for (const IngestRecord& r : log.records().ingests) {
      ingested_.emplace(r.config, r.task, r.length, r.sample);
    }
    for (const SkipRecord& r : log.records().skips) skipped_.emplace(r.config, r.task, r.length);
    for (const PerplexityRecord& r : log.records().perplexities) {
      binned_.emplace(r.config, r.text, r.length, r.begin, r.end);
    }
    cells_ = (plan.tasks.size() + (plan.perplexity ? 1 : 0)) * plan.lengths.size() *
             plan.configurations.size();
  }

  // Of the cells so far.
  std::vector<CellOutcome> TakeOutcomes() { return std::move(outcomes_); }

  absl::Status All() {
    for (const Task* task : plan_.tasks) {
      for (const int64_t length : plan_.lengths) {
        TaskRequest request = plan_.request;
        request.length = length;
        absl::StatusOr<std::vector<Sample>> samples = task->Make(request);
        if (!samples.ok()) {
          return absl::Status(samples.status().code(),
                              absl::StrCat(std::string(task->name()), " at length ",
                                           FormatLength(length), ": ", samples.status().message()));
        }
        for (const Configuration& configuration : plan_.configurations) {
          INFLLM_RETURN_IF_ERROR(
              RunCell(configuration, std::string(task->name()), length, *samples));
        }
      }
    }
    if (!plan_.perplexity) return absl::OkStatus();
    const int64_t text_tokens = plan_.request.count_tokens(*plan_.perplexity->text);
    for (const int64_t length : plan_.lengths) {
      for (const Configuration& configuration : plan_.configurations) {
        INFLLM_RETURN_IF_ERROR(RunPerplexity(configuration, std::min(length, text_tokens)));
      }
    }
    return absl::OkStatus();
  }

 private:
  // The samples of a cell with questions still to be asked, and only these.
  struct Pending {
    std::span<const Sample> samples;
    std::vector<std::vector<int32_t>> questions;  // [samples]: the numbers they had before
    std::vector<Sample> copies;                   // if only some are left; texts may be large
  };

  absl::Status RunCell(const Configuration& configuration, const std::string& task, int64_t length,
                       const std::vector<Sample>& all) {
    const std::string label = Label(configuration, task, length);
    CellOutcome& cell = outcomes_.emplace_back(
        CellOutcome{.config = configuration.name, .task = task, .length = length});
    const Pending pending = FindPending(configuration.name, task, length, all);
    const absl::Status status = pending.samples.empty()
                                    ? absl::OkStatus()
                                    : AskPending(configuration, pending, label, cell);
    for (const Sample& sample : all) {
      for (int32_t q = 0; q < static_cast<int32_t>(sample.questions.size()); ++q) {
        ++cell.planned;
        const auto answer = answered_.find({configuration.name, task, length, sample.id, q});
        if (answer == answered_.end()) continue;
        ++cell.answered;
        cell.score += answer->second.score;
        if (!answer->second.hit) continue;
        ++cell.retrievals;
        cell.hits += *answer->second.hit ? 1 : 0;
      }
    }
    return status;
  }

  absl::Status AskPending(const Configuration& configuration, const Pending& pending,
                          const std::string& label, CellOutcome& cell) {
    INFLLM_ASSIGN_OR_RETURN(const std::unique_ptr<Subject> subject,
                            Open(configuration, label, cell));
    if (subject == nullptr) return absl::OkStatus();
    const Clock::time_point start = Clock::now();
    double score = 0;
    int64_t answers = 0, retrievable = 0, hits = 0;
    std::optional<Progress> progress;
    const SubjectEvents events{
        .on_read =
            [&](size_t i, const Reading& reading) {
              return AddIngest(cell, pending.samples[i].id, reading);
            },
        .on_answer =
            [&](size_t i, size_t q, const Answer& answer) {
              const Sample& sample = pending.samples[i];
              const Question& question = sample.questions[q];
              const AnswerRecord record{
                  .config = cell.config,
                  .task = cell.task,
                  .length = cell.length,
                  .sample = sample.id,
                  .question = pending.questions[i][q],
                  .label = question.label,
                  .depth = question.depth,
                  .output = answer.output,
                  .answers = question.answers,
                  .score = Score(sample.metric, answer.output, question.answers),
                  .text_tokens = answer.text_tokens,
                  .seconds = answer.seconds,
                  .retrieval = answer.retrieval,
                  .cache_hits = answer.cache_hits,
                  .cache_misses = answer.cache_misses,
                  .miss_bytes = answer.miss_bytes};
              ++answers;
              score += record.score;
              if (answer.retrieval) {
                ++retrievable;
                hits += answer.retrieval->hit() ? 1 : 0;
              }
              Note(record);
              return log_.Add(record);
            },
        .on_error =
            [&](size_t i, const absl::Status& error) {
              progress.reset();
              Fail(cell, label, absl::StrCat("sample ", pending.samples[i].id, ": "), error);
            },
        .on_progress = Show(label, progress)};
    const absl::Status status = subject->Ask(pending.samples, events, cancel_);
    progress.reset();
    INFLLM_RETURN_IF_ERROR(status);
    absl::FPrintF(stderr, "%s: score %s%%%s over %d answers in %s\n", label,
                  FormatPercent(answers > 0 ? score / static_cast<double>(answers) : 0),
                  retrievable > 0 ? absl::StrCat(", retrieved ",
                                                 FormatPercent(static_cast<double>(hits) /
                                                               static_cast<double>(retrievable)),
                                                 "%")
                                  : std::string(),
                  answers, HumanSeconds(Seconds(start)));
    return absl::OkStatus();
  }

  Pending FindPending(const std::string& config, const std::string& task, int64_t length,
                      const std::vector<Sample>& all) const {
    Pending pending;
    bool untouched = true;
    for (const Sample& sample : all) {
      std::vector<int32_t>& open = pending.questions.emplace_back();
      for (int32_t q = 0; q < static_cast<int32_t>(sample.questions.size()); ++q) {
        if (!answered_.contains({config, task, length, sample.id, q})) open.push_back(q);
      }
      untouched = untouched && open.size() == sample.questions.size();
    }
    if (untouched) {
      pending.samples = all;
      return pending;
    }
    for (size_t i = 0; i < all.size(); ++i) {
      const Sample& sample = all[i];
      if (pending.questions[i].empty()) continue;
      Sample& rest = pending.copies.emplace_back(Sample{.id = sample.id,
                                                        .text = sample.text,
                                                        .questions = {},
                                                        .metric = sample.metric,
                                                        .max_new_tokens = sample.max_new_tokens});
      for (const int32_t q : pending.questions[i]) rest.questions.push_back(sample.questions[q]);
    }
    std::erase_if(pending.questions, [](const auto& open) { return open.empty(); });
    pending.samples = pending.copies;
    return pending;
  }

  absl::Status RunPerplexity(const Configuration& configuration, int64_t tokens) {
    const PerplexityPlan& text = *plan_.perplexity;
    const std::string task(kPerplexityTask);
    const std::string label = Label(configuration, task, tokens);
    if (tokens < 2) {
      return absl::InvalidArgumentError(
          absl::StrCat("perplexity of ", text.name, ": ", tokens,
                       " tokens; at least 2 are needed for one to be predicted"));
    }
    PerplexityBins bins(text.bins, tokens);
    bool done = true;
    const auto key = [&](int64_t begin, int64_t end) {
      return std::tuple(configuration.name, text.name, tokens, begin, end);
    };
    INFLLM_RETURN_IF_ERROR(bins.ForEach([&](int64_t begin, int64_t end, double) {
      done = done && binned_.contains(key(begin, end));
      return absl::OkStatus();
    }));
    CellOutcome& cell = outcomes_.emplace_back(
        CellOutcome{.config = configuration.name, .task = task, .length = tokens});
    if (done) return absl::OkStatus();
    INFLLM_ASSIGN_OR_RETURN(const std::unique_ptr<Subject> subject,
                            Open(configuration, label, cell));
    if (subject == nullptr) return absl::OkStatus();

    double total = 0;
    std::optional<Progress> progress;
    const absl::StatusOr<Reading> reading = subject->Perplexity(
        *text.text, tokens,
        [&](int64_t position, double nll) {
          bins.Add(position, nll);
          total += nll;
        },
        Show(label, progress), cancel_);
    progress.reset();
    // Said by who cannot tell likelihoods at all, before anything is read.
    if (absl::IsUnimplemented(reading.status())) {
      return Skip(cell, label, reading.status().message());
    }
    if (absl::IsResourceExhausted(reading.status())) {
      Fail(cell, label, "", reading.status());
      return absl::OkStatus();
    }
    INFLLM_RETURN_IF_ERROR(reading.status());
    INFLLM_RETURN_IF_ERROR(bins.ForEach([&](int64_t begin, int64_t end, double mean_nll) {
      if (!binned_.insert(key(begin, end)).second) return absl::OkStatus();
      return log_.Add(PerplexityRecord{.config = configuration.name,
                                       .text = text.name,
                                       .length = tokens,
                                       .begin = begin,
                                       .end = end,
                                       .mean_nll = mean_nll});
    }));
    INFLLM_RETURN_IF_ERROR(AddIngest(cell, text.name, *reading));
    absl::FPrintF(stderr, "%s: perplexity %s in %s\n", label,
                  FormatPerplexity(total / static_cast<double>(tokens - 1)),
                  HumanSeconds(reading->seconds));
    return absl::OkStatus();
  }

  // Null if the configuration cannot read such a length, which is then recorded, or if there is not
  // enough room to try.
  absl::StatusOr<std::unique_ptr<Subject>> Open(const Configuration& configuration,
                                                const std::string& label, CellOutcome& cell) {
    if (cancel_ != nullptr && cancel_->load(std::memory_order_relaxed)) {
      return absl::CancelledError("interrupted");
    }
    ResetPeakRss();
    absl::StatusOr<std::unique_ptr<Subject>> subject = configuration.open(cell.length);
    if (absl::IsResourceExhausted(subject.status())) {
      Fail(cell, label, "", subject.status());
      return nullptr;
    }
    INFLLM_RETURN_IF_ERROR(subject.status());
    const std::optional<std::string> reason = (*subject)->CannotRead(cell.length);
    if (!reason) return subject;
    INFLLM_RETURN_IF_ERROR(Skip(cell, label, *reason));
    return nullptr;
  }

  // Not recorded: when the command is repeated, it may go well.
  static void Fail(CellOutcome& cell, const std::string& label, const std::string& where,
                   const absl::Status& error) {
    const std::string text = absl::StrCat(where, error.message());
    absl::FPrintF(stderr, "%s: failed: %s\n", label, text);
    if (cell.error.ok()) cell.error = absl::Status(error.code(), text);
  }

  absl::Status Skip(CellOutcome& cell, const std::string& label, absl::string_view reason) {
    absl::FPrintF(stderr, "%s: not run: %s\n", label, reason);
    cell.skip_reason = std::string(reason);
    if (!skipped_.emplace(cell.config, cell.task, cell.length).second) return absl::OkStatus();
    return log_.Add(SkipRecord{.config = cell.config,
                               .task = cell.task,
                               .length = cell.length,
                               .reason = cell.skip_reason});
  }

  absl::Status AddIngest(const CellOutcome& cell, const std::string& sample,
                         const Reading& reading) {
    // A text that is read once more, for questions left open, is told once.
    if (!ingested_.emplace(cell.config, cell.task, cell.length, sample).second) {
      return absl::OkStatus();
    }
    return log_.Add(IngestRecord{.config = cell.config,
                                 .task = cell.task,
                                 .length = cell.length,
                                 .sample = sample,
                                 .tokens_read = reading.tokens_read,
                                 .seconds = reading.seconds,
                                 .ram_bytes = reading.ram_bytes,
                                 .cold_bytes = reading.cold_bytes,
                                 .peak_rss_bytes = PeakRssBytes()});
  }

  void Note(const AnswerRecord& r) {
    answered_[{r.config, r.task, r.length, r.sample, r.question}] = {
        r.score, r.retrieval ? std::optional(r.retrieval->hit()) : std::nullopt};
  }

  std::string Label(const Configuration& configuration, const std::string& task, int64_t length) {
    return absl::StrCat("[", ++cell_, "/", cells_, "] ", configuration.name, " ", task, " ",
                        FormatLength(length));
  }
  static std::function<void(int64_t, int64_t)> Show(const std::string& label,
                                                    std::optional<Progress>& progress) {
    return [label, &progress](int64_t done, int64_t total) {
      if (!progress) progress.emplace(label, "tokens", total);
      progress->Update(done);
    };
  }
  static double Seconds(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  const EvalPlan& plan_;
  RecordLog& log_;
  const std::atomic<bool>* const cancel_;
  struct Grade {
    double score = 0;
    std::optional<bool> hit;  // absent: retrieval is not known
  };
  std::map<std::tuple<std::string, std::string, int64_t, std::string, int32_t>, Grade> answered_;
  std::set<std::tuple<std::string, std::string, int64_t, std::string>> ingested_;
  std::set<std::tuple<std::string, std::string, int64_t>> skipped_;
  std::set<std::tuple<std::string, std::string, int64_t, int64_t, int64_t>> binned_;
  std::vector<CellOutcome> outcomes_;
  size_t cell_ = 0, cells_ = 0;
};

absl::Status WriteReports(const EvalPlan& plan, const Records& records) {
  const auto path = [&](const char* name) { return absl::StrCat(plan.directory, "/", name); };
  INFLLM_RETURN_IF_ERROR(WriteFile(path("report.md"), MarkdownReport(records, plan.title)));
  INFLLM_RETURN_IF_ERROR(WriteFile(path("report.html"), HtmlReport(records, plan.title)));
  return WriteFile(path("results.json"), JsonReport(records, plan.title));
}

}  // namespace

absl::StatusOr<EvalOutcome> RunEval(const EvalPlan& plan, const std::atomic<bool>* cancel) {
  Manifest manifest{.settings = plan.settings, .configurations = {}};
  for (const Configuration& configuration : plan.configurations) {
    manifest.configurations[configuration.name] = configuration.settings;
  }
  INFLLM_ASSIGN_OR_RETURN(const std::unique_ptr<RecordLog> log,
                          RecordLog::Open(plan.directory, manifest));
  Run run(plan, *log, cancel);
  const absl::Status status = run.All();
  const absl::Status written = WriteReports(plan, log->records());
  if (absl::IsCancelled(status)) {
    return absl::CancelledError(absl::StrCat("interrupted; ", log->records().answers.size(),
                                             " answers are kept in ", plan.directory,
                                             ": repeat the command to go on from there"));
  }
  INFLLM_RETURN_IF_ERROR(status);
  INFLLM_RETURN_IF_ERROR(written);
  return EvalOutcome{.records = log->records(), .cells = run.TakeOutcomes()};
}

}  // namespace infllm::services
