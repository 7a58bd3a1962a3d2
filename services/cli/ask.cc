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
#include "services/cli/output.h"
#include "services/cli/progress.h"
#include "services/cli/runtime.h"
#include "services/cli/sampling_flags.h"
#include "services/common/byte_size.h"
#include "services/eval/evidence.h"
#include "services/eval/token_ranges.h"

namespace infllm::services {
namespace {

using Json = nlohmann::ordered_json;

struct AskFlags {
  RuntimeFlags runtime;
  SamplingFlags sampling;
  std::string text;
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

struct Ingested {
  std::unique_ptr<worker::Session> session;
  int64_t tokens = 0;
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

absl::StatusOr<Ingested> Ingest(Runtime& runtime, const AskFlags& flags, const std::string& text,
                                std::span<const int32_t> ids) {
  Ingested result;
  result.tokens = static_cast<int64_t>(ids.size());
  INFLLM_ASSIGN_OR_RETURN(result.session, runtime.NewSession());
  if (!flags.runtime.json) {
    absl::FPrintF(stderr, "reading %s tokens (%s of text) with policy %s\n",
                  WithThousands(result.tokens), FormatByteSize(static_cast<int64_t>(text.size())),
                  flags.runtime.policy);
  }
  const auto start = std::chrono::steady_clock::now();
  Progress progress("reading", "tokens", result.tokens);
  int64_t tenth_begin = 0;
  double tenth_start = 0;
  const auto on_chunk = [&](int64_t done) {
    progress.Update(done);
    result.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (done * 10 < result.tokens * static_cast<int64_t>(result.rates.size() + 1)) return;
    result.rates.push_back(static_cast<double>(done - tenth_begin) /
                           (result.seconds - tenth_start));
    tenth_begin = done;
    tenth_start = result.seconds;
  };
  INFLLM_RETURN_IF_ERROR(result.session->Ingest(ids, on_chunk, runtime.interrupt.flag()));
  return result;
}

// Asks one question in a fork of the ingested state.
absl::StatusOr<Json> Answer(Runtime& runtime, const AskFlags& flags, worker::Session& ingested,
                            const std::string& context, const std::string& question,
                            EvidenceWatch* watch) {
  INFLLM_ASSIGN_OR_RETURN(const auto session, ingested.Fork());
  if (watch != nullptr) session->state().set_observer(watch->observer());
  const std::vector<int32_t> ids = QuestionTokens(*runtime.model, flags, context, question);
  const int64_t begin = session->position() + static_cast<int64_t>(ids.size()) - 1;
  const auto decoder = runtime.model->tokenizer->NewStreamDecoder(/*continuation=*/true);
  std::string text;
  absl::Status written;
  const auto print = [&](const std::string& piece) {
    text += piece;
    if (!flags.runtime.json) written.Update(StreamOut(piece));
    return written.ok();
  };
  if (!flags.runtime.json) absl::PrintF("\nQ: %s\nA:", question);
  const auto result = worker::Generate(
      *session, ids, flags.sampling.GenerateOptions(*runtime.model),
      [&](int32_t token) { return print(decoder->Add(token)); }, nullptr, runtime.interrupt.flag());
  print(decoder->Finish());
  if (!flags.runtime.json) absl::PrintF("\n");
  INFLLM_RETURN_IF_ERROR(result.status());
  INFLLM_RETURN_IF_ERROR(written);
  Json out = {{"question", question},
              {"text", text},
              {"ids", result->ids},
              {"time_to_first_token_seconds", result->first_token_seconds},
              {"total_seconds", result->total_seconds}};
  if (watch != nullptr) {
    const Retrieval retrieval = watch->Result(begin, static_cast<int64_t>(result->ids.size()));
    const EvidenceWatch::Blocks blocks = watch->blocks().front();
    out["evidence"] = {{"first_block", blocks.first},
                       {"last_block", blocks.last},
                       {"in_window", retrieval.in_window},
                       {"layers_that_retrieved", retrieval.layers.size()},
                       {"layers", runtime.model->config.layers},
                       {"best_rank", retrieval.best_rank},
                       {"kept", retrieval.kept},
                       {"hit", retrieval.hit()}};
    if (!flags.runtime.json) absl::PrintF("   (%s)\n", watch->Describe(begin));
  }
  return out;
}

absl::StatusOr<Json> Report(Runtime& runtime, const AskFlags& flags, const Ingested& ingested) {
  Json report = {
      {"policy", flags.runtime.policy},
      {"text_tokens", ingested.tokens},
      {"load_seconds", runtime.load_seconds},
      {"ingest_seconds", ingested.seconds},
      {"tokens_per_second", ingested.seconds > 0 ? double(ingested.tokens) / ingested.seconds : 0},
      {"tokens_per_second_by_tenth", ingested.rates},
      {"peak_rss_bytes", PeakRssBytes()}};
  if (runtime.attention.store != nullptr) {
    INFLLM_ASSIGN_OR_RETURN(const memstore::StoreStats stats, runtime.attention.store->Stats());
    const worker::AttentionStats attention = ingested.session->state().stats();
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
  absl::PrintF("\nread      %s tokens in %s: %s tokens/s\n",
               WithThousands(report["text_tokens"].get<int64_t>()),
               HumanSeconds(report["ingest_seconds"].get<double>()),
               WithThousands(static_cast<int64_t>(report["tokens_per_second"].get<double>())));
  if (const Json& rates = report["tokens_per_second_by_tenth"]; rates.size() == 10) {
    absl::PrintF("rate      %s tokens/s over the second tenth of the text, %s over the last\n",
                 WithThousands(static_cast<int64_t>(rates[1].get<double>())),
                 WithThousands(static_cast<int64_t>(rates[9].get<double>())));
  }
  absl::PrintF("memory    %s peak\n", FormatByteSize(report["peak_rss_bytes"].get<int64_t>()));
  if (report.contains("memory")) {
    const Json& memory = report["memory"];
    const auto count = [&](const char* key) { return WithThousands(memory[key].get<int64_t>()); };
    const auto bytes = [&](const char* key) { return FormatByteSize(memory[key].get<int64_t>()); };
    absl::PrintF("blocks    %s stored: %s in RAM (%s), %s on disk (%s); representatives %s\n",
                 count("blocks_stored"), count("blocks_ram"), bytes("ram_bytes"),
                 count("blocks_cold"), bytes("cold_bytes"), bytes("representative_bytes"));
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
  INFLLM_ASSIGN_OR_RETURN(const std::string text, ReadText(flags.text));
  INFLLM_ASSIGN_OR_RETURN(const std::vector<TextRange> evidence, FindEvidence(flags, text));
  INFLLM_ASSIGN_OR_RETURN(const std::unique_ptr<Runtime> runtime, Runtime::Make(flags.runtime));
  INFLLM_RETURN_IF_ERROR(RequireTokenizer(*runtime->model, flags.runtime.model));
  std::vector<EvidenceWatch> watches;
  const std::vector<int32_t> ids = runtime->model->EncodePrompt(text);
  for (const TokenRange& tokens : LocateTokens(*runtime->model->tokenizer, ids, text, evidence)) {
    watches.emplace_back(std::span(&tokens, 1), runtime->attention.policy->options(),
                         runtime->model->config.layers);
  }

  INFLLM_ASSIGN_OR_RETURN(const Ingested ingested, Ingest(*runtime, flags, text, ids));
  Json answers = Json::array();
  int64_t hits = 0;
  for (size_t i = 0; i < flags.questions.size(); ++i) {
    EvidenceWatch* watch = watches.empty() ? nullptr : &watches[i];
    INFLLM_ASSIGN_OR_RETURN(
        Json answer, Answer(*runtime, flags, *ingested.session, text, flags.questions[i], watch));
    if (watch != nullptr && answer["evidence"]["hit"].get<bool>()) ++hits;
    answers.push_back(std::move(answer));
  }

  INFLLM_ASSIGN_OR_RETURN(Json report, Report(*runtime, flags, ingested));
  if (!watches.empty()) report["recall"] = {{"hits", hits}, {"asked", watches.size()}};
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
  app.add_option("--text", flags->text, "text file to read; - is stdin")->required();
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
