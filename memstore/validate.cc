#include "memstore/validate.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "memstore/limits.h"

namespace infllm::memstore {
namespace {

using kernels::DType;
using kernels::RepresentativeKind;

absl::Status CheckFinite(absl::string_view name, std::span<const float> values, DType dtype) {
  const auto finite = [&](float value) {
    if (dtype == DType::kBF16) value = static_cast<float>(kernels::BF16(value));
    return std::isfinite(value);
  };
  const auto bad = std::find_if_not(values.begin(), values.end(), finite);
  if (bad == values.end()) return absl::OkStatus();
  const absl::string_view as = std::isfinite(*bad) ? " as bf16" : "";
  return absl::InvalidArgumentError(absl::StrCat(name, " has ", *bad, " at float ",
                                                 bad - values.begin(), ", must be finite", as));
}

// The scan takes either bound by the sign of the query alone.
absl::Status CheckBounds(std::span<const float> representatives, size_t floats) {
  for (size_t begin = 0; begin < representatives.size(); begin += floats) {
    for (size_t i = begin; i < begin + floats / 2; ++i) {
      if (representatives[i] <= representatives[i + floats / 2]) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("representatives have ", representatives[i], " at float ", i,
                       " for the least key of a channel, above the largest, ",
                       representatives[i + floats / 2], " at float ", i + floats / 2));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckField(absl::string_view name, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", value, ", must be in [", least, ", ", most, "]"));
}

absl::Status Validate(const ContextId& id) {
  if (id != ContextId{}) return absl::OkStatus();
  return absl::InvalidArgumentError("context id is zero, must be 128 random bits");
}

absl::Status Validate(const Geometry& g) {
  INFLLM_RETURN_IF_ERROR(CheckField("layers", g.layers, 1, limits::kMaxLayers));
  INFLLM_RETURN_IF_ERROR(CheckField("q_heads", g.q_heads, 1, limits::kMaxHeads));
  INFLLM_RETURN_IF_ERROR(CheckField("kv_heads", g.kv_heads, 1, g.q_heads));
  if (g.q_heads % g.kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("q_heads is ", g.q_heads, ", must be a multiple of kv_heads = ", g.kv_heads));
  }
  INFLLM_RETURN_IF_ERROR(CheckField("head_dim", g.head_dim, 1, limits::kMaxHeadDim));
  INFLLM_RETURN_IF_ERROR(CheckField("block_tokens", g.block_tokens, 1, limits::kMaxBlockTokens));
  if (g.dtype != DType::kF32 && g.dtype != DType::kBF16) {
    return absl::InvalidArgumentError(absl::StrCat("dtype is number ", static_cast<int>(g.dtype),
                                                   ", must be f32 (0) or bf16 (1)"));
  }
  INFLLM_RETURN_IF_ERROR(CheckField("kind of representative",
                                    static_cast<int64_t>(g.representative), 0,
                                    static_cast<int64_t>(RepresentativeKind::kBounds)));
  return CheckField("bytes of a block (2 * kv_heads * block_tokens * head_dim * dtype)",
                    static_cast<int64_t>(g.payload_bytes()), 1,
                    static_cast<int64_t>(limits::kMaxPayloadBytes));
}

absl::Status Validate(const ContextOptions& options) {
  INFLLM_RETURN_IF_ERROR(CheckField("bytes of tenant", static_cast<int64_t>(options.tenant.size()),
                                    0, static_cast<int64_t>(limits::kMaxTenantBytes)));
  INFLLM_RETURN_IF_ERROR(CheckField("bytes of recipe", static_cast<int64_t>(options.recipe.size()),
                                    0, static_cast<int64_t>(limits::kMaxRecipeBytes)));
  return Validate(options.geometry);
}

absl::Status ValidateName(std::string_view name) {
  if (name.empty() || name.size() > limits::kMaxNameBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the name of a context has ", name.size(),
                                                   " bytes, must have 1 to ",
                                                   limits::kMaxNameBytes));
  }
  const auto control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; };
  if (std::ranges::any_of(name, control)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the name of a context is \"",
                     absl::CHexEscape(absl::string_view(name.data(), name.size())),
                     "\", must have no control characters"));
  }
  return absl::OkStatus();
}

absl::Status Validate(const Reusable& reusable, int64_t tokens) {
  INFLLM_RETURN_IF_ERROR(CheckField("reusable tokens", reusable.tokens, 0, tokens));
  if (reusable.tokens == 0) return absl::OkStatus();
  INFLLM_RETURN_IF_ERROR(CheckField("exec_block", reusable.exec_block, 1, limits::kMaxExecBlock));
  INFLLM_RETURN_IF_ERROR(CheckField("reusable exec blocks", reusable.tokens / reusable.exec_block,
                                    0, limits::kMaxReusableExecBlocks));
  if (reusable.tokens % reusable.exec_block == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("reusable tokens are ", reusable.tokens,
                   ", must be a multiple of exec_block = ", reusable.exec_block));
}

absl::Status Validate(const CommitRequest& request) {
  INFLLM_RETURN_IF_ERROR(Validate(request.id));
  INFLLM_RETURN_IF_ERROR(ValidateName(request.name));
  INFLLM_RETURN_IF_ERROR(CheckField("blocks", request.blocks, 0, INT64_MAX));
  INFLLM_RETURN_IF_ERROR(Validate(request.reusable, static_cast<int64_t>(request.tokens.size())));
  const size_t bytes = request.tokens.size_bytes() + request.state.size();
  if (bytes <= limits::kMaxCheckpointBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "a commit has ", bytes, " bytes of tokens and state, may have ", limits::kMaxCheckpointBytes,
      ": commit fewer tokens, or read them with a smaller --n-init and --block-tokens"));
}

absl::Status Validate(const SelectRequest& request) {
  INFLLM_RETURN_IF_ERROR(CheckField(
      "number of queries", static_cast<int64_t>(request.queries.size()), 0, limits::kMaxQueries));
  return CheckField("scoring", static_cast<int64_t>(request.scoring), 0,
                    static_cast<int64_t>(kernels::Scoring::kHeadVote));
}

absl::Status Validate(const SelectQuery& query, const Geometry& geometry) {
  if (query.query.size() != geometry.query_floats()) {
    return absl::InvalidArgumentError(
        absl::StrCat("query has ", query.query.size(),
                     " floats, must have q_heads * head_dim = ", geometry.query_floats()));
  }
  INFLLM_RETURN_IF_ERROR(CheckField("k", query.k, 0, limits::kMaxSelect));
  if (!std::is_sorted(query.have.begin(), query.have.end())) {
    return absl::InvalidArgumentError("the blocks that the caller has are not ascending");
  }
  return CheckFinite("query", query.query, DType::kF32);
}

absl::Status ValidateRepresentatives(std::span<const float> representatives,
                                     const Geometry& geometry) {
  const size_t floats = geometry.representative_floats();
  if (representatives.size() % floats != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("representatives have ", representatives.size(),
                     " floats, must be a multiple of slots * heads * head_dim = ", floats));
  }
  INFLLM_RETURN_IF_ERROR(CheckFinite("representatives", representatives, geometry.dtype));
  if (geometry.representative != RepresentativeKind::kBounds) return absl::OkStatus();
  return CheckBounds(representatives, floats);
}

}  // namespace infllm::memstore
