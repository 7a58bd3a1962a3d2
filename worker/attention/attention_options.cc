#include "worker/attention/attention_options.h"

#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "memstore/limits.h"

namespace infllm::worker {
namespace {

template <typename E, size_t N>
using NameTable = std::array<std::pair<E, std::string_view>, N>;

constexpr NameTable<PolicyKind, 4> kPolicies{{{PolicyKind::kFull, "full"},
                                              {PolicyKind::kStreamingLlm, "streaming-llm"},
                                              {PolicyKind::kLmInfinite, "lm-infinite"},
                                              {PolicyKind::kInfLlm, "infllm"}}};
constexpr NameTable<RopeScaling, 3> kScalings{
    {{RopeScaling::kNone, "none"}, {RopeScaling::kLinear, "linear"}, {RopeScaling::kNtk, "ntk"}}};
constexpr NameTable<CachePolicy, 2> kCaches{
    {{CachePolicy::kLru, "lru"}, {CachePolicy::kLruS, "lru-s"}}};
constexpr NameTable<kernels::Scoring, 2> kScorings{
    {{kernels::Scoring::kMean, "mean"}, {kernels::Scoring::kHeadVote, "head-vote"}}};
constexpr NameTable<kernels::RepresentativeKind, 2> kRepresentatives{
    {{kernels::RepresentativeKind::kMeanKey, "mean-key"},
     {kernels::RepresentativeKind::kBounds, "bounds"}}};

template <typename E, size_t N>
std::string_view NameOf(const NameTable<E, N>& table, E value) {
  for (const auto& [key, name] : table) {
    if (key == value) return name;
  }
  return "unknown";
}

template <typename E, size_t N>
std::optional<E> ValueOf(const NameTable<E, N>& table, std::string_view wanted) {
  for (const auto& [key, name] : table) {
    if (name == wanted) return key;
  }
  return std::nullopt;
}

template <typename T>
absl::Status CheckRange(const char* name, T value, T low, T high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", value, ", must be in [", low, ", ", high, "]"));
}

// Far above any use; keeps every product of two parameters within int64.
constexpr int64_t kMaxTokens = int64_t{1} << 24;

absl::Status ValidateCompat(const AttentionOptions& options) {
  const auto refuse = [](const char* option, std::string_view value, std::string_view only) {
    return absl::InvalidArgumentError(
        absl::StrCat(option, " is ", std::string(value), ", must be ", std::string(only),
                     " with compat reference: the published code has nothing else"));
  };
  AttentionOptions published;
  published.representative = kernels::RepresentativeKind::kMeanKey;
  if (options.scoring != published.scoring) {
    return refuse("scoring", Name(options.scoring), Name(published.scoring));
  }
  if (options.representative != published.representative) {
    return refuse("representatives", Name(options.representative), Name(published.representative));
  }
  return absl::OkStatus();
}

}  // namespace

std::string_view Name(PolicyKind kind) { return NameOf(kPolicies, kind); }
std::string_view Name(RopeScaling scaling) { return NameOf(kScalings, scaling); }
std::string_view Name(CachePolicy policy) { return NameOf(kCaches, policy); }
std::string_view Name(kernels::Scoring scoring) { return NameOf(kScorings, scoring); }
std::string_view Name(kernels::RepresentativeKind kind) { return NameOf(kRepresentatives, kind); }
std::optional<PolicyKind> ParsePolicyKind(std::string_view name) {
  return ValueOf(kPolicies, name);
}
std::optional<RopeScaling> ParseRopeScaling(std::string_view name) {
  return ValueOf(kScalings, name);
}
std::optional<CachePolicy> ParseCachePolicy(std::string_view name) {
  return ValueOf(kCaches, name);
}
std::optional<kernels::Scoring> ParseScoring(std::string_view name) {
  return ValueOf(kScorings, name);
}
std::optional<kernels::RepresentativeKind> ParseRepresentativeKind(std::string_view name) {
  return ValueOf(kRepresentatives, name);
}

absl::Status AttentionOptions::Validate(const ModelConfig& model) const {
  INFLLM_RETURN_IF_ERROR(CheckRange<int64_t>("exec-block", exec_block, 1, kMaxTokens));
  if (rope_scaling != RopeScaling::kNone) {
    INFLLM_RETURN_IF_ERROR(CheckRange("rope-factor", rope_factor, 1.0, 1e6));
    if (rope_scaling == RopeScaling::kNtk && model.head_dim <= 2) {
      return absl::InvalidArgumentError(
          absl::StrCat("rope-scaling ntk needs a head_dim above 2, "
                       "the model has ",
                       model.head_dim));
    }
  }
  if (policy == PolicyKind::kFull) return absl::OkStatus();

  INFLLM_RETURN_IF_ERROR(CheckRange<int64_t>("n-init", n_init, 0, kMaxTokens));
  INFLLM_RETURN_IF_ERROR(CheckRange<int64_t>("n-local", n_local, 1, kMaxTokens));
  if (exec_block > n_local) {
    return absl::InvalidArgumentError(absl::StrCat(
        "exec-block is ", exec_block, ", must not exceed n-local, which is ", n_local));
  }
  if (model.sliding_window.has_value() && n_local > *model.sliding_window) {
    return absl::InvalidArgumentError(absl::StrCat("n-local is ", n_local,
                                                   ", must not exceed the sliding_window of the "
                                                   "model's config, which is ",
                                                   *model.sliding_window));
  }
  if (policy != PolicyKind::kInfLlm) return absl::OkStatus();

  INFLLM_RETURN_IF_ERROR(CheckRange<int64_t>("block-tokens", block_tokens, 1, 65536));
  INFLLM_RETURN_IF_ERROR(CheckRange<int64_t>("top-k", top_k, 0, memstore::limits::kMaxSelect));
  if (repr_top_k < 1 || repr_top_k > block_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("repr-top-k is ", repr_top_k,
                                                   ", must be in [1, block-tokens], and "
                                                   "block-tokens is ",
                                                   block_tokens));
  }
  if (cache_blocks < top_k) {
    return absl::InvalidArgumentError(absl::StrCat("cache-blocks is ", cache_blocks,
                                                   ", must be at least top-k, which is ", top_k,
                                                   ": the blocks of one retrieval must fit"));
  }
  INFLLM_RETURN_IF_ERROR(CheckRange<int64_t>("cache-blocks", cache_blocks, 0, kMaxTokens));
  if (cache_policy == CachePolicy::kLruS) {
    INFLLM_RETURN_IF_ERROR(CheckRange("score-decay", score_decay, 0.0, 1.0));
  }
  return compat_reference ? ValidateCompat(*this) : absl::OkStatus();
}

}  // namespace infllm::worker
