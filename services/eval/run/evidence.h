#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "services/eval/report/record.h"
#include "services/eval/run/token_ranges.h"
#include "worker/attention/attention_policy.h"

namespace infllm::services {

// Watches whether the blocks that hold given passages of the text are retrieved: recall of the
// memory, apart from what the model makes of it.
class EvidenceWatch {
 public:
  struct Blocks {
    int64_t first = 0;
    int64_t last = 0;
  };

  // The passages that answer one question. `layers` is the model's.
  EvidenceWatch(std::span<const TokenRange> passages, const worker::AttentionOptions& options,
                int64_t layers);

  // For AttentionState::set_observer; the watch must stay where it is meanwhile.
  worker::SelectionObserver observer();

  // What was seen. `position` is that of the token from which the answer begins, the question's
  // last; `answer_tokens` is how many tokens a right answer has.
  // in_window: it still sees every passage as a sink, in the window or in the remainder.
  // layers: those that selected a block of a passage; none unless every passage that must be
  // retrieved was, by some layer.
  Retrieval Result(int64_t position, int64_t answer_tokens) const;
  // The blocks of each passage.
  std::vector<Blocks> blocks() const;
  std::string Describe(int64_t position) const;

 private:
  struct Passage {
    TokenRange tokens;
    Blocks blocks;
    bool selected = false;
  };
  bool InReach(const Passage& passage, int64_t position) const;
  double Kept(int64_t position, int64_t answer_tokens) const;

  worker::AttentionOptions options_;
  int64_t model_layers_;
  std::vector<Passage> passages_;
  std::set<int32_t> layers_;
  std::map<int64_t, bool> steps_;  // by first query of a retrieval: whether some layer had evidence
  int64_t best_rank_ = 0;
};

}  // namespace infllm::services
