// The scores and ranks that kernels/ops/select.h defines, by brute force in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "memstore/block.h"

namespace infllm::memstore {

// The values as an index of that dtype keeps them.
inline std::vector<float> Rounded(std::span<const float> values, kernels::DType dtype) {
  std::vector<float> kept(values.begin(), values.end());
  if (dtype == kernels::DType::kBF16) {
    for (float& value : kept) value = static_cast<float>(kernels::BF16(value));
  }
  return kept;
}

inline std::vector<double> OracleScores(std::span<const float> representatives,
                                        std::span<const float> query, const Geometry& geometry,
                                        kernels::Scoring scoring) {
  const bool bounds = geometry.representative == kernels::RepresentativeKind::kBounds;
  const size_t dim = geometry.head_dim, per_kv = geometry.q_heads / geometry.kv_heads;
  const auto [slots, heads] = geometry.representative_shape();
  const std::vector<float> r = Rounded(representatives, geometry.dtype);
  const size_t blocks = r.size() / geometry.representative_floats();
  std::vector<double> scores(blocks);
  for (size_t h = 0; h < static_cast<size_t>(geometry.q_heads); ++h) {
    std::vector<double> logits(blocks);
    for (size_t b = 0; b < blocks; ++b) {
      for (size_t d = 0; d < dim; ++d) {
        const auto at = [&](int64_t slot) {
          const size_t row = (b * slots + slot) * heads + (bounds ? h / per_kv : h);
          return double{r[row * dim + d]};
        };
        const double q = query[h * dim + d];
        logits[b] += bounds ? std::max(q * at(0), q * at(1)) : q * at(0);
      }
    }
    if (scoring == kernels::Scoring::kHeadVote && blocks > 0) {
      double sum = 0;
      const double scale = 1 / std::sqrt(static_cast<double>(dim));
      const double most = *std::max_element(logits.begin(), logits.end());
      for (double& logit : logits) sum += logit = std::exp(scale * (logit - most));
      for (double& logit : logits) logit /= sum;
    }
    for (size_t b = 0; b < blocks; ++b) scores[b] += logits[b];
  }
  return scores;
}

// The k largest, ascending; ties go to the smaller index.
inline std::vector<int64_t> OracleTopK(const std::vector<double>& scores, int64_t k) {
  std::vector<int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
  order.resize(std::min(order.size(), static_cast<size_t>(k)));
  std::sort(order.begin(), order.end());
  return order;
}

}  // namespace infllm::memstore
