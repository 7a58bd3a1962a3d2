#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/status_macros.h"
#include "services/cli/commands.h"
#include "services/cli/interrupt.h"
#include "services/cli/output.h"
#include "services/common/progress.h"
#include "services/runtime/runtime.h"
#include "worker/engine/scheduler.h"
#include "worker/model/json_depth.h"

namespace infllm::services {
namespace {

struct ScoreFlags {
  RuntimeFlags runtime;
  std::string text, token_ids;
  bool per_token = false;
};

// A JSON array of token ids.
absl::StatusOr<std::vector<int32_t>> ReadTokenIds(const std::string& path) {
  INFLLM_ASSIGN_OR_RETURN(const std::string bytes, ReadText(path));
  if (const absl::Status depth = worker::CheckJsonDepth(bytes); !depth.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", depth.message()));
  }
  const auto json = nlohmann::json::parse(bytes, nullptr, /*allow_exceptions=*/false);
  if (!json.is_array()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a JSON array of token ids"));
  }
  std::vector<int32_t> ids;
  for (const auto& id : json) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": element ", ids.size(), " is ", id.dump(), ", not a token id"));
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

// Before anything is computed: each id is needed as a target before it is read as an input.
absl::Status CheckVocabulary(std::span<const int32_t> ids, int64_t vocab_size,
                             const std::string& path) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < vocab_size) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": element ", i, " is ", ids[i],
                     ", but the vocabulary of the model has ids 0 to ", vocab_size - 1));
  }
  return absl::OkStatus();
}

absl::Status RunScore(const ScoreFlags& flags) {
  std::vector<int32_t> ids;
  std::string text;
  if (!flags.token_ids.empty()) {
    INFLLM_ASSIGN_OR_RETURN(ids, ReadTokenIds(flags.token_ids));
    INFLLM_ASSIGN_OR_RETURN(const worker::ModelConfig config,
                            worker::LoadModelConfig(flags.runtime.model));
    INFLLM_RETURN_IF_ERROR(CheckVocabulary(ids, config.vocab_size, flags.token_ids));
  } else {
    INFLLM_ASSIGN_OR_RETURN(text, ReadText(flags.text));
  }
  const Interrupt interrupt;
  INFLLM_ASSIGN_OR_RETURN(const std::unique_ptr<Runtime> runtime,
                          Runtime::Make(flags.runtime, interrupt.flag()));
  if (flags.token_ids.empty()) {
    INFLLM_RETURN_IF_ERROR(RequireTokenizer(*runtime->model, flags.runtime.model));
    ids = runtime->model->EncodePrompt(text);
  }
  if (ids.size() < 2) {
    return absl::InvalidArgumentError(absl::StrCat("nothing to predict: the input has ", ids.size(),
                                                   " tokens, at least 2 are "
                                                   "needed"));
  }

  INFLLM_ASSIGN_OR_RETURN(const worker::SequenceId sequence, runtime->engine->NewSequence());
  std::vector<int32_t> argmax;
  std::vector<double> token_nll;
  double total = 0;
  size_t scored = 0;
  Progress progress("scoring", "tokens", static_cast<int64_t>(ids.size()));
  worker::Outcome outcome;
  worker::Scheduler scheduler(*runtime->engine, {.step_tokens = runtime->step_tokens});
  scheduler.Add({.sequence = sequence,
                 .tokens = ids,
                 .on_scores =
                     [&](std::span<const worker::StepItem::Score> scores) {
                       for (const worker::StepItem::Score& score : scores) {
                         if (flags.per_token) argmax.push_back(score.argmax);
                         if (++scored == ids.size()) break;  // nothing follows the last token
                         total -= score.logprob;
                         if (flags.per_token) token_nll.push_back(-score.logprob);
                       }
                     },
                 .on_read = [&](int64_t done) { progress.Update(done); },
                 .on_done = [&](const worker::Outcome& done) { outcome = done; }});
  const auto start = std::chrono::steady_clock::now();
  INFLLM_RETURN_IF_ERROR(scheduler.Run(interrupt.flag()));
  INFLLM_RETURN_IF_ERROR(outcome.status);
  progress.Finish();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const double nll = total / static_cast<double>(ids.size() - 1);
  const double rate = static_cast<double>(ids.size()) / seconds;

  if (flags.runtime.json) {
    nlohmann::ordered_json out = {{"nll", nll},
                                  {"perplexity", std::exp(nll)},
                                  {"tokens", ids.size()},
                                  {"seconds", seconds},
                                  {"tokens_per_second", rate}};
    if (flags.per_token) {
      out["argmax"] = argmax;
      out["token_nll"] = token_nll;
    }
    return StreamOut(out.dump() + "\n");
  }
  absl::PrintF("nll %.6f  perplexity %.4f  over %s tokens, %s tokens/s\n", nll, std::exp(nll),
               WithThousands(static_cast<int64_t>(ids.size())),
               WithThousands(static_cast<int64_t>(rate)));
  for (size_t i = 0; i < token_nll.size(); ++i) {
    absl::PrintF("%d\t%d\t%.6f\t%d\n", i + 1, ids[i + 1], token_nll[i], argmax[i]);
  }
  return absl::OkStatus();
}

}  // namespace

Command AddScoreCommand(CLI::App& app) {
  auto flags = std::make_shared<ScoreFlags>();
  AddRuntimeFlags(app, flags->runtime);
  CLI::Option_group* const input = app.add_option_group("Input");
  input->add_option("--text", flags->text,
                    "text file; - is stdin. BOS is put before it if the model has one");
  input->add_option("--token-ids", flags->token_ids,
                    "JSON file with an array of token ids, scored as they are");
  input->require_option(1);
  app.add_flag("--per-token", flags->per_token,
               "also argmax (after each of the n tokens) and token_nll (of tokens 2..n)");
  app.footer("nll is the mean negative log-likelihood of tokens 2..n, in nats.");
  return [flags] { return RunScore(*flags); };
}

}  // namespace infllm::services
