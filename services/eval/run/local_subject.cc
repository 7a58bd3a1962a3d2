#include "services/eval/run/local_subject.h"

#include <algorithm>
#include <chrono>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "services/common/byte_size.h"
#include "services/common/progress.h"
#include "services/eval/run/evidence.h"
#include "services/eval/run/full_attention_cost.h"
#include "services/eval/run/reading_plan.h"
#include "services/eval/run/token_ranges.h"
#include "worker/engine/session.h"
#include "worker/model/available_memory.h"

namespace infllm::services {
namespace {

using worker::Session;

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

absl::Status MeasureMemory(AttentionRuntime& attention, Session& session, Reading& reading) {
  reading.ram_bytes = session.state().stats().device_bytes;
  if (attention.store == nullptr) return absl::OkStatus();
  INFLLM_ASSIGN_OR_RETURN(const memstore::StoreStats stats, attention.store->Stats());
  reading.ram_bytes += stats.ram_bytes + stats.representative_bytes;
  reading.cold_bytes = stats.cold_bytes;
  return absl::OkStatus();
}

// One call of Ask().
class Interview {
 public:
  Interview(ModelRuntime& model, AttentionRuntime& attention, std::span<const Sample> samples,
            const SubjectEvents& events, const std::atomic<bool>* cancel)
      : model_(model), attention_(attention), samples_(samples), events_(events), cancel_(cancel) {}

  absl::Status Run() {
    if (samples_.empty()) return absl::OkStatus();
    for (const Sample& sample : samples_) {
      texts_.push_back(model_.model->EncodePrompt(sample.text));
      for (size_t i = 0; i < sample.questions.size(); ++i) {
        if (!sample.questions[i].prompt.empty()) continue;
        return absl::InvalidArgumentError(
            absl::StrCat("question ", i, " of sample ", sample.id, " has no prompt"));
      }
    }
    INFLLM_ASSIGN_OR_RETURN(auto session, Session::New(*model_.transformer, *attention_.policy));
    const ReadingNode plan = PlanReading(texts_, session->chunk_tokens());
    total_ = plan.TokensToRead();
    return Read(plan, std::move(session));
  }

 private:
  absl::Status Read(const ReadingNode& node, std::unique_ptr<Session> session) {
    const auto start = std::chrono::steady_clock::now();
    const int64_t tokens = node.end - node.begin;
    const absl::Status read = session->Ingest(
        std::span(texts_[node.text])
            .subspan(static_cast<size_t>(node.begin), static_cast<size_t>(tokens)),
        [&](int64_t done) {
          if (events_.on_progress) events_.on_progress(done_ + done, total_);
        },
        cancel_);
    if (!read.ok()) return GiveUp(node, read);
    done_ += tokens;
    reading_.tokens_read += tokens;
    reading_.seconds += SecondsSince(start);
    if (node.children.empty()) return AskQuestions(node.text, *session);
    for (size_t i = 0; i + 1 < node.children.size(); ++i) {
      absl::StatusOr<std::unique_ptr<Session>> fork = session->Fork();
      INFLLM_RETURN_IF_ERROR(fork.ok() ? Read(node.children[i], *std::move(fork))
                                       : GiveUp(node.children[i], fork.status()));
    }
    return Read(node.children.back(), std::move(session));
  }

  // Of one sample, or of all that share the reading that failed; anything but too little room is
  // an error of the whole.
  absl::Status GiveUp(size_t index, const absl::Status& error) {
    if (!absl::IsResourceExhausted(error) || !events_.on_error) return error;
    events_.on_error(index, error);
    texts_[index] = {};
    return absl::OkStatus();
  }
  absl::Status GiveUp(const ReadingNode& node, const absl::Status& error) {
    if (node.children.empty()) {
      done_ += node.TokensToRead();
      return GiveUp(node.text, error);
    }
    done_ += node.end - node.begin;
    for (const ReadingNode& child : node.children) INFLLM_RETURN_IF_ERROR(GiveUp(child, error));
    return absl::OkStatus();
  }

  absl::Status AskQuestions(size_t index, Session& session) {
    const Sample& sample = samples_[index];
    if (events_.on_read) {
      const absl::Status measured = MeasureMemory(attention_, session, reading_);
      if (!measured.ok()) return GiveUp(index, measured);
      INFLLM_RETURN_IF_ERROR(events_.on_read(index, reading_));
    }
    reading_ = {};  // what comes next is read for the samples that come next
    std::vector<TextRange> ranges;
    for (const Question& question : sample.questions) {
      ranges.insert(ranges.end(), question.evidence.begin(), question.evidence.end());
    }
    const std::vector<TokenRange> passages =
        LocateTokens(*model_.model->tokenizer, texts_[index], sample.text, ranges);
    size_t next_passage = 0;
    for (size_t i = 0; i < sample.questions.size(); ++i) {
      const size_t count = sample.questions[i].evidence.size();
      const absl::StatusOr<Answer> answer = AskQuestion(
          sample, sample.questions[i], std::span(passages).subspan(next_passage, count), session);
      if (!answer.ok()) return GiveUp(index, answer.status());
      next_passage += count;
      if (events_.on_answer) INFLLM_RETURN_IF_ERROR(events_.on_answer(index, i, *answer));
    }
    texts_[index] = {};  // read for good
    return absl::OkStatus();
  }

  // Of a right answer; where all of several are wanted, of all.
  int64_t AnswerTokens(const Sample& sample, const Question& question) const {
    size_t tokens = 0;
    for (const std::string& answer : question.answers) {
      tokens += model_.model->tokenizer->Encode(answer).size();
      if (sample.metric != Metric::kAllSubstrings) break;
    }
    return static_cast<int64_t>(tokens);
  }

  absl::StatusOr<Answer> AskQuestion(const Sample& sample, const Question& question,
                                     std::span<const TokenRange> passages, Session& text) {
    INFLLM_ASSIGN_OR_RETURN(const auto session, text.Fork());
    const worker::ModelConfig& config = model_.model->config;
    const worker::AttentionOptions& options = attention_.policy->options();
    const worker::Tokenizer& tokenizer = *model_.model->tokenizer;
    EvidenceWatch watch(passages, options, config.layers);
    if (!passages.empty()) session->state().set_observer(watch.observer());
    const std::vector<int32_t> ids = EncodeContinuation(tokenizer, sample.text, question.prompt);
    Answer answer{.text_tokens = text.position()};
    const auto decoder = tokenizer.NewStreamDecoder(/*continuation=*/true);
    INFLLM_ASSIGN_OR_RETURN(
        const worker::GenerateResult result,
        worker::Generate(
            *session, ids,
            {.max_tokens = sample.max_new_tokens, .stop_ids = model_.model->StopIds()},
            [&](int32_t token) {
              answer.output += decoder->Add(token);
              return true;
            },
            nullptr, cancel_));
    answer.output += decoder->Finish();
    answer.seconds = result.total_seconds;
    if (!passages.empty()) {
      answer.retrieval = watch.Result(text.position() + static_cast<int64_t>(ids.size()) - 1,
                                      AnswerTokens(sample, question));
    }
    const worker::AttentionStats stats = session->state().stats();
    answer.cache_hits = stats.cache_hits;
    answer.cache_misses = stats.cache_misses;
    answer.miss_bytes =
        stats.cache_misses * (KvBytes(config, model_.dtype, options.block_tokens) / config.layers);
    return answer;
  }

  ModelRuntime& model_;
  AttentionRuntime& attention_;
  const std::span<const Sample> samples_;
  const SubjectEvents& events_;
  const std::atomic<bool>* const cancel_;
  std::vector<std::vector<int32_t>> texts_;  // tokens
  int64_t done_ = 0, total_ = 0;
  Reading reading_;  // since the last sample's text ended
};

class LocalSubject final : public Subject {
 public:
  LocalSubject(ModelRuntime& model, AttentionRuntime attention, int64_t max_full_tokens)
      : model_(model), attention_(std::move(attention)), max_full_tokens_(max_full_tokens) {}

  int64_t CountTokens(std::string_view text) const override {
    return static_cast<int64_t>(model_.model->EncodePrompt(text).size());
  }

  std::optional<std::string> CannotRead(int64_t tokens) const override {
    if (attention_.policy->options().policy != worker::PolicyKind::kFull) return std::nullopt;
    const int64_t bytes = KvBytes(model_.model->config, model_.dtype, tokens);
    const std::string needs =
        absl::StrCat("full attention over ", WithThousands(tokens), " tokens would need ",
                     FormatByteSize(bytes), " of keys and values");
    if (const auto available = worker::AvailableMemoryBytes(); available && bytes > *available) {
      return absl::StrCat(needs, ", and ", FormatByteSize(*available), " of memory are free");
    }
    if (tokens <= max_full_tokens_) return std::nullopt;
    const absl::StatusOr<double> seconds =
        EstimateReadingSeconds(model_, *attention_.policy, tokens);
    return absl::StrCat(
        needs,
        seconds.ok() ? absl::StrCat(" and about ", HumanSeconds(*seconds), " here") : std::string(),
        "; raise --max-full-tokens above ", WithThousands(max_full_tokens_), " to run it");
  }

  absl::Status Ask(std::span<const Sample> samples, const SubjectEvents& events,
                   const std::atomic<bool>* cancel) override {
    return Interview(model_, attention_, samples, events, cancel).Run();
  }

  absl::StatusOr<Reading> Perplexity(
      std::string_view text, int64_t most_tokens,
      const std::function<void(int64_t position, double nll)>& visit,
      const std::function<void(int64_t done, int64_t total)>& progress,
      const std::atomic<bool>* cancel) override {
    std::vector<int32_t> ids = model_.model->EncodePrompt(text);
    ids.resize(std::min(ids.size(), static_cast<size_t>(std::max<int64_t>(most_tokens, 0))));
    const int64_t total = static_cast<int64_t>(ids.size());
    INFLLM_ASSIGN_OR_RETURN(const auto session,
                            Session::New(*model_.transformer, *attention_.policy));
    const auto start = std::chrono::steady_clock::now();
    INFLLM_RETURN_IF_ERROR(session->Score(
        ids,
        [&](int64_t i, std::span<const float> logits) {
          if (i + 1 == total) return;
          visit(i + 1, worker::NegativeLogLikelihood(logits, ids[static_cast<size_t>(i) + 1]));
        },
        [&](int64_t done) {
          if (progress) progress(done, total);
        },
        cancel));
    Reading reading{.tokens_read = total, .seconds = SecondsSince(start)};
    INFLLM_RETURN_IF_ERROR(MeasureMemory(attention_, *session, reading));
    return reading;
  }

 private:
  ModelRuntime& model_;
  AttentionRuntime attention_;
  const int64_t max_full_tokens_;
};

}  // namespace

std::unique_ptr<Subject> NewLocalSubject(ModelRuntime& model, AttentionRuntime attention,
                                         int64_t max_full_tokens) {
  return std::make_unique<LocalSubject>(model, std::move(attention), max_full_tokens);
}

}  // namespace infllm::services
