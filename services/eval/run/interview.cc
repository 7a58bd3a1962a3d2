#include "services/eval/run/interview.h"

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "services/eval/run/evidence.h"
#include "services/eval/run/full_attention_cost.h"
#include "services/eval/run/reading_plan.h"
#include "services/eval/run/token_ranges.h"
#include "worker/engine/scheduler.h"

namespace infllm::services {
namespace {

using worker::SequenceId;

// A sequence that is dropped with the last who needs it.
class SharedSequence {
 public:
  SharedSequence(worker::Engine& engine, SequenceId id)
      : engine_(&engine, [id](worker::Engine* e) { e->Drop(id); }), id_(id) {}
  SequenceId id() const { return id_; }
  bool shared() const { return engine_.use_count() > 1; }

 private:
  std::shared_ptr<worker::Engine> engine_;  // not owned: its deleter drops the sequence
  SequenceId id_;
};

class Interview {
 public:
  Interview(worker::ModelRuntime& model, EngineRuntime& runtime, std::span<const Sample> samples,
            const SubjectEvents& events)
      : model_(*model.model),
        dtype_(model.dtype),
        runtime_(runtime),
        samples_(samples),
        events_(events),
        scheduler_(*runtime.engine, {.step_tokens = runtime.step_tokens}) {}

  absl::Status Run(const std::atomic<bool>* cancel) {
    if (samples_.empty()) return absl::OkStatus();
    for (const Sample& sample : samples_) {
      texts_.push_back(model_.EncodePrompt(sample.text));
      for (size_t i = 0; i < sample.questions.size(); ++i) {
        if (!sample.questions[i].prompt.empty()) continue;
        return absl::InvalidArgumentError(
            absl::StrCat("question ", i, " of sample ", sample.id, " has no prompt"));
      }
    }
    answers_.resize(samples_.size());
    const ReadingNode plan = PlanReading(texts_, runtime_.engine->attention().exec_block);
    total_ = plan.TokensToRead();
    INFLLM_ASSIGN_OR_RETURN(const SequenceId root, runtime_.engine->NewSequence());
    Queue(true, [this, &plan, sequence = SharedSequence(*runtime_.engine, root)]() mutable {
      return Read(plan, std::move(sequence));
    });
    while (status_.ok() && (!scheduler_.idle() || !waiting_.empty())) {
      StartWaiting();
      if (status_.ok()) INFLLM_RETURN_IF_ERROR(scheduler_.Step(cancel));
    }
    return status_;
  }

 private:
  struct AnswerInMaking {
    std::unique_ptr<worker::StreamDecoder> decoder;
    std::unique_ptr<EvidenceWatch> watch;
    int64_t begin = 0;  // position of the token from which the answer begins
    Answer answer;
    bool done = false;
  };
  struct SampleAnswers {
    std::vector<AnswerInMaking> of_question;
    size_t told = 0;  // on_answer has been called for so many
    bool failed = false;
  };
  using Work = std::function<absl::Status()>;
  struct Waiting {
    bool reads = false;
    Work work;
  };

  // The latest first: a text's questions before the next text, so that few states wait. One text is
  // read at a time, which takes no longer than all at once, while earlier ones are asked.
  void Queue(bool reads, Work work) { waiting_.push_front({reads, std::move(work)}); }
  void StartWaiting() {
    while (status_.ok() && !waiting_.empty() && !no_room_ && running_ < runtime_.max_sequences &&
           !(waiting_.front().reads && reading_)) {
      const Work work = std::move(waiting_.front().work);
      waiting_.pop_front();
      status_.Update(work());
    }
  }

  // Goes on with `parent` itself if nobody else needs it any more.
  absl::StatusOr<SharedSequence> ForkUnlessLast(SharedSequence parent) {
    if (!parent.shared()) return parent;
    INFLLM_ASSIGN_OR_RETURN(const SequenceId fork, runtime_.engine->Fork(parent.id()));
    return SharedSequence(*runtime_.engine, fork);
  }

  absl::Status Read(const ReadingNode& node, SharedSequence parent) {
    absl::StatusOr<SharedSequence> sequence = ForkUnlessLast(std::move(parent));
    if (!sequence.ok()) return GiveUp(node, sequence.status());
    if (node.begin == node.end) return HaveRead(node, *std::move(sequence));
    const std::vector<int32_t>& text = texts_[node.text];
    auto read = std::make_shared<int64_t>(0);
    ++running_;
    reading_ = true;
    const SequenceId id = sequence->id();
    scheduler_.Add(
        {.sequence = id,
         .tokens = {text.begin() + node.begin, text.begin() + node.end},
         .on_read =
             [this, read](int64_t done) {
               done_ += done - *read;
               *read = done;
               if (events_.on_progress) events_.on_progress(done_, total_);
             },
         .on_done =
             [this, &node, sequence = *sequence](const worker::Outcome& outcome) mutable {
               --running_;
               no_room_ = reading_ = false;
               unclaimed_.tokens_read += node.end - node.begin;
               unclaimed_.seconds += outcome.read_seconds;
               status_.Update(outcome.status.ok() ? HaveRead(node, std::move(sequence))
                                                  : GiveUp(node, outcome.status));
             }});
    return absl::OkStatus();
  }

  absl::Status HaveRead(const ReadingNode& node, SharedSequence sequence) {
    if (node.children.empty()) return AskQuestions(node.text, std::move(sequence));
    for (size_t i = node.children.size(); i-- > 0;) {
      Queue(true, [this, &child = node.children[i], sequence]() mutable {
        return Read(child, std::move(sequence));
      });
    }
    return absl::OkStatus();
  }

  absl::Status AskQuestions(size_t index, SharedSequence text) {
    const Sample& sample = samples_[index];
    if (events_.on_read) {
      Reading reading = std::exchange(unclaimed_, {});
      INFLLM_RETURN_IF_ERROR(MeasureMemory(runtime_, text.id(), reading));
      INFLLM_RETURN_IF_ERROR(events_.on_read(index, reading));
    }
    std::vector<TextRange> ranges;
    for (const Question& question : sample.questions) {
      ranges.insert(ranges.end(), question.evidence.begin(), question.evidence.end());
    }
    const std::vector<TokenRange> passages =
        LocateTokens(*model_.tokenizer, texts_[index], sample.text, ranges);
    texts_[index] = {};  // read for good
    answers_[index].of_question.resize(sample.questions.size());
    size_t passage = passages.size();
    for (size_t i = sample.questions.size(); i-- > 0;) {
      passage -= sample.questions[i].evidence.size();
      const auto begin = passages.begin() + static_cast<std::ptrdiff_t>(passage);
      Queue(false, [this, index, i, text,
                    of_question = std::vector<TokenRange>(
                        begin, begin + static_cast<std::ptrdiff_t>(
                                           sample.questions[i].evidence.size()))]() mutable {
        return AskQuestion(index, i, of_question, std::move(text));
      });
    }
    return absl::OkStatus();
  }

  absl::Status AskQuestion(size_t index, size_t i, std::span<const TokenRange> passages,
                           SharedSequence text) {
    if (answers_[index].failed) return absl::OkStatus();
    const Sample& sample = samples_[index];
    AnswerInMaking& making = answers_[index].of_question[i];
    const int64_t text_tokens = runtime_.engine->position(text.id());
    absl::StatusOr<SequenceId> fork = runtime_.engine->Fork(text.id());
    if (absl::IsResourceExhausted(fork.status()) && running_ > 0) {
      no_room_ = true;  // until a sequence ends
      Queue(false, [this, index, i, text,
                    again = std::vector<TokenRange>(passages.begin(), passages.end())]() mutable {
        return AskQuestion(index, i, again, std::move(text));
      });
      return absl::OkStatus();
    }
    if (!fork.ok()) return GiveUp(index, fork.status());
    const SharedSequence sequence(*runtime_.engine, *fork);
    std::vector<int32_t> ids =
        EncodeContinuation(*model_.tokenizer, sample.text, sample.questions[i].prompt);
    making.begin = text_tokens + static_cast<int64_t>(ids.size()) - 1;
    making.answer.text_tokens = text_tokens;
    making.decoder = model_.tokenizer->NewStreamDecoder(/*continuation=*/true);
    if (!passages.empty()) {
      making.watch = std::make_unique<EvidenceWatch>(passages, runtime_.engine->attention(),
                                                     model_.config.layers);
      runtime_.engine->SetObserver(sequence.id(), making.watch->observer());
    }
    ++running_;
    scheduler_.Add({.sequence = sequence.id(),
                    .tokens = std::move(ids),
                    .max_tokens = sample.max_new_tokens,
                    .stop_ids = model_.StopIds(),
                    .on_token =
                        [&making](int32_t token) {
                          making.answer.output += making.decoder->Add(token);
                          return true;
                        },
                    .on_done =
                        [this, index, i, sequence](const worker::Outcome& outcome) {
                          --running_;
                          no_room_ = false;
                          status_.Update(outcome.status.ok()
                                             ? HaveAnswer(index, i, sequence.id(), outcome)
                                             : GiveUp(index, outcome.status));
                        }});
    return absl::OkStatus();
  }

  absl::Status HaveAnswer(size_t index, size_t i, SequenceId sequence,
                          const worker::Outcome& outcome) {
    SampleAnswers& answers = answers_[index];
    AnswerInMaking& making = answers.of_question[i];
    const Sample& sample = samples_[index];
    making.done = true;
    Answer& answer = making.answer;
    answer.output += making.decoder->Finish();
    answer.seconds = outcome.total_seconds;
    if (making.watch != nullptr) {
      answer.retrieval =
          making.watch->Result(making.begin, AnswerTokens(sample, sample.questions[i]));
    }
    const worker::AttentionStats stats = runtime_.engine->StatsOf(sequence);
    answer.cache_hits = stats.cache_hits;
    answer.cache_misses = stats.cache_misses;
    answer.miss_bytes = stats.cache_misses *
                        (KvBytes(model_.config, dtype_, runtime_.engine->attention().block_tokens) /
                         model_.config.layers);
    for (; answers.told < answers.of_question.size() && answers.of_question[answers.told].done;
         ++answers.told) {
      if (!events_.on_answer || answers.failed) continue;
      INFLLM_RETURN_IF_ERROR(
          events_.on_answer(index, answers.told, answers.of_question[answers.told].answer));
    }
    return absl::OkStatus();
  }

  // Of a right answer; where all of several are wanted, of all.
  int64_t AnswerTokens(const Sample& sample, const Question& question) const {
    size_t tokens = 0;
    for (const std::string& answer : question.answers) {
      tokens += model_.tokenizer->Encode(answer).size();
      if (sample.metric != Metric::kAllSubstrings) break;
    }
    return static_cast<int64_t>(tokens);
  }

  // One sample, or all that share the reading that failed.
  absl::Status GiveUp(size_t index, const absl::Status& error) {
    const bool of_sample = absl::IsResourceExhausted(error) || absl::IsDataLoss(error);
    if (!of_sample || !events_.on_error) return error;
    if (std::exchange(answers_[index].failed, true)) return absl::OkStatus();
    events_.on_error(index, error);
    return absl::OkStatus();
  }
  absl::Status GiveUp(const ReadingNode& node, const absl::Status& error) {
    if (node.children.empty()) return GiveUp(node.text, error);
    for (const ReadingNode& child : node.children) INFLLM_RETURN_IF_ERROR(GiveUp(child, error));
    return absl::OkStatus();
  }

  const worker::LoadedModel& model_;
  const kernels::DType dtype_;
  EngineRuntime& runtime_;
  const std::span<const Sample> samples_;
  const SubjectEvents& events_;
  worker::Scheduler scheduler_;
  std::vector<std::vector<int32_t>> texts_;  // tokens
  std::vector<SampleAnswers> answers_;       // parallel to samples_
  std::deque<Waiting> waiting_;
  int64_t running_ = 0;  // sequences that read or answer
  bool reading_ = false;
  bool no_room_ = false;  // for another fork, while sequences run
  int64_t done_ = 0, total_ = 0;
  Reading unclaimed_;  // since a sample's text ended
  absl::Status status_;
};

}  // namespace

absl::Status RunInterview(worker::ModelRuntime& model, EngineRuntime& runtime,
                          std::span<const Sample> samples, const SubjectEvents& events,
                          const std::atomic<bool>* cancel) {
  return Interview(model, runtime, samples, events).Run(cancel);
}

absl::Status MeasureMemory(const EngineRuntime& runtime, worker::SequenceId sequence,
                           Reading& reading) {
  reading.ram_bytes = runtime.engine->StatsOf(sequence).device_bytes;
  if (runtime.store == nullptr) return absl::OkStatus();
  INFLLM_ASSIGN_OR_RETURN(const memstore::StoreStats stats, runtime.store->Stats());
  reading.ram_bytes += stats.ram_bytes + stats.representative_bytes;
  reading.cold_bytes = stats.cold_bytes;
  return absl::OkStatus();
}

}  // namespace infllm::services
