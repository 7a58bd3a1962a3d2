#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "worker/engine/engine.h"
#include "worker/engine/sampler.h"

namespace infllm::worker {

// What became of a request.
struct Outcome {
  absl::Status status;
  bool stopped = false;            // by a stop id rather than by max_tokens or on_token
  int64_t tokens = 0;              // generated
  double read_seconds = 0;         // its share of the steps that read its tokens, by rows
  double first_token_seconds = 0;  // from Add to the first token
  double total_seconds = 0;        // from Add to the end
};

// Tokens that a sequence reads, and how it then goes on. Callbacks are called between steps, by the
// thread that runs them; they may add requests and fork and drop sequences.
struct Request {
  SequenceId sequence{};        // the caller's; must live until on_done
  std::vector<int32_t> tokens;  // at least one
  // Generates so many tokens after them at most. The last of `tokens` is then an exec block of its
  // own, as in the published code.
  int64_t max_tokens = 0;
  SamplingOptions sampling;
  std::vector<int32_t> stop_ids;  // end the generation, are not reported
  // Asks for scores: what the model says after each of `tokens` of the one that follows it.
  std::function<void(std::span<const StepItem::Score>)> on_scores;
  std::function<void(int64_t done)> on_read;    // of `tokens`, so far
  std::function<bool(int32_t token)> on_token;  // each new token at once; false ends the generation
  std::function<void(const Outcome&)> on_done;  // last
};

// Runs requests on an engine, as many at a time as there are: each step takes the next token of
// every sequence that generates, and of those that read as many tokens as its budget leaves. Those
// that have read go behind the others. So generation waits for no long text. Not thread-safe.
class Scheduler {
 public:
  struct Options {
    // Tokens of one step: more are faster to read, fewer make tokens come more evenly. Pieces of
    // texts are whole exec blocks, rounded to the nearest, and one at least if nothing else is
    // read; sequences that generate come on top.
    int64_t step_tokens = 512;
    std::function<double()> clock;  // seconds; the steady clock unless given
  };
  // `engine` must outlive the scheduler.
  Scheduler(Engine& engine, Options options);

  // A request without tokens ends at once: INVALID_ARGUMENT.
  void Add(Request request);
  bool idle() const { return running_.empty(); }

  // Runs one step. A request that fails ends with its status and leaves the others unharmed; one
  // for which KV memory is lacking waits as long as others run. An error of the step as a whole, or
  // CANCELLED, is returned; all requests then end with it.
  absl::Status Step(const std::atomic<bool>* cancel = nullptr);
  // Steps until idle.
  absl::Status Run(const std::atomic<bool>* cancel = nullptr);

 private:
  static constexpr int64_t kAnyTokens = INT64_MAX;

  struct Running {
    Running(Request r, double now)
        : request(std::move(r)), draws(request.sampling.seed), draw(draws.Next()), added(now) {}
    Request request;
    Outcome outcome;
    Draws draws;
    double draw;  // decides the next token
    double added;
    size_t read = 0;                   // of request.tokens
    int64_t most_tokens = kAnyTokens;  // at a time: more did not fit in KV memory
    int fitted = 0;                    // pieces since that did
    bool grew = false;                 // most_tokens was doubled for the piece at hand
    int32_t last_token = -1;           // generated, not yet in the sequence
    std::vector<int32_t> targets;
    bool done = false;

    bool generates() const { return last_token >= 0; }
    // Tokens to be read in chunks, without the one that generation begins with.
    size_t to_read() const { return request.tokens.size() - (request.max_tokens > 0 ? 1 : 0); }
  };

  void Plan();
  void GiveWay();
  void Take(Running& running, const StepItem& item, double seconds);
  void Finish(Running& running, absl::Status status);

  Engine& engine_;
  const Options options_;
  std::list<Running> running_;
  int64_t stalled_ = 0;  // items that waited for KV memory since one did not
  // Of the step at hand, reused.
  std::vector<StepItem> items_;
  std::vector<Running*> item_running_;
  std::vector<std::list<Running>::iterator> readers_;
};

}  // namespace infllm::worker
