#include "services/eval/run/evidence.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace infllm::services {

EvidenceWatch::EvidenceWatch(std::span<const TokenRange> passages,
                             const worker::AttentionOptions& options, int64_t layers)
    : options_(options), model_layers_(layers) {
  const auto block_of = [&](int64_t position) {
    return (std::max(position, options.n_init) - options.n_init) / options.block_tokens;
  };
  for (const TokenRange& tokens : passages) {
    passages_.push_back({.tokens = tokens,
                         .blocks = {.first = block_of(tokens.begin),
                                    .last = block_of(std::max(tokens.begin, tokens.end - 1))}});
  }
}

worker::SelectionObserver EvidenceWatch::observer() {
  return [this](int64_t layer, int64_t first_position,
                std::span<const memstore::SelectedBlock> blocks) {
    bool& step = steps_[first_position];
    for (const memstore::SelectedBlock& block : blocks) {
      bool evidence = false;
      for (Passage& passage : passages_) {
        if (block.index < passage.blocks.first || block.index > passage.blocks.last) continue;
        passage.selected = evidence = true;
      }
      if (!evidence) continue;
      step = true;
      layers_.insert(static_cast<int32_t>(layer));
      const auto better = std::count_if(
          blocks.begin(), blocks.end(),
          [&](const memstore::SelectedBlock& other) { return other.score > block.score; });
      best_rank_ = best_rank_ == 0 ? better + 1 : std::min(best_rank_, better + 1);
    }
  };
}

bool EvidenceWatch::InReach(const Passage& passage, int64_t position) const {
  using worker::PolicyKind;
  if (options_.policy == PolicyKind::kFull || passage.tokens.end <= options_.n_init) return true;
  if (options_.policy != PolicyKind::kInfLlm) {
    return passage.tokens.begin > position - options_.n_local;
  }
  // Blocks that the query can only have by selection; later ones are the remainder and the window.
  const int64_t past = position - options_.n_local - options_.n_init;
  return past < 0 || passage.blocks.first >= past / options_.block_tokens;
}

// An answer's first token comes from the retrieval of the exec block that `position` is in, each
// further one from its own.
double EvidenceWatch::Kept(int64_t position, int64_t answer_tokens) const {
  auto step = steps_.upper_bound(position);
  if (step == steps_.begin()) return 0;
  int64_t steps = 0, kept = 0;
  for (--step; step != steps_.end() && steps < answer_tokens; ++step) {
    ++steps;
    kept += step->second ? 1 : 0;
  }
  return steps == 0 ? 0 : static_cast<double>(kept) / static_cast<double>(steps);
}

Retrieval EvidenceWatch::Result(int64_t position, int64_t answer_tokens) const {
  Retrieval result{.in_window = true, .layers = {}, .best_rank = best_rank_};
  bool complete = true;
  for (const Passage& passage : passages_) {
    if (InReach(passage, position)) continue;
    result.in_window = false;
    complete = complete && passage.selected;
  }
  result.kept = result.in_window ? 1 : Kept(position, answer_tokens);
  if (complete) result.layers.assign(layers_.begin(), layers_.end());
  return result;
}

std::vector<EvidenceWatch::Blocks> EvidenceWatch::blocks() const {
  std::vector<Blocks> blocks;
  for (const Passage& passage : passages_) blocks.push_back(passage.blocks);
  return blocks;
}

std::string EvidenceWatch::Describe(int64_t position) const {
  const Retrieval result = Result(position, 1);
  if (result.in_window) return "its passage is in the window";
  const std::string where = absl::StrJoin(passages_, ", ", [](std::string* out, const Passage& p) {
    absl::StrAppend(out, p.blocks.first == p.blocks.last ? "block " : "blocks ", p.blocks.first,
                    p.blocks.first == p.blocks.last ? "" : absl::StrCat("-", p.blocks.last));
  });
  if (!result.hit()) return absl::StrCat("its passage, ", where, ", was not retrieved");
  return absl::StrCat("its passage, ", where, ", was retrieved in ", result.layers.size(), " of ",
                      model_layers_, " layers, best rank ", result.best_rank);
}

}  // namespace infllm::services
