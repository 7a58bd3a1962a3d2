#include "worker/attention/attention_options.h"

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "worker/attention/option_table.h"

namespace infllm::worker {
namespace {

// The options that the published code does not have must be as the paper is.
absl::Status ValidateCompat(const AttentionOptions& options) {
  AttentionOptions published;
  published.scoring = kernels::Scoring::kMean;
  published.representative = kernels::RepresentativeKind::kMeanKey;
  published.far_bias = 0;
  for (const char* name : {"scoring", "representatives", "far-bias"}) {
    const AttentionOption& option = *FindOption(name);
    const std::string value = ValueText(option, options), only = ValueText(option, published);
    if (value == only) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is ", value, ", must be ", only,
                     " with compat reference: the published code has nothing else"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status AttentionOptions::Validate(const ModelConfig& model) const {
  for (const AttentionOption& option : OptionTable()) {
    INFLLM_RETURN_IF_ERROR(CheckOption(option, *this));
  }
  if (rope_scaling == RopeScaling::kNtk && model.head_dim <= 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("rope-scaling ntk needs a head_dim above 2, the model has ", model.head_dim));
  }
  if (policy == PolicyKind::kFull) return absl::OkStatus();

  if (model.sliding_window.has_value() && n_local > *model.sliding_window) {
    return absl::InvalidArgumentError(absl::StrCat("n-local is ", n_local,
                                                   ", must not exceed the sliding_window of the "
                                                   "model's config, which is ",
                                                   *model.sliding_window));
  }
  if (policy != PolicyKind::kInfLlm) return absl::OkStatus();

  if (exec_block > n_local) {
    return absl::InvalidArgumentError(absl::StrCat(
        "exec-block is ", exec_block, ", must not exceed n-local, which is ", n_local));
  }
  if (representative == kernels::RepresentativeKind::kMeanKey && repr_top_k > block_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "repr-top-k is ", repr_top_k, ", must not exceed block-tokens, which is ", block_tokens));
  }
  if (cache_blocks < top_k) {
    return absl::InvalidArgumentError(absl::StrCat("cache-blocks is ", cache_blocks,
                                                   ", must be at least top-k, which is ", top_k,
                                                   ": the blocks of one retrieval must fit"));
  }
  if (compat_reference) INFLLM_RETURN_IF_ERROR(ValidateCompat(*this));
  return absl::OkStatus();
}

}  // namespace infllm::worker
