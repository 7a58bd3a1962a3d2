#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "kernels/core/status_macros.h"
#include "services/cli/commands.h"
#include "services/cli/output.h"
#include "services/cli/progress.h"
#include "services/cli/runtime.h"
#include "services/cli/sampling_flags.h"

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
  INFLLM_ASSIGN_OR_RETURN(const std::unique_ptr<Runtime> runtime, Runtime::Make(flags.runtime));
  const worker::LoadedModel& model = *runtime->model;
  INFLLM_RETURN_IF_ERROR(RequireTokenizer(model, flags.runtime.model));
  const std::vector<int32_t> ids = model.EncodePrompt(prompt);

  INFLLM_ASSIGN_OR_RETURN(const auto session, runtime->NewSession());
  const auto decoder = model.tokenizer->NewStreamDecoder(/*continuation=*/!prompt.empty());
  std::string text;
  absl::Status written;
  const auto print = [&](const std::string& piece) {
    text += piece;
    if (!flags.runtime.json) written.Update(StreamOut(piece));
    return written.ok();
  };
  Progress progress("reading the prompt", "tokens", static_cast<int64_t>(ids.size()));
  const auto result = worker::Generate(
      *session, ids, flags.sampling.GenerateOptions(model),
      [&](int32_t token) {
        progress.Finish();
        return print(decoder->Add(token));
      },
      [&](int64_t done) { progress.Update(done); }, runtime->interrupt.flag());
  progress.Finish();
  print(decoder->Finish() + (flags.runtime.json ? "" : "\n"));
  INFLLM_RETURN_IF_ERROR(result.status());
  INFLLM_RETURN_IF_ERROR(written);

  const double decode_seconds = result->total_seconds - result->first_token_seconds;
  const double decoded = static_cast<double>(result->ids.size()) - 1;
  const nlohmann::ordered_json timings = {
      {"load_seconds", runtime->load_seconds},
      {"time_to_first_token_seconds", result->first_token_seconds},
      {"prompt_tokens_per_second",
       result->first_token_seconds > 0 ? double(ids.size()) / result->first_token_seconds : 0},
      {"decode_tokens_per_second", decode_seconds > 0 ? decoded / decode_seconds : 0},
      {"total_seconds", result->total_seconds}};
  if (flags.runtime.json) {
    const nlohmann::ordered_json out = {{"text", text},
                                        {"ids", result->ids},
                                        {"prompt_tokens", ids.size()},
                                        {"completion_tokens", result->ids.size()},
                                        {"finish_reason", result->stopped ? "stop" : "length"},
                                        {"timings", timings}};
    return StreamOut(out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  }
  absl::FPrintF(stderr,
                "%d prompt tokens, %d generated; first token after %.2f s, then %.1f tokens/s\n",
                ids.size(), result->ids.size(), result->first_token_seconds,
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
