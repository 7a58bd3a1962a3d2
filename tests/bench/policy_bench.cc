// Prefill and decode rates of every attention policy by text length, in one run, as a Markdown
// table. The text is the model's own tokens drawn at random: rates do not depend on what it says.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "kernels/core/status_macros.h"
#include "services/runtime/flags.h"
#include "services/runtime/runtime.h"
#include "worker/engine/scheduler.h"

namespace infllm::services {
namespace {

struct Rates {
  double prefill = 0, decode = 0;  // tokens/s
};

absl::StatusOr<Rates> Measure(const RuntimeFlags& flags, int64_t length, int64_t decode_tokens) {
  using Clock = std::chrono::steady_clock;
  const auto seconds = [](Clock::duration d) { return std::chrono::duration<double>(d).count(); };
  INFLLM_ASSIGN_OR_RETURN(const std::unique_ptr<Runtime> runtime, Runtime::Make(flags, nullptr));
  worker::Engine& engine = *runtime->engine;
  INFLLM_ASSIGN_OR_RETURN(const worker::SequenceId sequence, engine.NewSequence());
  std::mt19937 random(7);
  std::vector<int32_t> tokens(static_cast<size_t>(length));
  for (int32_t& token : tokens) {
    token =
        static_cast<int32_t>(random() % static_cast<uint32_t>(runtime->model->config.vocab_size));
  }
  Rates rates;
  const auto step = [&](std::span<const int32_t> some, worker::StepItem::Want want) {
    worker::StepItem item{.sequence = sequence, .tokens = some, .want = want};
    absl::Status status = engine.Step({&item, 1});
    status.Update(item.status);
    return status;
  };
  const Clock::time_point start = Clock::now();
  worker::Scheduler scheduler(engine, {.step_tokens = flags.step_tokens});
  scheduler.Add({.sequence = sequence, .tokens = tokens});
  INFLLM_RETURN_IF_ERROR(scheduler.Run());
  const Clock::time_point read = Clock::now();
  for (int64_t i = 0; i < decode_tokens; ++i) {
    INFLLM_RETURN_IF_ERROR(step(std::span(tokens).subspan(static_cast<size_t>(i % length), 1),
                                worker::StepItem::Want::kSample));
  }
  rates.prefill = static_cast<double>(length) / seconds(read - start);
  rates.decode = static_cast<double>(decode_tokens) / seconds(Clock::now() - read);
  return rates;
}

int Main(int argc, char** argv) {
  CLI::App app{"Prefill and decode tokens/s of every policy by text length"};
  RuntimeFlags flags;
  AddRuntimeFlags(app, flags);
  std::vector<int64_t> lengths = {1024, 8192, 65536, 1048576};
  int64_t full_limit = 65536, decode_tokens = 128;
  app.add_option("--lengths", lengths, "tokens of text")->delimiter(',')->capture_default_str();
  app.add_option("--full-limit", full_limit, "longest text read with full attention")
      ->capture_default_str();
  app.add_option("--decode-tokens", decode_tokens, "tokens decoded after the text")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  absl::PrintF("| policy |");
  for (const int64_t length : lengths) absl::PrintF(" %d prefill | %d decode |", length, length);
  absl::PrintF("\n|---|");
  for (size_t i = 0; i < lengths.size(); ++i) absl::PrintF("--:|--:|");
  absl::PrintF("\n");
  using worker::PolicyKind;
  for (const PolicyKind policy : {PolicyKind::kFull, PolicyKind::kStreamingLlm,
                                  PolicyKind::kLmInfinite, PolicyKind::kInfLlm}) {
    flags.attention.policy = policy;
    absl::PrintF("| %s |", std::string(worker::Name(policy)));
    for (const int64_t length : lengths) {
      if (policy == PolicyKind::kFull && length > full_limit) {
        absl::PrintF(" - | - |");
        continue;
      }
      const absl::StatusOr<Rates> rates = Measure(flags, length, decode_tokens);
      if (!rates.ok()) {
        absl::FPrintF(stderr, "\n%s\n", std::string(rates.status().message()));
        return 1;
      }
      absl::PrintF(" %.0f | %.0f |", rates->prefill, rates->decode);
      std::fflush(stdout);
    }
    absl::PrintF("\n");
  }
  return 0;
}

}  // namespace
}  // namespace infllm::services

int main(int argc, char** argv) { return infllm::services::Main(argc, argv); }
