#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/attention/attention_policy.h"
#include "worker/engine/sampler.h"
#include "worker/transformer/transformer.h"

namespace infllm::worker {

// One context being read and continued. Not thread-safe; sessions that share a Transformer must
// not run at the same time. After an error a session is unusable.
class Session {
 public:
  // `transformer` and `policy` must outlive the session.
  static absl::StatusOr<std::unique_ptr<Session>> New(Transformer& transformer,
                                                      AttentionPolicy& policy);

  // Tokens read so far.
  int64_t position() const { return position_; }

  // Tokens of a chunk: how Ingest() cuts what it reads, from the first token on. A fork made at a
  // multiple of it reads on in the same chunks, so to the same bits, as one session would.
  int64_t chunk_tokens() const { return chunk_tokens_; }

  // Called after each chunk with the tokens of this call read so far.
  using Progress = std::function<void(int64_t tokens_done)>;
  // Reads tokens in chunks, a multiple of exec_block. CANCELLED if *cancel becomes true.
  absl::Status Ingest(std::span<const int32_t> tokens, const Progress& progress = nullptr,
                      const std::atomic<bool>* cancel = nullptr);

  // Reads tokens as Ingest does and shows the logits after each: `visit(i, logits)` for token i.
  absl::Status Score(std::span<const int32_t> tokens, LogitsVisitor visit,
                     const Progress& progress = nullptr, const std::atomic<bool>* cancel = nullptr);

  // Reads one token as an exec block of its own; the logits after it, valid until the next call.
  absl::StatusOr<std::span<const float>> Step(int32_t token);

  // A session that continues from here independently; see AttentionState::Fork.
  absl::StatusOr<std::unique_ptr<Session>> Fork();

  AttentionState& state() { return *state_; }

 private:
  Session(Transformer& transformer, std::unique_ptr<AttentionState> state, int64_t chunk_tokens)
      : transformer_(transformer), state_(std::move(state)), chunk_tokens_(chunk_tokens) {}

  absl::Status Run(std::span<const int32_t> tokens, bool logits, LogitsVisitor visit,
                   const Progress& progress, const std::atomic<bool>* cancel);

  Transformer& transformer_;
  std::unique_ptr<AttentionState> state_;
  const int64_t chunk_tokens_;
  int64_t position_ = 0;
  std::vector<float> logits_;
};

struct GenerateOptions {
  int64_t max_tokens = 0;
  SamplingOptions sampling;
  std::vector<int32_t> stop_ids;  // end of sequence: ends the generation, is not reported
};
struct GenerateResult {
  std::vector<int32_t> ids;
  bool stopped = false;            // by a stop id rather than by max_tokens
  double first_token_seconds = 0;  // from the call to the first token
  double total_seconds = 0;
};
// Reads `prompt` (at least one token) and continues it. The last prompt token is a step of its own,
// as in the published code. `emit(token)` sees each new token at once and returns false to end.
absl::StatusOr<GenerateResult> Generate(Session& session, std::span<const int32_t> prompt,
                                        const GenerateOptions& options,
                                        const std::function<bool(int32_t)>& emit,
                                        const Session::Progress& progress = nullptr,
                                        const std::atomic<bool>* cancel = nullptr);

}  // namespace infllm::worker
