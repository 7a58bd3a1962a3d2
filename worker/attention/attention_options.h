// The parameters of the attention policies. option_table.h has their names, ranges and meaning.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "worker/model/model_config.h"

namespace infllm::worker {

enum class PolicyKind : uint8_t {
  kFull,          // every token, at its true distance: the original model
  kStreamingLlm,  // sinks + window, positions within the cache (arXiv 2309.17453)
  kLmInfinite,    // sinks + window, distances clipped at the window (arXiv 2308.16137)
  kInfLlm,        // sinks + window + retrieved blocks (arXiv 2402.04617)
};
enum class RopeScaling : uint8_t {
  kNone,
  kLinear,  // position interpolation: positions divided by rope_factor
  kNtk,     // base * rope_factor^(D/(D-2)), D = head_dim
};
enum class CachePolicy : uint8_t {
  kLru,   // the block whose last selection is oldest goes first
  kLruS,  // the block with the least decayed attention mass goes first (paper sec. 3.2)
};
std::string_view Name(PolicyKind kind);
std::string_view Name(RopeScaling scaling);
std::string_view Name(CachePolicy policy);
std::string_view Name(kernels::Scoring scoring);
std::string_view Name(kernels::RepresentativeKind kind);

// Window, sinks, exec blocks and the number of far tokens are the paper's for Mistral-7B. The size
// of a block and what it is known by are what README.md's study found best; the paper has 16 blocks
// of 128 and kMeanKey (`--preset paper-mistral`).
struct AttentionOptions {
  PolicyKind policy = PolicyKind::kInfLlm;
  RopeScaling rope_scaling = RopeScaling::kNone;
  double rope_factor = 4;      // of kLinear and kNtk
  int64_t n_init = 128;        // tokens kept from the start (attention sinks)
  int64_t n_local = 4096;      // tokens of the sliding window, the query included
  int64_t block_tokens = 32;   // tokens per memory block
  int64_t top_k = 64;          // blocks retrieved per exec block
  int64_t repr_top_k = 4;      // tokens whose keys make a mean key
  int64_t exec_block = 512;    // prefill tokens that share one retrieval
  int64_t cache_blocks = 128;  // retrieved blocks kept at hand, per layer of a sequence
  CachePolicy cache_policy = CachePolicy::kLru;
  double score_decay = 0.1;  // of kLruS, per exec block
  kernels::Scoring scoring = kernels::Scoring::kMean;
  kernels::RepresentativeKind representative = kernels::RepresentativeKind::kBounds;
  double far_bias = 0;  // nats added to the logits of retrieved blocks; not sinks nor remainder
  // Reproduces the published code where it departs from the paper: in-window tokens of an exec
  // block that are attended a second time as far ones. For parity runs only.
  bool compat_reference = false;

  // INVALID_ARGUMENT names the option, its value and the limit. Ranges hold for all options; how
  // they must fit each other and the model is asked only of those that the policy uses.
  absl::Status Validate(const ModelConfig& model) const;
};

}  // namespace infllm::worker
