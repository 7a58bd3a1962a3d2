#include "worker/engine/scheduler.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "kernels/core/status_macros.h"

namespace infllm::worker {
namespace {

double SteadySeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Pieces that fit until one twice as large is tried again.
constexpr int kFittedToGrow = 4;

Scheduler::Options WithClock(Scheduler::Options options) {
  if (!options.clock) options.clock = SteadySeconds;
  return options;
}

}  // namespace

Scheduler::Scheduler(Engine& engine, Options options)
    : engine_(engine), options_(WithClock(std::move(options))) {}

void Scheduler::Add(Request request) {
  Running running(std::move(request), options_.clock());
  if (running.request.tokens.empty()) {
    return Finish(running, absl::InvalidArgumentError("a request has no tokens to begin with"));
  }
  running_.push_back(std::move(running));
}

// Chooses the items of the next step.
void Scheduler::Plan() {
  items_.clear();
  item_running_.clear();
  int64_t left = options_.step_tokens;
  const auto add = [&](Running& running, std::span<const int32_t> tokens) {
    StepItem item{.sequence = running.request.sequence, .tokens = tokens};
    left -= static_cast<int64_t>(tokens.size());
    items_.push_back(std::move(item));
    item_running_.push_back(&running);
    return &items_.back();
  };
  const auto sample = [&](Running& running, const int32_t* token) {
    StepItem* const item = add(running, {token, 1});
    item->want = StepItem::Want::kSample;
    item->sampling = running.request.sampling;
    item->uniform = running.draw;
  };
  for (Running& running : running_) {
    if (running.generates()) {
      sample(running, &running.last_token);
    } else if (running.read == running.to_read()) {
      sample(running, &running.request.tokens.back());
    }
  }
  std::vector<std::list<Running>::iterator>& readers = readers_;
  readers.clear();
  const int64_t exec_block = engine_.attention().exec_block;
  for (auto at = running_.begin(); at != running_.end(); ++at) {
    Running& running = *at;
    const auto to_read = static_cast<int64_t>(running.to_read() - running.read);
    if (running.generates() || to_read == 0) continue;
    int64_t count = std::min(
        {to_read, std::max<int64_t>(left, 0), engine_.max_item_tokens(), running.most_tokens});
    // To the nearest: a few tokens of others should not cost a whole exec block.
    if (count < to_read) count = (count + exec_block / 2) / exec_block * exec_block;
    count = std::min({count, to_read, engine_.max_item_tokens()});
    if (count == 0) {
      if (!readers.empty()) continue;
      count = std::min(to_read, exec_block);  // or a small budget would never read anything
    }
    readers.push_back(at);
    const std::span<const int32_t> tokens = running.request.tokens;
    StepItem* const item = add(running, tokens.subspan(running.read, static_cast<size_t>(count)));
    if (!running.request.on_scores) continue;
    item->want = StepItem::Want::kScores;
    running.targets.assign(static_cast<size_t>(count), -1);
    for (size_t i = 0; i < running.targets.size(); ++i) {
      const size_t next = running.read + i + 1;
      if (next < tokens.size()) running.targets[i] = tokens[next];
    }
    item->targets = running.targets;
  }
  // In the next step it is others' turn.
  for (const auto& reader : readers) running_.splice(running_.end(), running_, reader);
}

absl::Status Scheduler::Step(const std::atomic<bool>* cancel) {
  if (running_.empty()) return absl::OkStatus();
  Plan();
  const double begin = options_.clock();
  absl::Status status = engine_.Step(items_, cancel);
  const double seconds = options_.clock() - begin;
  if (status.ok() && cancel != nullptr && cancel->load(std::memory_order_relaxed)) {
    status = absl::CancelledError("interrupted");
  }
  if (!status.ok()) {
    for (Running& running : running_) Finish(running, status);
    running_.clear();
    return status;
  }
  const auto waits = [](const StepItem& item) {
    return item.unchanged && absl::IsResourceExhausted(item.status);
  };
  int64_t rows = 0;
  for (const StepItem& item : items_) {
    if (item.status.ok()) rows += static_cast<int64_t>(item.tokens.size());
  }
  // A step has room for some of the readers only; each of them has its turn before one gives way.
  if (!std::all_of(items_.begin(), items_.end(), waits)) {
    stalled_ = 0;
  } else if (stalled_ += static_cast<int64_t>(items_.size());
             stalled_ >= static_cast<int64_t>(running_.size())) {
    stalled_ = 0;
    GiveWay();
  }
  for (size_t i = 0; i < items_.size(); ++i) {
    if (waits(items_[i])) {
      Running& running = *item_running_[i];  // a smaller piece fitted before: no need to wait
      if (std::exchange(running.grew, false)) running.most_tokens /= 2;
      continue;
    }
    Take(*item_running_[i], items_[i],
         seconds * static_cast<double>(items_[i].tokens.size()) / static_cast<double>(rows));
  }
  running_.remove_if([](const Running& running) { return running.done; });
  return absl::OkStatus();
}

// Nobody gets on, so nobody will give memory back. Half of a piece may fit; else the last to come
// must end.
void Scheduler::GiveWay() {
  const int64_t exec_block = engine_.attention().exec_block;
  bool smaller = false;
  for (size_t i = 0; i < items_.size(); ++i) {
    const auto tokens = static_cast<int64_t>(items_[i].tokens.size());
    if (tokens <= exec_block) continue;
    item_running_[i]->most_tokens = std::max(tokens / 2 / exec_block, int64_t{1}) * exec_block;
    item_running_[i]->grew = false;
    smaller = true;
  }
  if (smaller) return;
  const auto last =
      std::max_element(item_running_.begin(), item_running_.end(),
                       [](const Running* a, const Running* b) { return a->added < b->added; });
  Finish(**last, items_[static_cast<size_t>(last - item_running_.begin())].status);
}

// What a step has brought to a request.
void Scheduler::Take(Running& running, const StepItem& item, double seconds) {
  if (!item.status.ok()) return Finish(running, item.status);
  const Request& request = running.request;
  if (item.want != StepItem::Want::kSample) {
    running.read += item.tokens.size();
    running.grew = false;
    if (running.most_tokens <= kAnyTokens / 2 && ++running.fitted == kFittedToGrow) {
      running.fitted = 0;  // there may be room again
      running.most_tokens *= 2;
      running.grew = true;
    }
    running.outcome.read_seconds += seconds;
    if (request.on_scores) request.on_scores(item.scores);
    if (request.on_read) request.on_read(static_cast<int64_t>(running.read));
    if (running.read == request.tokens.size()) Finish(running, absl::OkStatus());
    return;
  }
  running.draw = running.draws.Next();
  Outcome& outcome = running.outcome;
  if (outcome.tokens == 0) outcome.first_token_seconds = options_.clock() - running.added;
  if (std::find(request.stop_ids.begin(), request.stop_ids.end(), item.token) !=
      request.stop_ids.end()) {
    outcome.stopped = true;
    return Finish(running, absl::OkStatus());
  }
  running.last_token = item.token;
  ++outcome.tokens;
  if ((request.on_token && !request.on_token(item.token)) || outcome.tokens == request.max_tokens) {
    Finish(running, absl::OkStatus());
  }
}

void Scheduler::Finish(Running& running, absl::Status status) {
  if (running.done) return;
  running.done = true;
  running.outcome.status = std::move(status);
  running.outcome.total_seconds = options_.clock() - running.added;
  if (running.request.on_done) running.request.on_done(running.outcome);
}

absl::Status Scheduler::Run(const std::atomic<bool>* cancel) {
  while (!idle()) INFLLM_RETURN_IF_ERROR(Step(cancel));
  return absl::OkStatus();
}

}  // namespace infllm::worker
