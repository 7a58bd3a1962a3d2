#include "services/cli/evidence.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace infllm::services {

absl::StatusOr<EvidenceWatch> EvidenceWatch::Find(const worker::LoadedModel& model,
                                                  const worker::AttentionOptions& options,
                                                  std::string_view text, std::string_view passage) {
  const size_t at = text.find(passage);
  if (passage.empty() || at == std::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("--evidence \"", std::string(passage), "\" does not occur in the text"));
  }
  // Tokens of a prefix: exact up to a merge across its end, which is within one token.
  const auto tokens = [&](size_t bytes) {
    return static_cast<int64_t>(model.EncodePrompt(text.substr(0, bytes)).size());
  };
  const int64_t begin = tokens(at);
  const int64_t end = tokens(at + passage.size());
  const int64_t total = tokens(text.size());
  EvidenceWatch watch;
  watch.model_layers_ = model.config.layers;
  const auto block_of = [&](int64_t position) {
    return (std::max(position, options.n_init) - options.n_init) / options.block_tokens;
  };
  watch.first_block_ = block_of(begin);
  watch.last_block_ = block_of(end - 1);
  const int64_t window = options.policy == worker::PolicyKind::kFull ? total : options.n_local;
  watch.in_window_ = begin >= total - window || end <= options.n_init;
  return watch;
}

worker::SelectionObserver EvidenceWatch::observer() {
  return [this](int64_t layer, int64_t, std::span<const memstore::SelectedBlock> blocks) {
    for (const memstore::SelectedBlock& block : blocks) {
      if (block.index < first_block_ || block.index > last_block_) continue;
      layers_.insert(layer);
      const auto better = std::count_if(
          blocks.begin(), blocks.end(),
          [&](const memstore::SelectedBlock& other) { return other.score > block.score; });
      best_rank_ = best_rank_ == 0 ? better + 1 : std::min(best_rank_, better + 1);
    }
  };
}

std::string EvidenceWatch::Describe() const {
  if (in_window_) return "its passage is in the window";
  const std::string where = first_block_ == last_block_
                                ? absl::StrCat("block ", first_block_)
                                : absl::StrCat("blocks ", first_block_, "-", last_block_);
  if (layers_.empty()) return absl::StrCat("its passage, ", where, ", was not retrieved");
  return absl::StrCat("its passage, ", where, ", was retrieved in ", layers_.size(), " of ",
                      model_layers_, " layers, best rank ", best_rank_);
}

}  // namespace infllm::services
