#include "worker/engine/session.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "kernels/core/status_macros.h"

namespace infllm::worker {
namespace {

// Tokens per forward pass: enough for the matrix products to be compute-bound, few enough for
// activations to stay small and for ^C to be answered.
constexpr int64_t kChunkTokens = 512;

int64_t ChunkTokens(int64_t exec_block) {
  return std::max<int64_t>(1, kChunkTokens / exec_block) * exec_block;
}

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Session>> Session::New(Transformer& transformer,
                                                      AttentionPolicy& policy) {
  INFLLM_ASSIGN_OR_RETURN(std::unique_ptr<AttentionState> state, policy.NewState());
  return std::unique_ptr<Session>(
      new Session(transformer, std::move(state), ChunkTokens(policy.options().exec_block)));
}

absl::Status Session::Run(std::span<const int32_t> tokens, bool logits, LogitsVisitor visit,
                          const Progress& progress, const std::atomic<bool>* cancel) {
  const size_t chunk = static_cast<size_t>(chunk_tokens_);
  for (size_t begin = 0; begin < tokens.size(); begin += chunk) {
    const auto part = tokens.subspan(begin, std::min(tokens.size() - begin, chunk));
    const int64_t rows = static_cast<int64_t>(part.size());
    INFLLM_RETURN_IF_ERROR(
        transformer_.Forward({.tokens = part,
                              .first_position = position_,
                              .first_logits_row = logits ? 0 : rows,
                              .cancel = cancel},
                             *state_, [&](int64_t row, std::span<const float> row_logits) {
                               visit(static_cast<int64_t>(begin) + row, row_logits);
                             }));
    position_ += rows;
    if (progress) progress(static_cast<int64_t>(begin) + rows);
  }
  return absl::OkStatus();
}

absl::Status Session::Ingest(std::span<const int32_t> tokens, const Progress& progress,
                             const std::atomic<bool>* cancel) {
  return Run(
      tokens, false, [](int64_t, std::span<const float>) {}, progress, cancel);
}

absl::Status Session::Score(std::span<const int32_t> tokens, LogitsVisitor visit,
                            const Progress& progress, const std::atomic<bool>* cancel) {
  return Run(tokens, true, visit, progress, cancel);
}

absl::StatusOr<std::span<const float>> Session::Step(int32_t token) {
  INFLLM_RETURN_IF_ERROR(transformer_.Forward({.tokens = {&token, 1}, .first_position = position_},
                                              *state_, [&](int64_t, std::span<const float> logits) {
                                                logits_.assign(logits.begin(), logits.end());
                                              }));
  ++position_;
  return std::span<const float>(logits_);
}

absl::StatusOr<std::unique_ptr<Session>> Session::Fork() {
  INFLLM_ASSIGN_OR_RETURN(std::unique_ptr<AttentionState> state, state_->Fork());
  auto fork = std::unique_ptr<Session>(new Session(transformer_, std::move(state), chunk_tokens_));
  fork->position_ = position_;
  return fork;
}

absl::StatusOr<GenerateResult> Generate(Session& session, std::span<const int32_t> prompt,
                                        const GenerateOptions& options,
                                        const std::function<bool(int32_t)>& emit,
                                        const Session::Progress& progress,
                                        const std::atomic<bool>* cancel) {
  if (prompt.empty()) {
    return absl::InvalidArgumentError("the prompt is empty and the model has no BOS token");
  }
  INFLLM_RETURN_IF_ERROR(options.sampling.Validate());
  const auto start = std::chrono::steady_clock::now();
  GenerateResult result;
  Sampler sampler(options.sampling);
  INFLLM_RETURN_IF_ERROR(session.Ingest(prompt.first(prompt.size() - 1), progress, cancel));
  int32_t token = prompt.back();
  while (static_cast<int64_t>(result.ids.size()) < options.max_tokens) {
    if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) {
      return absl::CancelledError("interrupted");
    }
    INFLLM_ASSIGN_OR_RETURN(const std::span<const float> logits, session.Step(token));
    token = sampler.Sample(logits);
    if (result.ids.empty()) result.first_token_seconds = SecondsSince(start);
    if (std::find(options.stop_ids.begin(), options.stop_ids.end(), token) !=
        options.stop_ids.end()) {
      result.stopped = true;
      break;
    }
    result.ids.push_back(token);
    if (!emit(token)) break;
  }
  result.total_seconds = SecondsSince(start);
  return result;
}

}  // namespace infllm::worker
