#include "memstore/validate.h"

#include <algorithm>
#include <cmath>

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
  INFLLM_RETURN_IF_ERROR(CheckField("bytes of a representative (slots * heads * head_dim * 4)",
                                    static_cast<int64_t>(g.representative_floats() * sizeof(float)),
                                    1, static_cast<int64_t>(limits::kMaxRepresentativeBytes)));
  return CheckField("bytes of a block (2 * kv_heads * block_tokens * head_dim * dtype)",
                    static_cast<int64_t>(g.payload_bytes()), 1,
                    static_cast<int64_t>(limits::kMaxPayloadBytes));
}

absl::Status Validate(const ContextOptions& options) {
  INFLLM_RETURN_IF_ERROR(CheckField("bytes of tenant", static_cast<int64_t>(options.tenant.size()),
                                    0, static_cast<int64_t>(limits::kMaxTenantBytes)));
  return Validate(options.geometry);
}

absl::Status Validate(const SelectRequest& request, const Geometry& geometry) {
  if (request.query.size() != geometry.query_floats()) {
    return absl::InvalidArgumentError(
        absl::StrCat("query has ", request.query.size(),
                     " floats, must have q_heads * head_dim = ", geometry.query_floats()));
  }
  INFLLM_RETURN_IF_ERROR(CheckField("k", request.k, 0, limits::kMaxSelect));
  INFLLM_RETURN_IF_ERROR(CheckField("scoring", static_cast<int64_t>(request.scoring), 0,
                                    static_cast<int64_t>(kernels::Scoring::kHeadVote)));
  if (!std::is_sorted(request.have.begin(), request.have.end())) {
    return absl::InvalidArgumentError("the blocks that the caller has are not ascending");
  }
  return CheckFinite("query", request.query, DType::kF32);
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
