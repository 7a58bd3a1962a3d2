#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/status_macros.h"
#include "memstore/validate.h"
#include "services/cli/commands.h"
#include "services/cli/interrupt.h"
#include "services/cli/output.h"
#include "services/common/byte_size.h"
#include "services/common/progress.h"
#include "services/runtime/runtime.h"
#include "worker/engine/scheduler.h"

namespace infllm::services {
namespace {

using Json = nlohmann::ordered_json;

struct IngestFlags {
  RuntimeFlags runtime;
  std::string text, context;
  int64_t commit_tokens = 131072;
};

// Reads a text into a committed context, from where the last commit of that name ends.
class Ingest {
 public:
  Ingest(Runtime& runtime, const IngestFlags& flags, std::vector<int32_t> ids)
      : runtime_(runtime), flags_(flags), ids_(std::move(ids)) {}

  absl::Status Run(const Interrupt& interrupt) {
    INFLLM_RETURN_IF_ERROR(Begin());
    if (committed_ == total()) return absl::OkStatus();
    const auto start = std::chrono::steady_clock::now();
    absl::Status status = Read(interrupt);
    if (absl::IsDataLoss(status) && committed_ == 0 && begin_ > 0) {
      TellReadAnew(status);
      runtime_.engine->Drop(sequence_);
      begin_ = 0;
      INFLLM_ASSIGN_OR_RETURN(sequence_, runtime_.engine->NewSequence());
      status = Read(interrupt);
    }
    seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    runtime_.engine->Drop(sequence_);
    if (status.ok() || committed_ == 0 || absl::IsAlreadyExists(status)) return status;
    return absl::Status(status.code(),
                        absl::StrCat(status.message(), "\n", WithThousands(committed_),
                                     " tokens are committed; run this again to go on"));
  }

  Json Report() const {
    return {
        {"context", flags_.context},
        {"text_tokens", total()},
        {"cached_tokens", begin_},
        {"commits", commits_},
        {"load_seconds", runtime_.load_seconds},
        {"ingest_seconds", seconds_},
        {"tokens_per_second", seconds_ > 0 ? static_cast<double>(total() - begin_) / seconds_ : 0},
        {"peak_rss_bytes", PeakRssBytes()}};
  }

 private:
  int64_t total() const { return static_cast<int64_t>(ids_.size()); }

  // Opens what is committed already, or an empty sequence.
  absl::Status Begin() {
    const absl::StatusOr<memstore::CommittedContext> found =
        runtime_.store->FindCommitted("", flags_.context);
    if (absl::IsNotFound(found.status())) {
      INFLLM_ASSIGN_OR_RETURN(const worker::Engine::Start start,
                              StartFromPrefix(*runtime_.engine, ids_, flags_.runtime.json));
      sequence_ = start.sequence;
      begin_ = start.cached_tokens;
      return absl::OkStatus();
    }
    INFLLM_RETURN_IF_ERROR(found.status());
    INFLLM_ASSIGN_OR_RETURN(const memstore::Checkpoint checkpoint,
                            runtime_.store->ReadCheckpoint(found->id));
    replaces_ = found->id;
    begin_ = committed_ = found->tokens;
    // As if the text had been read at once: from a whole exec block on.
    const worker::AttentionOptions& attention = runtime_.engine->attention();
    if (begin_ != total() && attention.representative == kernels::RepresentativeKind::kBounds) {
      begin_ = std::min(begin_ - begin_ % attention.exec_block, found->reusable.tokens);
    }
    INFLLM_ASSIGN_OR_RETURN(sequence_, runtime_.engine->Open(*found, checkpoint.state, begin_));
    const auto [end_of_ours, end_of_its] = std::ranges::mismatch(ids_, checkpoint.tokens);
    if (end_of_its != checkpoint.tokens.end()) {
      return absl::FailedPreconditionError(
          absl::StrCat("context \"", flags_.context, "\" holds another text: from token ",
                       end_of_its - checkpoint.tokens.begin(), " of its ", checkpoint.tokens.size(),
                       " on it differs from ", flags_.text,
                       ". Give another --context, or drop it: infllm ", "contexts delete"));
    }
    return absl::OkStatus();
  }

  absl::Status Read(const Interrupt& interrupt) {
    if (!flags_.runtime.json) {
      absl::FPrintF(stderr, "reading %s tokens into context \"%s\"%s\n", WithThousands(total()),
                    flags_.context,
                    begin_ == 0 ? "" : absl::StrCat(", from token ", WithThousands(begin_), " on"));
    }
    if (begin_ == total()) return Commit(total());
    Progress progress("reading", "tokens", total() - begin_);
    worker::Scheduler scheduler(*runtime_.engine, {.step_tokens = runtime_.step_tokens});
    worker::Outcome outcome;
    int64_t done = 0;
    scheduler.Add({.sequence = sequence_,
                   .tokens = std::vector<int32_t>(ids_.begin() + begin_, ids_.end()),
                   .on_read = [&](int64_t read) { progress.Update(done = read); },
                   .on_done = [&](const worker::Outcome& result) { outcome = result; }});
    while (!scheduler.idle()) {
      INFLLM_RETURN_IF_ERROR(scheduler.Step(interrupt.flag()));
      INFLLM_RETURN_IF_ERROR(outcome.status);
      const int64_t read = begin_ + done;
      if (read - committed_ >= flags_.commit_tokens && read < total()) {
        INFLLM_RETURN_IF_ERROR(Commit(read));
      }
    }
    INFLLM_RETURN_IF_ERROR(outcome.status);
    return Commit(total());
  }

  absl::Status Commit(int64_t read) {
    INFLLM_ASSIGN_OR_RETURN(
        replaces_, runtime_.engine->Commit(sequence_, flags_.context, replaces_,
                                           std::span(ids_).first(static_cast<size_t>(read))));
    committed_ = read;
    ++commits_;
    return absl::OkStatus();
  }

  Runtime& runtime_;
  const IngestFlags& flags_;
  const std::vector<int32_t> ids_;
  worker::SequenceId sequence_{};
  memstore::ContextId replaces_;
  int64_t begin_ = 0;      // tokens that were not read again
  int64_t committed_ = 0;  // tokens
  int64_t commits_ = 0;
  double seconds_ = 0;
};

absl::Status RunIngest(const IngestFlags& flags) {
  if (flags.runtime.memstore.empty() && flags.runtime.data_dir.empty()) {
    return absl::InvalidArgumentError(
        "a context outlives this process in a memory store: give --data-dir DIR, or --memstore "
        "ADDRESS of an infllm-memstore that has one");
  }
  INFLLM_RETURN_IF_ERROR(memstore::ValidateName(flags.context));
  INFLLM_ASSIGN_OR_RETURN(const std::string text, ReadText(flags.text));
  const Interrupt interrupt;
  INFLLM_ASSIGN_OR_RETURN(const std::unique_ptr<Runtime> runtime,
                          Runtime::Make(flags.runtime, interrupt.flag()));
  INFLLM_RETURN_IF_ERROR(RequireTokenizer(*runtime->model, flags.runtime.model));
  if (runtime->store == nullptr) {
    return absl::InvalidArgumentError("only --policy infllm keeps what it reads in a memory store");
  }
  Ingest ingest(*runtime, flags, runtime->model->EncodePrompt(text));
  INFLLM_RETURN_IF_ERROR(ingest.Run(interrupt));
  const Json report = ingest.Report();
  if (flags.runtime.json) {
    return StreamOut(report.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  }
  if (report["commits"] == 0) {
    absl::PrintF("context \"%s\" holds all %s tokens already\n", flags.context,
                 WithThousands(report["text_tokens"].get<int64_t>()));
    return absl::OkStatus();
  }
  absl::PrintF("committed %s tokens as \"%s\" in %s: %s tokens/s\n",
               WithThousands(report["text_tokens"].get<int64_t>()), flags.context,
               HumanSeconds(report["ingest_seconds"].get<double>()),
               WithThousands(static_cast<int64_t>(report["tokens_per_second"].get<double>())));
  return absl::OkStatus();
}

}  // namespace

Command AddIngestCommand(CLI::App& app) {
  auto flags = std::make_shared<IngestFlags>();
  AddRuntimeFlags(app, flags->runtime);
  app.add_option("--text", flags->text, "text file to read; - is stdin")->required();
  app.add_option("--context", flags->context,
                 "name of the context; if it is there already and begins this text, reading goes "
                 "on from its end")
      ->required();
  app.add_option("--commit-tokens", flags->commit_tokens,
                 "tokens between commits: what is lost at most if this process is killed")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->capture_default_str();
  return [flags] { return RunIngest(*flags); };
}

}  // namespace infllm::services
