#include "services/eval/run/local_subject.h"

#include <algorithm>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "services/common/byte_size.h"
#include "services/common/progress.h"
#include "services/eval/run/full_attention_cost.h"
#include "services/eval/run/interview.h"
#include "worker/engine/scheduler.h"
#include "worker/model/available_memory.h"

namespace infllm::services {
namespace {

class LocalSubject final : public Subject {
 public:
  LocalSubject(worker::ModelRuntime& model, EngineRuntime runtime, int64_t max_full_tokens)
      : model_(model), runtime_(std::move(runtime)), max_full_tokens_(max_full_tokens) {}

  int64_t CountTokens(std::string_view text) const override {
    return static_cast<int64_t>(model_.model->EncodePrompt(text).size());
  }

  std::optional<std::string> CannotRead(int64_t tokens) const override {
    if (runtime_.engine->attention().policy != worker::PolicyKind::kFull) return std::nullopt;
    const int64_t bytes = KvBytes(model_.model->config, model_.dtype, tokens);
    const std::string needs =
        absl::StrCat("full attention over ", WithThousands(tokens), " tokens would need ",
                     FormatByteSize(bytes), " of keys and values");
    if (const auto available = worker::AvailableMemoryBytes(); available && bytes > *available) {
      return absl::StrCat(needs, ", and ", FormatByteSize(*available), " of memory are free");
    }
    if (tokens <= max_full_tokens_) return std::nullopt;
    const absl::StatusOr<double> seconds = EstimateReadingSeconds(model_, *runtime_.engine, tokens);
    return absl::StrCat(
        needs,
        seconds.ok() ? absl::StrCat(" and about ", HumanSeconds(*seconds), " here") : std::string(),
        "; raise --max-full-tokens above ", WithThousands(max_full_tokens_), " to run it");
  }

  absl::Status Ask(std::span<const Sample> samples, const SubjectEvents& events,
                   const std::atomic<bool>* cancel) override {
    return RunInterview(model_, runtime_, samples, events, cancel);
  }

  absl::StatusOr<Reading> Perplexity(
      std::string_view text, int64_t most_tokens,
      const std::function<void(int64_t position, double nll)>& visit,
      const std::function<void(int64_t done, int64_t total)>& progress,
      const std::atomic<bool>* cancel) override {
    std::vector<int32_t> ids = model_.model->EncodePrompt(text);
    ids.resize(std::min(ids.size(), static_cast<size_t>(std::max<int64_t>(most_tokens, 0))));
    const int64_t total = static_cast<int64_t>(ids.size());
    INFLLM_ASSIGN_OR_RETURN(const worker::SequenceId sequence, runtime_.engine->NewSequence());
    int64_t position = 0;
    worker::Outcome outcome;
    worker::Scheduler scheduler(*runtime_.engine, {.step_tokens = runtime_.step_tokens});
    scheduler.Add({.sequence = sequence,
                   .tokens = ids,
                   .on_scores =
                       [&](std::span<const worker::StepItem::Score> scores) {
                         for (const worker::StepItem::Score& score : scores) {
                           if (++position < total) visit(position, -score.logprob);
                         }
                       },
                   .on_read =
                       [&](int64_t done) {
                         if (progress) progress(done, total);
                       },
                   .on_done = [&](const worker::Outcome& done) { outcome = done; }});
    absl::Status status = scheduler.Run(cancel);
    status.Update(outcome.status);
    Reading reading{.tokens_read = total, .seconds = outcome.read_seconds};
    if (status.ok()) status = MeasureMemory(runtime_, sequence, reading);
    runtime_.engine->Drop(sequence);
    INFLLM_RETURN_IF_ERROR(status);
    return reading;
  }

 private:
  worker::ModelRuntime& model_;
  EngineRuntime runtime_;
  const int64_t max_full_tokens_;
};

}  // namespace

std::unique_ptr<Subject> NewLocalSubject(worker::ModelRuntime& model, EngineRuntime runtime,
                                         int64_t max_full_tokens) {
  return std::make_unique<LocalSubject>(model, std::move(runtime), max_full_tokens);
}

}  // namespace infllm::services
