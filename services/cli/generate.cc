#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "kernels/core/status_macros.h"
#include "services/cli/commands.h"
#include "services/cli/interrupt.h"
#include "services/cli/output.h"
#include "services/cli/sampling_flags.h"
#include "services/common/progress.h"
#include "services/runtime/runtime.h"
#include "worker/engine/scheduler.h"

namespace infllm::services {
namespace {

struct GenerateFlags {
  RuntimeFlags runtime;
  SamplingFlags sampling;
  std::string prompt, prompt_file;
};

absl::Status RunGenerate(const GenerateFlags& flags) {
  INFLLM_RETURN_IF_ERROR(flags.sampling.options.Validate());
  std::string prompt = flags.prompt;
  if (!flags.prompt_file.empty()) {
    INFLLM_ASSIGN_OR_RETURN(prompt, ReadText(flags.prompt_file));
  }
  const Interrupt interrupt;
  INFLLM_ASSIGN_OR_RETURN(const std::unique_ptr<Runtime> runtime,
                          Runtime::Make(flags.runtime, interrupt.flag()));
  const worker::LoadedModel& model = *runtime->model;
  INFLLM_RETURN_IF_ERROR(RequireTokenizer(model, flags.runtime.model));
  const std::vector<int32_t> prompt_ids = model.EncodePrompt(prompt);
  if (prompt_ids.empty()) {
    return absl::InvalidArgumentError("the prompt is empty and the model has no BOS token");
  }

  INFLLM_ASSIGN_OR_RETURN(const worker::SequenceId sequence, runtime->engine->NewSequence());
  const auto decoder = model.tokenizer->NewStreamDecoder(/*continuation=*/!prompt.empty());
  std::string text;
  std::vector<int32_t> ids;
  absl::Status written;
  const auto print = [&](const std::string& piece) {
    text += piece;
    if (!flags.runtime.json) written.Update(StreamOut(piece));
    return written.ok();
  };
  Progress progress("reading the prompt", "tokens", static_cast<int64_t>(prompt_ids.size()));
  worker::Outcome outcome;
  worker::Scheduler scheduler(*runtime->engine, {.step_tokens = runtime->step_tokens});
  scheduler.Add({.sequence = sequence,
                 .tokens = prompt_ids,
                 .max_tokens = flags.sampling.max_tokens,
                 .sampling = flags.sampling.options,
                 .stop_ids = model.StopIds(),
                 .on_read = [&](int64_t done) { progress.Update(done); },
                 .on_token =
                     [&](int32_t token) {
                       progress.Finish();
                       ids.push_back(token);
                       return print(decoder->Add(token));
                     },
                 .on_done = [&](const worker::Outcome& done) { outcome = done; }});
  const absl::Status status = scheduler.Run(interrupt.flag());
  progress.Finish();
  print(decoder->Finish() + (flags.runtime.json ? "" : "\n"));
  INFLLM_RETURN_IF_ERROR(status);
  INFLLM_RETURN_IF_ERROR(outcome.status);
  INFLLM_RETURN_IF_ERROR(written);

  const double decode_seconds = outcome.total_seconds - outcome.first_token_seconds;
  const double decoded = std::max(static_cast<double>(ids.size()) - 1, 0.0);
  const nlohmann::ordered_json timings = {
      {"load_seconds", runtime->load_seconds},
      {"time_to_first_token_seconds", outcome.first_token_seconds},
      {"prompt_tokens_per_second", outcome.first_token_seconds > 0
                                       ? double(prompt_ids.size()) / outcome.first_token_seconds
                                       : 0},
      {"decode_tokens_per_second", decode_seconds > 0 ? decoded / decode_seconds : 0},
      {"total_seconds", outcome.total_seconds}};
  if (flags.runtime.json) {
    const nlohmann::ordered_json out = {{"text", text},
                                        {"ids", ids},
                                        {"prompt_tokens", prompt_ids.size()},
                                        {"completion_tokens", ids.size()},
                                        {"finish_reason", outcome.stopped ? "stop" : "length"},
                                        {"timings", timings}};
    return StreamOut(out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  }
  absl::FPrintF(stderr,
                "%d prompt tokens, %d generated; first token after %.2f s, then %.1f tokens/s\n",
                prompt_ids.size(), ids.size(), outcome.first_token_seconds,
                timings["decode_tokens_per_second"].get<double>());
  return absl::OkStatus();
}

}  // namespace

Command AddGenerateCommand(CLI::App& app) {
  auto flags = std::make_shared<GenerateFlags>();
  AddRuntimeFlags(app, flags->runtime);
  CLI::Option* prompt = app.add_option("--prompt", flags->prompt, "text to continue; may be empty");
  app.add_option("--prompt-file", flags->prompt_file, "file with the text to continue; - is stdin")
      ->excludes(prompt);
  AddSamplingFlags(app, flags->sampling, 256);
  return [flags] { return RunGenerate(*flags); };
}

}  // namespace infllm::services
