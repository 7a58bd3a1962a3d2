#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "worker/attention/attention_policy.h"
#include "worker/engine/loaded_model.h"

namespace infllm::services {

// Watches whether the blocks that hold a given passage of the text are retrieved: recall of the
// memory, apart from what the model makes of it.
class EvidenceWatch {
 public:
  EvidenceWatch() = default;
  // INVALID_ARGUMENT if `passage` is not in `text`. REQUIRES: the model has a tokenizer.
  static absl::StatusOr<EvidenceWatch> Find(const worker::LoadedModel& model,
                                            const worker::AttentionOptions& options,
                                            std::string_view text, std::string_view passage);

  // For AttentionState::set_observer; the watch must stay where it is meanwhile.
  worker::SelectionObserver observer();

  int64_t first_block() const { return first_block_; }
  int64_t last_block() const { return last_block_; }
  // The text is so short that the passage never leaves the window or the sinks.
  bool in_window() const { return in_window_; }
  int64_t layers_hit() const { return static_cast<int64_t>(layers_.size()); }
  int64_t best_rank() const { return best_rank_; }  // 1 is best; 0 if never retrieved
  bool hit() const { return in_window_ || !layers_.empty(); }
  std::string Describe() const;

 private:
  int64_t first_block_ = 0, last_block_ = 0;
  int64_t model_layers_ = 0;
  bool in_window_ = false;
  std::set<int64_t> layers_;
  int64_t best_rank_ = 0;
};

}  // namespace infllm::services
