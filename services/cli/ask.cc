#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "kernels/core/status_macros.h"
#include "services/cli/commands.h"
#include "services/cli/interrupt.h"
#include "services/cli/output.h"
#include "services/cli/sampling_flags.h"
#include "services/common/byte_size.h"
#include "services/common/progress.h"
#include "services/eval/run/evidence.h"
#include "services/eval/run/token_ranges.h"
#include "services/runtime/runtime.h"
#include "worker/engine/scheduler.h"

namespace infllm::services {
namespace {

using Json = nlohmann::ordered_json;

struct AskFlags {
  RuntimeFlags runtime;
  SamplingFlags sampling;
  std::string text;
  std::vector<std::string> contexts;
  std::vector<std::string> questions, evidence;
  std::string question_format = "\\n{question}";
};

// The tokens that ask `question` after `text`. `\n` in the format is a newline.
std::vector<int32_t> QuestionTokens(const worker::LoadedModel& model, const AskFlags& flags,
                                    const std::string& text, const std::string& question) {
  return EncodeContinuation(
      *model.tokenizer, text,
      absl::StrReplaceAll(flags.question_format, {{"\\n", "\n"}, {"{question}", question}}));
}

// A text that has been read.
struct Reading {
  worker::SequenceId sequence{};
  int64_t tokens = 0;
  int64_t cached_tokens = 0;  // of these, taken from a committed context
  double seconds = 0;
  std::vector<double> rates;  // tokens/s of each tenth of the text
};

// Where in the text the passages of --evidence are.
absl::StatusOr<std::vector<TextRange>> FindEvidence(const AskFlags& flags,
                                                    const std::string& text) {
  std::vector<TextRange> ranges;
  for (const std::string& passage : flags.evidence) {
    const size_t at = passage.empty() ? std::string::npos : text.find(passage);
    if (at == std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("--evidence \"", passage, "\" does not occur in the text"));
    }
    ranges.push_back(
        {.begin = static_cast<int64_t>(at), .end = static_cast<int64_t>(at + passage.size())});
  }
  return ranges;
}

// What the flags name.
absl::StatusOr<std::vector<memstore::CommittedContext>> FindContexts(Runtime& runtime,
                                                                     const AskFlags& flags) {
  std::vector<memstore::CommittedContext> contexts;
  if (flags.contexts.empty()) return contexts;
  if (runtime.store == nullptr) {
    return absl::InvalidArgumentError("only --policy infllm goes on from a context");
  }
  for (const std::string& name : flags.contexts) {
    INFLLM_ASSIGN_OR_RETURN(memstore::CommittedContext context,
                            runtime.store->FindCommitted("", name));
    contexts.push_back(std::move(context));
  }
  return contexts;
}

void TellMounted(std::span<const memstore::CommittedContext> mounted) {
  for (const memstore::CommittedContext& context : mounted) {
    absl::FPrintF(stderr, "mounted context \"%s\": %s tokens\n", context.name,
                  WithThousands(context.tokens));
  }
}

// The last of the contexts, instead of a text; the others are mounted. `tail` is how its text ends:
// enough to ask on.
absl::StatusOr<Reading> Open(Runtime& runtime, const AskFlags& flags,
                             std::span<const memstore::CommittedContext> contexts,
                             std::string& tail) {
  constexpr size_t kTailTokens = 64;
  const auto start = std::chrono::steady_clock::now();
  const memstore::CommittedContext& context = contexts.back();
  INFLLM_ASSIGN_OR_RETURN(const memstore::Checkpoint checkpoint,
                          runtime.store->ReadCheckpoint(context.id));
  Reading reading{.tokens = context.tokens};
  INFLLM_ASSIGN_OR_RETURN(reading.sequence,
                          runtime.engine->Open(context, checkpoint.state, context.tokens,
                                               contexts.first(contexts.size() - 1)));
  reading.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const std::span<const int32_t> tokens = checkpoint.tokens;
  tail = runtime.model->tokenizer->Decode(tokens.last(std::min(tokens.size(), kTailTokens)));
  if (!flags.runtime.json) {
    absl::FPrintF(stderr, "opened context \"%s\": %s tokens\n", context.name,
                  WithThousands(context.tokens));
    TellMounted(contexts.first(contexts.size() - 1));
  }
  return reading;
}

absl::StatusOr<Reading> Read(Runtime& runtime, worker::Scheduler& scheduler, const AskFlags& flags,
                             std::span<const memstore::CommittedContext> mounted,
                             const std::string& text, const std::vector<int32_t>& ids,
                             const Interrupt& interrupt, bool from_prefix = true) {
  Reading reading;
  reading.tokens = static_cast<int64_t>(ids.size());
  const auto start = std::chrono::steady_clock::now();
  if (mounted.empty() && from_prefix) {
    INFLLM_ASSIGN_OR_RETURN(const worker::Engine::Start started,
                            StartFromPrefix(*runtime.engine, ids, flags.runtime.json));
    reading.sequence = started.sequence;
    reading.cached_tokens = started.cached_tokens;
  } else {
    INFLLM_ASSIGN_OR_RETURN(reading.sequence, runtime.engine->NewSequence(mounted));
    if (!flags.runtime.json) TellMounted(mounted);
  }
  const int64_t fresh = reading.tokens - reading.cached_tokens;
  if (!flags.runtime.json) {
    absl::FPrintF(stderr, "reading %s tokens (%s of text) with policy %s\n", WithThousands(fresh),
                  FormatByteSize(static_cast<int64_t>(text.size())),
                  std::string(worker::Name(flags.runtime.attention.policy)));
  }
  reading.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (fresh == 0) return reading;
  Progress progress("reading", "tokens", fresh);
  int64_t tenth_begin = 0;
  double tenth_start = 0;
  worker::Outcome outcome;
  scheduler.Add(
      {.sequence = reading.sequence,
       .tokens = std::vector<int32_t>(ids.begin() + reading.cached_tokens, ids.end()),
       .on_read =
           [&](int64_t done) {
             progress.Update(done);
             reading.seconds =
                 std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
             if (done * 10 < fresh * static_cast<int64_t>(reading.rates.size() + 1)) return;
             reading.rates.push_back(static_cast<double>(done - tenth_begin) /
                                     (reading.seconds - tenth_start));
             tenth_begin = done;
             tenth_start = reading.seconds;
           },
       .on_done = [&](const worker::Outcome& done) { outcome = done; }});
  INFLLM_RETURN_IF_ERROR(scheduler.Run(interrupt.flag()));
  if (absl::IsDataLoss(outcome.status) && reading.cached_tokens > 0) {
    TellReadAnew(outcome.status);
    runtime.engine->Drop(reading.sequence);
    return Read(runtime, scheduler, flags, mounted, text, ids, interrupt, /*from_prefix=*/false);
  }
  INFLLM_RETURN_IF_ERROR(outcome.status);
  return reading;
}

// Asks all questions of the text that has been read, as many at a time as there is room for.
// Answers are printed in the order of the questions: the first unfinished one as it comes.
class Interview {
 public:
  Interview(Runtime& runtime, worker::Scheduler& scheduler, const AskFlags& flags,
            const std::string& text, const Reading& reading, std::vector<EvidenceWatch>& watches)
      : runtime_(runtime),
        scheduler_(scheduler),
        flags_(flags),
        text_(text),
        reading_(reading),
        watches_(watches),
        answers_(flags.questions.size()) {}

  absl::StatusOr<Json> Run(const Interrupt& interrupt) {
    const size_t together =
        std::min(flags_.questions.size(), static_cast<size_t>(runtime_.max_sequences));
    for (size_t i = 0; i < together; ++i) INFLLM_RETURN_IF_ERROR(AskNext());
    Show();
    const absl::Status status = scheduler_.Run(interrupt.flag());
    if (!status.ok() || !status_.ok()) {
      if (!flags_.runtime.json) absl::PrintF("\n");
      return status.ok() ? status_ : status;
    }
    Json answers = Json::array();
    for (size_t i = 0; i < answers_.size(); ++i) answers.push_back(ToJson(i));
    return answers;
  }
  int64_t hits() const { return hits_; }
  // Retrievals of the sequences counted in: those of the answers, and whose else is asked for.
  const worker::AttentionStats& attention() const { return attention_; }
  void CountIn(worker::SequenceId sequence) {
    const worker::AttentionStats stats = runtime_.engine->StatsOf(sequence);
    attention_.selections += stats.selections;
    attention_.cache_hits += stats.cache_hits;
    attention_.cache_misses += stats.cache_misses;
  }

 private:
  struct Answer {
    std::unique_ptr<worker::StreamDecoder> decoder;
    std::string text;
    size_t shown = 0;  // bytes of it
    std::vector<int32_t> ids;
    int64_t begin = 0;  // position of the token from which the answer begins
    worker::Outcome outcome;
    bool done = false;
  };

  // The next question, unless it has to wait for the memory of one that is being answered.
  absl::Status AskNext() {
    const absl::StatusOr<worker::SequenceId> fork = runtime_.engine->Fork(reading_.sequence);
    if (absl::IsResourceExhausted(fork.status()) && answering_ > 0) return absl::OkStatus();
    INFLLM_RETURN_IF_ERROR(fork.status());
    const worker::SequenceId sequence = *fork;
    ++answering_;
    const size_t i = asked_++;
    Answer& answer = answers_[i];
    if (!watches_.empty()) runtime_.engine->SetObserver(sequence, watches_[i].observer());
    const std::vector<int32_t> ids =
        QuestionTokens(*runtime_.model, flags_, text_, flags_.questions[i]);
    answer.begin = reading_.tokens + static_cast<int64_t>(ids.size()) - 1;
    answer.decoder = runtime_.model->tokenizer->NewStreamDecoder(/*continuation=*/true);
    scheduler_.Add({.sequence = sequence,
                    .tokens = ids,
                    .max_tokens = flags_.sampling.max_tokens,
                    .sampling = flags_.sampling.options,
                    .stop_ids = runtime_.model->StopIds(),
                    .on_token =
                        [this, &answer](int32_t token) {
                          answer.ids.push_back(token);
                          answer.text += answer.decoder->Add(token);
                          Show();
                          return status_.ok();
                        },
                    .on_done =
                        [this, sequence, &answer](const worker::Outcome& outcome) {
                          answer.text += answer.decoder->Finish();
                          answer.outcome = outcome;
                          answer.done = outcome.status.ok();
                          CountIn(sequence);
                          status_.Update(outcome.status);
                          runtime_.engine->Drop(sequence);
                          --answering_;
                          if (status_.ok() && asked_ < answers_.size()) status_.Update(AskNext());
                          Show();
                        }});
    return absl::OkStatus();
  }

  // Prints what can be shown by now. Output that does not get through ends the interview.
  void Show() {
    if (flags_.runtime.json) return;
    std::string out;
    for (; showing_ < asked_; ++showing_) {
      Answer& answer = answers_[showing_];
      if (!introduced_) absl::StrAppend(&out, "\nQ: ", flags_.questions[showing_], "\nA:");
      introduced_ = true;
      out.append(answer.text, answer.shown);
      answer.shown = answer.text.size();
      if (!answer.done) break;
      out += "\n";
      if (!watches_.empty()) {
        absl::StrAppend(&out, "   (", watches_[showing_].Describe(answer.begin), ")\n");
      }
      introduced_ = false;
    }
    status_.Update(StreamOut(out));
  }

  Json ToJson(size_t i) {
    const Answer& answer = answers_[i];
    Json out = {{"question", flags_.questions[i]},
                {"text", answer.text},
                {"ids", answer.ids},
                {"time_to_first_token_seconds", answer.outcome.first_token_seconds},
                {"total_seconds", answer.outcome.total_seconds}};
    if (watches_.empty()) return out;
    const Retrieval retrieval =
        watches_[i].Result(answer.begin, static_cast<int64_t>(answer.ids.size()));
    const EvidenceWatch::Blocks blocks = watches_[i].blocks().front();
    if (retrieval.hit()) ++hits_;
    out["evidence"] = {{"first_block", blocks.first},
                       {"last_block", blocks.last},
                       {"in_window", retrieval.in_window},
                       {"layers_that_retrieved", retrieval.layers.size()},
                       {"layers", runtime_.model->config.layers},
                       {"best_rank", retrieval.best_rank},
                       {"kept", retrieval.kept},
                       {"hit", retrieval.hit()}};
    return out;
  }

  Runtime& runtime_;
  worker::Scheduler& scheduler_;
  const AskFlags& flags_;
  const std::string& text_;
  const Reading& reading_;
  std::vector<EvidenceWatch>& watches_;
  std::vector<Answer> answers_;  // parallel to the questions
  size_t asked_ = 0;
  int64_t answering_ = 0;
  size_t showing_ = 0;       // the answer that is being printed
  bool introduced_ = false;  // its question has been
  absl::Status status_;      // the first failure of a question
  int64_t hits_ = 0;
  worker::AttentionStats attention_;  // of the answers so far
};

// `attention`: of the reading and the answers.
absl::StatusOr<Json> Report(Runtime& runtime, const AskFlags& flags, const Reading& reading,
                            const worker::AttentionStats& attention) {
  Json report = {{"policy", worker::Name(flags.runtime.attention.policy)},
                 {"text_tokens", reading.tokens},
                 {"load_seconds", runtime.load_seconds}};
  if (!flags.contexts.empty()) report["contexts"] = flags.contexts;
  if (!flags.text.empty()) {
    report["ingest_seconds"] = reading.seconds;
    report["tokens_per_second"] =
        reading.seconds > 0 ? double(reading.tokens - reading.cached_tokens) / reading.seconds : 0;
    report["cached_tokens"] = reading.cached_tokens;
  } else {
    report["open_seconds"] = reading.seconds;
  }
  report["peak_rss_bytes"] = PeakRssBytes();
  if (reading.rates.size() == 10) report["tokens_per_second_by_tenth"] = reading.rates;
  if (runtime.store != nullptr) {
    INFLLM_ASSIGN_OR_RETURN(const memstore::StoreStats stats, runtime.store->Stats());
    report["memory"] = {{"blocks_stored", stats.blocks},
                        {"blocks_ram", stats.blocks_ram},
                        {"blocks_cold", stats.blocks_cold},
                        {"ram_bytes", stats.ram_bytes},
                        {"cold_bytes", stats.cold_bytes},
                        {"representative_bytes", stats.representative_bytes},
                        {"selections", attention.selections},
                        {"block_cache_hits", attention.cache_hits},
                        {"block_cache_misses", attention.cache_misses},
                        {"cold_reads", stats.cold_hits}};
  }
  return report;
}

void PrintReport(const Json& report) {
  const std::string tokens = WithThousands(report["text_tokens"].get<int64_t>());
  if (report.contains("open_seconds")) {
    absl::PrintF("\nopened    %s tokens in %.2f s\n", tokens, report["open_seconds"].get<double>());
  } else {
    const int64_t cached = report["cached_tokens"].get<int64_t>();
    absl::PrintF("\nread      %s tokens in %s: %s tokens/s%s\n", tokens,
                 HumanSeconds(report["ingest_seconds"].get<double>()),
                 WithThousands(static_cast<int64_t>(report["tokens_per_second"].get<double>())),
                 cached == 0 ? "" : absl::StrCat("; ", WithThousands(cached), " were committed"));
  }
  if (report.contains("tokens_per_second_by_tenth")) {
    const Json& rates = report["tokens_per_second_by_tenth"];
    absl::PrintF("rate      %s tokens/s over the second tenth of the text, %s over the last\n",
                 WithThousands(static_cast<int64_t>(rates[1].get<double>())),
                 WithThousands(static_cast<int64_t>(rates[9].get<double>())));
  }
  absl::PrintF("memory    %s peak\n", FormatByteSize(report["peak_rss_bytes"].get<int64_t>()));
  if (report.contains("memory")) {
    const Json& memory = report["memory"];
    const auto count = [&](const char* key) { return WithThousands(memory[key].get<int64_t>()); };
    const auto bytes = [&](const char* key) { return FormatByteSize(memory[key].get<int64_t>()); };
    absl::PrintF(
        "blocks    %s stored; %s in RAM (%s), %s on disk (%s), some in both; representatives %s\n",
        count("blocks_stored"), count("blocks_ram"), bytes("ram_bytes"), count("blocks_cold"),
        bytes("cold_bytes"), bytes("representative_bytes"));
    const double hits = memory["block_cache_hits"].get<double>();
    const double total = hits + memory["block_cache_misses"].get<double>();
    absl::PrintF("retrieval %s lookups, block cache hit rate %.1f%%, %s blocks read from disk\n",
                 count("selections"), total > 0 ? 100 * hits / total : 0, count("cold_reads"));
  }
  if (report.contains("recall")) {
    absl::PrintF("recall    %d of %d passages were retrieved for their question\n",
                 report["recall"]["hits"].get<int64_t>(), report["recall"]["asked"].get<int64_t>());
  }
}

absl::Status RunAsk(const AskFlags& flags) {
  INFLLM_RETURN_IF_ERROR(flags.sampling.options.Validate());
  if (!flags.evidence.empty() && flags.evidence.size() != flags.questions.size()) {
    return absl::InvalidArgumentError(absl::StrCat("--evidence is given ", flags.evidence.size(),
                                                   " times, --question ", flags.questions.size(),
                                                   " times: give one for each question, or none"));
  }
  if (flags.text.empty() && flags.contexts.empty()) {
    return absl::InvalidArgumentError("give a --text, or the --context of one that was ingested");
  }
  for (const std::string& name : flags.contexts) {
    if (std::ranges::count(flags.contexts, name) == 1) continue;
    return absl::InvalidArgumentError(absl::StrCat("--context \"", name, "\" is given twice"));
  }
  if (!flags.contexts.empty() && !flags.evidence.empty()) {
    return absl::InvalidArgumentError(
        "--evidence is searched in a --text alone: give it without --context");
  }
  std::string text;
  if (!flags.text.empty()) {
    INFLLM_ASSIGN_OR_RETURN(text, ReadText(flags.text));
  }
  INFLLM_ASSIGN_OR_RETURN(const std::vector<TextRange> evidence, FindEvidence(flags, text));
  const Interrupt interrupt;
  INFLLM_ASSIGN_OR_RETURN(const std::unique_ptr<Runtime> runtime,
                          Runtime::Make(flags.runtime, interrupt.flag()));
  INFLLM_RETURN_IF_ERROR(RequireTokenizer(*runtime->model, flags.runtime.model));
  std::vector<EvidenceWatch> watches;
  std::vector<int32_t> ids;
  if (!flags.text.empty()) ids = runtime->model->EncodePrompt(text);
  for (const TokenRange& tokens : LocateTokens(*runtime->model->tokenizer, ids, text, evidence)) {
    watches.emplace_back(std::span(&tokens, 1), runtime->engine->attention(),
                         runtime->model->config.layers);
  }

  INFLLM_ASSIGN_OR_RETURN(const std::vector<memstore::CommittedContext> contexts,
                          FindContexts(*runtime, flags));
  worker::Scheduler scheduler(*runtime->engine, {.step_tokens = runtime->step_tokens});
  INFLLM_ASSIGN_OR_RETURN(const Reading reading,
                          flags.text.empty()
                              ? Open(*runtime, flags, contexts, text)
                              : Read(*runtime, scheduler, flags, contexts, text, ids, interrupt));
  Interview interview(*runtime, scheduler, flags, text, reading, watches);
  INFLLM_ASSIGN_OR_RETURN(Json answers, interview.Run(interrupt));

  interview.CountIn(reading.sequence);
  INFLLM_ASSIGN_OR_RETURN(Json report, Report(*runtime, flags, reading, interview.attention()));
  if (!watches.empty()) report["recall"] = {{"hits", interview.hits()}, {"asked", watches.size()}};
  if (flags.runtime.json) {
    report["answers"] = std::move(answers);
    return StreamOut(report.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  }
  PrintReport(report);
  return absl::OkStatus();
}

}  // namespace

Command AddAskCommand(CLI::App& app) {
  auto flags = std::make_shared<AskFlags>();
  AddRuntimeFlags(app, flags->runtime);
  app.add_option("--text", flags->text, "text file to read; - is stdin");
  app.add_option(
         "--context", flags->contexts,
         "a context that `infllm ingest` has committed, instead of a text; repeat it for more: "
         "what they hold can be retrieved, and the last, or the text, is what comes before "
         "the question")
      ->take_all();
  app.add_option("--question", flags->questions,
                 "question about the text; repeat it for more, each is asked of the same state")
      ->required()
      ->take_all();
  app.add_option("--evidence", flags->evidence,
                 "passage of the text that answers the question of the same rank: the report tells "
                 "whether its blocks were retrieved")
      ->take_all();
  app.add_option("--question-format", flags->question_format,
                 "what follows the text; \\n is a newline")
      ->capture_default_str();
  AddSamplingFlags(app, flags->sampling, 64);
  return [flags] { return RunAsk(*flags); };
}

}  // namespace infllm::services
