// Plain, slow attention over a whole sequence, written from the definitions and sharing no code
// with the policies: what they are checked against.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <random>
#include <vector>

#include "worker/model/model_config.h"

namespace infllm::worker {

// The projections of one layer for a whole sequence, un-rotated.
struct Sequence {
  int64_t tokens = 0;
  std::vector<float> q, k, v;  // [tokens, heads, head_dim]
};

// Keys have a few strong directions, so that attention is peaky and a wrong key shows.
inline Sequence RandomSequence(const ModelConfig& model, int64_t tokens, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  Sequence s{.tokens = tokens};
  const auto fill = [&](std::vector<float>& x, int64_t heads, float scale) {
    x.resize(static_cast<size_t>(tokens * heads * model.head_dim));
    for (float& value : x) value = scale * normal(random);
  };
  fill(s.q, model.q_heads, 2.0f);
  fill(s.k, model.kv_heads, 1.5f);
  fill(s.v, model.kv_heads, 1.0f);
  return s;
}

// Where key j stands for query i: the angle of the query relative to the key, in positions; or
// nothing if query i does not see key j.
using Distance = std::function<std::optional<int64_t>(int64_t i, int64_t j)>;

// out[tokens, q_heads, head_dim] of softmax_j((Rot(distance) q_i) . k_j / sqrt(D)) v_j.
inline std::vector<double> OracleAttention(const ModelConfig& model, const Sequence& s,
                                           const Distance& distance) {
  const int64_t dim = model.head_dim, half = dim / 2, group = model.q_heads / model.kv_heads;
  std::vector<double> out(s.q.size(), 0.0);
  for (int64_t i = 0; i < s.tokens; ++i) {
    for (int64_t h = 0; h < model.q_heads; ++h) {
      const float* q = &s.q[static_cast<size_t>((i * model.q_heads + h) * dim)];
      std::vector<double> logits;
      std::vector<int64_t> keys;
      for (int64_t j = 0; j <= i; ++j) {
        const std::optional<int64_t> d = distance(i, j);
        if (!d.has_value()) continue;
        const float* k = &s.k[static_cast<size_t>((j * model.kv_heads + h / group) * dim)];
        double dot = 0;
        for (int64_t x = 0; x < half; ++x) {
          const double angle =
              static_cast<double>(*d) * std::pow(model.rope_theta, -2.0 * double(x) / double(dim));
          const double c = std::cos(angle), n = std::sin(angle);
          dot += (q[x] * c - q[x + half] * n) * k[x] + (q[x + half] * c + q[x] * n) * k[x + half];
        }
        logits.push_back(dot / std::sqrt(static_cast<double>(dim)));
        keys.push_back(j);
      }
      const double top = *std::max_element(logits.begin(), logits.end());
      double sum = 0;
      for (double& logit : logits) sum += logit = std::exp(logit - top);
      for (size_t n = 0; n < keys.size(); ++n) {
        const float* v = &s.v[static_cast<size_t>((keys[n] * model.kv_heads + h / group) * dim)];
        for (int64_t x = 0; x < dim; ++x) {
          out[static_cast<size_t>((i * model.q_heads + h) * dim + x)] += logits[n] / sum * v[x];
        }
      }
    }
  }
  return out;
}

}  // namespace infllm::worker
