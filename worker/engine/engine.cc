#include "worker/engine/engine.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "worker/model/available_memory.h"

namespace infllm::worker {
namespace {

// Where the system does not tell what is free.
constexpr int64_t kUnknownMemoryKvBytes = int64_t{4} << 30;

std::string Name(SequenceId id) { return absl::StrCat("sequence ", static_cast<uint64_t>(id)); }

}  // namespace

int64_t DefaultKvBytes() {
  const std::optional<int64_t> available = AvailableMemoryBytes();
  return available.has_value() ? *available / 2 : kUnknownMemoryKvBytes;
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::New(const LoadedModel& model,
                                                    kernels::Backend& backend,
                                                    kernels::ThreadPool& pool,
                                                    memstore::MemoryStore* store,
                                                    const Options& options) {
  INFLLM_ASSIGN_OR_RETURN(
      std::unique_ptr<AttentionPolicy> policy,
      AttentionPolicy::New(
          model.config, options.attention,
          {.backend = &backend,
           .pool = &pool,
           .store = store,
           .kv_dtype = options.kv_dtype,
           .fingerprint = model.fingerprint,
           .kv_bytes = options.kv_bytes > 0 ? options.kv_bytes : DefaultKvBytes()}));
  return std::unique_ptr<Engine>(new Engine(model, backend, store, std::move(policy)));
}

Engine::Engine(const LoadedModel& model, kernels::Backend& backend, memstore::MemoryStore* store,
               std::unique_ptr<AttentionPolicy> policy)
    : model_(model),
      backend_(backend),
      store_(store),
      policy_(std::move(policy)),
      decoder_(model.config, *model.weights, backend, stream_),
      scratch_(backend) {}

Engine::~Engine() = default;

Engine::KvUse Engine::kv_use() const {
  const PageArena& arena = policy_->arena();
  return {
      .page_bytes = arena.page_bytes(), .pages = arena.pages(), .free_pages = arena.free_pages()};
}

Engine::Sequence* Engine::Find(SequenceId id) {
  const auto found = sequences_.find(id);
  return found == sequences_.end() ? nullptr : &found->second;
}

absl::StatusOr<Engine::Sequence*> Engine::FindSound(SequenceId id) {
  Sequence* const sequence = Find(id);
  if (sequence != nullptr && !sequence->failed) return sequence;
  return absl::NotFoundError(
      absl::StrCat(Name(id), sequence == nullptr ? " does not exist" : " has failed"));
}

SequenceId Engine::Add(std::unique_ptr<AttentionState> state) {
  const SequenceId id{next_sequence_++};
  sequences_.emplace(id, Sequence{.state = std::move(state)});
  return id;
}

absl::StatusOr<SequenceId> Engine::NewSequence(
    std::span<const memstore::CommittedContext> mounted) {
  INFLLM_ASSIGN_OR_RETURN(std::unique_ptr<AttentionState> state, policy_->NewState(mounted));
  return Add(std::move(state));
}

absl::StatusOr<SequenceId> Engine::Fork(SequenceId parent) {
  INFLLM_ASSIGN_OR_RETURN(const Sequence* const from, FindSound(parent));
  INFLLM_ASSIGN_OR_RETURN(std::unique_ptr<AttentionState> state, policy_->Fork(*from->state));
  return Add(std::move(state));
}

absl::StatusOr<Engine::Start> Engine::StartFromPrefix(std::span<const int32_t> tokens) {
  Start start;
  const auto open = [&]() -> absl::Status {
    INFLLM_ASSIGN_OR_RETURN(const memstore::Prefix prefix, policy_->FindPrefix(tokens));
    INFLLM_ASSIGN_OR_RETURN(const memstore::Checkpoint checkpoint,
                            store_->ReadCheckpoint(prefix.context.id));
    const auto same = tokens.first(static_cast<size_t>(prefix.tokens));
    if (checkpoint.tokens.size() < same.size() ||
        !std::ranges::equal(same, std::span(checkpoint.tokens).first(same.size()))) {
      return absl::DataLossError(absl::StrCat("context \"", prefix.context.name,
                                              "\" was found by hashes of tokens that it does not "
                                              "hold"));
    }
    INFLLM_ASSIGN_OR_RETURN(start.sequence, Open(prefix.context, checkpoint.state, prefix.tokens));
    start.cached_tokens = prefix.tokens;
    start.context = prefix.context.name;
    return absl::OkStatus();
  };
  absl::Status status = open();
  if (status.ok()) return start;
  if (!absl::IsNotFound(status)) start.passed_over = std::move(status);
  INFLLM_ASSIGN_OR_RETURN(start.sequence, NewSequence());
  return start;
}

absl::StatusOr<memstore::ContextId> Engine::Commit(SequenceId id, std::string_view name,
                                                   const memstore::ContextId& replaces,
                                                   std::span<const int32_t> tokens) {
  INFLLM_ASSIGN_OR_RETURN(const Sequence* const sequence, FindSound(id));
  if (const int64_t read = position(id); static_cast<int64_t>(tokens.size()) != read) {
    return absl::InvalidArgumentError(
        absl::StrCat(Name(id), " has read ", read, " tokens, the commit is of ", tokens.size()));
  }
  return policy_->Commit(*sequence->state, name, replaces, tokens);
}

absl::StatusOr<SequenceId> Engine::Open(const memstore::CommittedContext& committed,
                                        std::span<const std::byte> saved, int64_t position,
                                        std::span<const memstore::CommittedContext> mounted) {
  INFLLM_ASSIGN_OR_RETURN(std::unique_ptr<AttentionState> state,
                          policy_->Open(committed, saved, position, mounted));
  return Add(std::move(state));
}

void Engine::Drop(SequenceId sequence) { sequences_.erase(sequence); }

int64_t Engine::position(SequenceId sequence) const {
  return sequences_.at(sequence).state->window.tokens();
}
AttentionStats Engine::StatsOf(SequenceId sequence) const {
  return policy_->StatsOf(*sequences_.at(sequence).state);
}
void Engine::SetObserver(SequenceId sequence, SelectionObserver observer) {
  sequences_.at(sequence).state->observer = std::move(observer);
}

absl::Status Engine::Check(const StepItem& item) {
  INFLLM_ASSIGN_OR_RETURN(const Sequence* const sequence, FindSound(item.sequence));
  for (const StepPart& part : parts_) {
    if (part.state == sequence->state.get()) {
      return absl::InvalidArgumentError(absl::StrCat(Name(item.sequence), " is in the step twice"));
    }
  }
  if (item.tokens.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(Name(item.sequence), " has no next tokens"));
  }
  const auto check_id = [&](int32_t id, size_t i, int32_t least) {
    if (id >= least && id < model_.config.vocab_size) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("token ", sequence->state->window.tokens() + static_cast<int64_t>(i), " is ",
                     id, ", the vocabulary has ids 0 to ", model_.config.vocab_size - 1));
  };
  for (size_t i = 0; i < item.tokens.size(); ++i) {
    INFLLM_RETURN_IF_ERROR(check_id(item.tokens[i], i, 0));
  }
  if (item.want == StepItem::Want::kSample) return item.sampling.Validate();
  if (item.want != StepItem::Want::kScores) return absl::OkStatus();
  if (item.targets.size() != item.tokens.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(item.targets.size(), " targets for ", item.tokens.size(), " tokens"));
  }
  for (size_t i = 0; i < item.targets.size(); ++i) {
    INFLLM_RETURN_IF_ERROR(check_id(item.targets[i], i + 1, -1));
  }
  return absl::OkStatus();
}

absl::Status Engine::Step(std::span<StepItem> items, const std::atomic<bool>* cancel) {
  parts_.clear();
  part_items_.clear();
  for (StepItem& item : items) {
    item.status = Check(item);
    item.unchanged = !item.status.ok();
    if (!item.status.ok()) continue;
    parts_.push_back({.state = Find(item.sequence)->state.get(),
                      .tokens = static_cast<int64_t>(item.tokens.size())});
    part_items_.push_back(&item);
  }
  absl::Status status = Run(cancel);
  for (size_t i = 0; i < parts_.size(); ++i) {
    StepItem& item = *part_items_[i];
    if (!item.unchanged && !status.ok()) item.status = status;
    if (!item.status.ok() && !item.unchanged) Find(item.sequence)->failed = true;
  }
  return status;
}

absl::Status Engine::Run(const std::atomic<bool>* cancel) {
  scratch_.Reset();
  INFLLM_RETURN_IF_ERROR(policy_->Plan(parts_));
  tokens_.clear();
  for (size_t i = 0; i < parts_.size(); ++i) {
    StepItem& item = *part_items_[i];
    item.status = parts_[i].status;
    // These are found before anything is done; a device may fail later.
    item.unchanged = absl::IsResourceExhausted(item.status) || absl::IsInvalidArgument(item.status);
    if (!item.status.ok()) continue;
    tokens_.insert(tokens_.end(), item.tokens.begin(), item.tokens.end());
  }
  if (tokens_.empty()) return absl::OkStatus();
  const bool keep_inputs = policy_->may_redo();
  INFLLM_RETURN_IF_ERROR(decoder_.Reserve(policy_->rows(), keep_inputs));
  INFLLM_RETURN_IF_ERROR(CollectWanted());
  INFLLM_RETURN_IF_ERROR(decoder_.Embed(tokens_));
  INFLLM_RETURN_IF_ERROR(Enqueue(0, keep_inputs, cancel));
  INFLLM_RETURN_IF_ERROR(backend_.Synchronize(stream_));
  if (const int64_t layer = policy_->FirstMissedLayer(); layer >= 0) {
    policy_->RedoFrom(layer);
    INFLLM_RETURN_IF_ERROR(decoder_.Restore(layer));
    INFLLM_RETURN_IF_ERROR(Enqueue(layer, /*keep_inputs=*/false, cancel));
    INFLLM_RETURN_IF_ERROR(backend_.Synchronize(stream_));
  }
  policy_->End();
  for (size_t i = 0; i < parts_.size(); ++i) part_items_[i]->status = parts_[i].status;
  ReadWanted();
  return absl::OkStatus();
}

absl::Status Engine::Enqueue(int64_t first_layer, bool keep_inputs,
                             const std::atomic<bool>* cancel) {
  for (int64_t layer = first_layer; layer < model_.config.layers; ++layer) {
    if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) {
      INFLLM_RETURN_IF_ERROR(backend_.Synchronize(stream_));
      return absl::CancelledError("interrupted");
    }
    INFLLM_RETURN_IF_ERROR(decoder_.RunLayer(layer, *policy_, keep_inputs));
  }
  INFLLM_RETURN_IF_ERROR(policy_->EnqueueEnd());
  for (const StepItem::Want want :
       {StepItem::Want::kSample, StepItem::Want::kScores, StepItem::Want::kLogits}) {
    INFLLM_RETURN_IF_ERROR(EnqueueWanted(want));
  }
  return absl::OkStatus();
}

absl::Status Engine::CollectWanted() {
  for (WantedRows& wanted : wanted_) wanted.rows.clear();
  for (size_t i = 0; i < parts_.size(); ++i) {
    StepItem& item = *part_items_[i];
    if (!item.status.ok() || item.want == StepItem::Want::kNothing) continue;
    const int64_t tokens = parts_[i].tokens;
    const int64_t first = item.want == StepItem::Want::kSample ? tokens - 1 : 0;
    for (int64_t token = first; token < tokens; ++token) {
      wanted_[static_cast<size_t>(item.want)].rows.push_back(
          {.item = &item,
           .token = token,
           .row = static_cast<int32_t>(parts_[i].first_row + token)});
    }
  }
  for (WantedRows& wanted : wanted_) {
    const size_t rows = wanted.rows.size();
    INFLLM_ASSIGN_OR_RETURN(wanted.row, scratch_.Get<int32_t>(rows));
    INFLLM_ASSIGN_OR_RETURN(wanted.target, scratch_.Get<int32_t>(rows));
    INFLLM_ASSIGN_OR_RETURN(wanted.sample, scratch_.Get<kernels::SampleItem>(rows));
    INFLLM_ASSIGN_OR_RETURN(wanted.token, scratch_.Get<int32_t>(rows));
    INFLLM_ASSIGN_OR_RETURN(wanted.logprob, scratch_.Get<double>(rows));
    for (size_t i = 0; i < rows; ++i) {
      const WantedRow& want = wanted.rows[i];
      const StepItem& item = *want.item;
      wanted.row[i] = want.row;
      wanted.target[i] =
          item.want == StepItem::Want::kScores ? item.targets[static_cast<size_t>(want.token)] : -1;
      wanted.sample[i] = {.row = static_cast<int64_t>(i) % Decoder::kLogitsRows,
                          .temperature = item.sampling.temperature,
                          .top_p = item.sampling.top_p,
                          .top_k = item.sampling.top_k,
                          .uniform = item.uniform};
    }
  }
  WantedRows& all = wanted_[static_cast<size_t>(StepItem::Want::kLogits)];
  INFLLM_ASSIGN_OR_RETURN(
      all.logits,
      scratch_.Get<float>(all.rows.size() * static_cast<size_t>(model_.config.vocab_size)));
  return absl::OkStatus();
}

absl::Status Engine::EnqueueWanted(StepItem::Want want) {
  const WantedRows& wanted = wanted_[static_cast<size_t>(want)];
  const int64_t rows = static_cast<int64_t>(wanted.rows.size());
  const int64_t vocab = model_.config.vocab_size;
  for (int64_t first = 0; first < rows; first += Decoder::kLogitsRows) {
    const int64_t count = std::min(Decoder::kLogitsRows, rows - first);
    INFLLM_ASSIGN_OR_RETURN(const float* const logits, decoder_.Logits(wanted.row + first, count));
    absl::Status status;
    if (want == StepItem::Want::kSample) {
      status = backend_.Sample(stream_, {.logits = logits,
                                         .items = wanted.sample + first,
                                         .count = count,
                                         .vocab = vocab,
                                         .out_token = wanted.token + first,
                                         .out_logprob = wanted.logprob + first});
    } else if (want == StepItem::Want::kScores) {
      status = backend_.LogProbs(stream_, {.logits = logits,
                                           .target = wanted.target + first,
                                           .rows = count,
                                           .vocab = vocab,
                                           .out_logprob = wanted.logprob + first,
                                           .out_argmax = wanted.token + first});
    } else {
      status = backend_.Copy(stream_, wanted.logits + first * vocab, logits,
                             static_cast<size_t>(count * vocab) * sizeof(float));
    }
    INFLLM_RETURN_IF_ERROR(status);
  }
  return absl::OkStatus();
}

void Engine::ReadWanted() {
  for (const WantedRows& wanted : wanted_) {
    for (size_t i = 0; i < wanted.rows.size(); ++i) {
      const WantedRow& want = wanted.rows[i];
      StepItem& item = *want.item;
      if (!item.status.ok()) continue;
      if (want.token == 0) {
        item.scores.clear();
        item.logits.clear();
      }
      if (item.want != StepItem::Want::kLogits && std::isnan(wanted.logprob[i])) {
        item.status = absl::InvalidArgumentError(absl::StrCat(
            "the model gives no logits after token ",
            position(item.sequence) - static_cast<int64_t>(item.tokens.size()) + want.token,
            ": its weights are damaged, or its activations overflow in this dtype"));
        continue;
      }
      if (item.want == StepItem::Want::kSample) {
        item.token = wanted.token[i];
        item.logprob = wanted.logprob[i];
      } else if (item.want == StepItem::Want::kScores) {
        item.scores.push_back({.argmax = wanted.token[i], .logprob = wanted.logprob[i]});
      } else {
        const auto vocab = static_cast<size_t>(model_.config.vocab_size);
        item.logits.insert(item.logits.end(), wanted.logits + i * vocab,
                           wanted.logits + (i + 1) * vocab);
      }
    }
  }
}

}  // namespace infllm::worker
