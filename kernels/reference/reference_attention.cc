#include "kernels/reference/reference_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace infllm::kernels {
namespace {

double Element(const void* data, DType dtype, int64_t index) {
  return dtype == DType::kBF16 ? static_cast<float>(static_cast<const BF16*>(data)[index])
                               : static_cast<const float*>(data)[index];
}

// One key of the list that a query attends over.
struct Key {
  const KvSegment* segment;
  size_t index;  // of the segment in near or far
  bool far;
  int64_t token;  // within the segment
};

bool Visible(const AttentionArgs& args, const Key& key, int64_t position) {
  const int64_t distance = position - (key.segment->position + key.token);
  if (!key.far) return distance >= 0 && distance < args.window;
  return args.far_unmasked || distance >= args.window;
}

// In place, over the entries that are not -inf.
void Softmax(std::vector<double>& x) {
  constexpr double kNegInf = -std::numeric_limits<double>::infinity();
  double max = kNegInf;
  for (const double value : x) max = std::max(max, value);
  double sum = 0;
  for (double& value : x) sum += value = max == kNegInf ? 0 : std::exp(value - max);
  for (double& value : x) value = sum > 0 ? value / sum : 0;
}

}  // namespace

void ReferenceAttention(const AttentionArgs& args) {
  const int64_t dim = args.head_dim;
  std::vector<Key> keys;
  for (size_t s = 0; s < args.near.size(); ++s) {
    for (int64_t i = 0; i < args.near[s].tokens; ++i) keys.push_back({&args.near[s], s, false, i});
  }
  for (size_t s = 0; s < args.far.size(); ++s) {
    for (int64_t i = 0; i < args.far[s].tokens; ++i) keys.push_back({&args.far[s], s, true, i});
  }
  std::vector<double> far_mass(args.far.size());
  std::vector<double> p(keys.size()), mass(keys.size());
  for (int64_t h = 0; h < args.q_heads; ++h) {
    const int64_t kv_head = h / (args.q_heads / args.kv_heads);
    const auto element = [&](const void* base, const Key& key, int64_t d) {
      const int64_t index = kv_head * key.segment->head_stride + key.token * dim + d;
      return Element(base, args.kv_dtype, index);
    };
    std::fill(mass.begin(), mass.end(), 0.0);
    for (int64_t t = 0; t < args.tokens; ++t) {
      const int64_t row = (t * args.q_heads + h) * dim;
      for (size_t j = 0; j < keys.size(); ++j) {
        p[j] = -std::numeric_limits<double>::infinity();
        if (!Visible(args, keys[j], args.first_position + t)) continue;
        const float* q = (keys[j].far ? args.q_far : args.q_near) + row;
        p[j] = 0;
        for (int64_t d = 0; d < dim; ++d) p[j] += q[d] * element(keys[j].segment->k, keys[j], d);
        p[j] *= args.scale;
      }
      Softmax(p);
      for (int64_t d = 0; d < dim; ++d) {
        double sum = 0;
        for (size_t j = 0; j < keys.size(); ++j) {
          if (p[j] > 0) sum += p[j] * element(keys[j].segment->v, keys[j], d);
        }
        args.out[row + d] = static_cast<float>(sum);
      }
      for (size_t j = 0; j < keys.size(); ++j) mass[j] += p[j];
    }
    for (size_t j = 0; j < keys.size(); ++j) {
      const KvSegment& segment = *keys[j].segment;
      if (segment.mass != nullptr) {
        segment.mass[h * segment.mass_stride + keys[j].token] += static_cast<float>(mass[j]);
      }
      if (keys[j].far) far_mass[keys[j].index] += mass[j];
    }
  }
  if (args.far_segment_mass == nullptr) return;
  for (size_t s = 0; s < far_mass.size(); ++s) {
    args.far_segment_mass[s] += static_cast<float>(far_mass[s]);
  }
}

void ReferenceRepresentatives(const RepresentativeArgs& args) {
  const auto key = [&](int64_t kv_head, int64_t token, int64_t d) {
    return Element(args.k, args.kv_dtype, kv_head * args.head_stride + token * args.head_dim + d);
  };
  const auto out = [&](int64_t slot, int64_t heads, int64_t head, int64_t d) -> float& {
    return args.out[(slot * heads + head) * args.head_dim + d];
  };
  if (args.kind == RepresentativeKind::kBounds) {
    for (int64_t g = 0; g < args.kv_heads; ++g) {
      for (int64_t d = 0; d < args.head_dim; ++d) {
        double least = key(g, 0, d), largest = least;
        for (int64_t t = 1; t < args.block_tokens; ++t) {
          least = std::min(least, key(g, t, d));
          largest = std::max(largest, key(g, t, d));
        }
        out(0, args.kv_heads, g, d) = static_cast<float>(least);
        out(1, args.kv_heads, g, d) = static_cast<float>(largest);
      }
    }
    return;
  }
  std::vector<int64_t> index(static_cast<size_t>(args.top));
  for (int64_t h = 0; h < args.q_heads; ++h) {
    ReferenceTopK(args.mass + h * args.mass_stride, args.block_tokens, args.top, index);
    const int64_t kv_head = h / (args.q_heads / args.kv_heads);
    for (int64_t d = 0; d < args.head_dim; ++d) {
      double sum = 0;
      for (int64_t s = 0; s < args.top; ++s) {
        sum += key(kv_head, index[static_cast<size_t>(s)], d);
      }
      out(0, args.q_heads, h, d) = static_cast<float>(sum / static_cast<double>(args.top));
    }
  }
}

void ReferenceMeanQuery(const MeanQueryArgs& args) {
  if (args.tokens == 0) return;
  const int64_t width = args.q_heads * args.head_dim;
  for (int64_t i = 0; i < width; ++i) {
    double sum = 0;
    for (int64_t t = 0; t < args.tokens; ++t) sum += args.q[t * width + i];
    args.out[i] = static_cast<float>(sum / static_cast<double>(args.tokens));
  }
}

namespace {

void ScoreOneQuery(const ScoreBlocksArgs& args, const float* query, float* out) {
  const RepresentativeShape shape = ShapeOf(args.kind, args.q_heads, args.kv_heads);
  struct Block {
    const void* data;
    int64_t first;  // element
  };
  std::vector<Block> blocks;
  for (const RepresentativeChunk& chunk : args.chunks) {
    for (int64_t b = 0; b < chunk.blocks; ++b) {
      blocks.push_back({chunk.data, b * shape.rows() * args.head_dim});
    }
  }
  std::vector<double> scores(blocks.size());
  std::vector<double> logits(blocks.size());
  for (int64_t h = 0; h < args.q_heads; ++h) {
    const int64_t row = h / (args.q_heads / shape.heads);
    for (size_t b = 0; b < blocks.size(); ++b) {
      const auto product = [&](int64_t slot, int64_t d) {
        const int64_t at = (slot * shape.heads + row) * args.head_dim + d;
        return query[h * args.head_dim + d] *
               Element(blocks[b].data, args.dtype, blocks[b].first + at);
      };
      const bool bounds = args.kind == RepresentativeKind::kBounds;
      logits[b] = 0;
      for (int64_t d = 0; d < args.head_dim; ++d) {
        logits[b] += bounds ? std::max(product(0, d), product(1, d)) : product(0, d);
      }
    }
    if (args.scoring == Scoring::kHeadVote) {
      for (double& logit : logits) logit *= args.scale;
      Softmax(logits);
    }
    for (size_t b = 0; b < blocks.size(); ++b) scores[b] += logits[b];
  }
  std::transform(scores.begin(), scores.end(), out,
                 [](double score) { return static_cast<float>(score); });
}

}  // namespace

void ReferenceScoreBlocks(const ScoreBlocksArgs& args) {
  int64_t blocks = 0;
  for (const RepresentativeChunk& chunk : args.chunks) blocks += chunk.blocks;
  for (int64_t i = 0; i < args.queries; ++i) {
    ScoreOneQuery(args, args.query + i * args.q_heads * args.head_dim, args.out + i * blocks);
  }
}

void ReferenceTopK(const float* scores, int64_t n, int64_t k, std::span<int64_t> out_indices) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    // NaN is worse than any number.
    return std::isnan(scores[b]) ? !std::isnan(scores[a]) : scores[a] > scores[b];
  });
  std::copy_n(order.begin(), std::min(k, n), out_indices.begin());
}

}  // namespace infllm::kernels
