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

double Dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
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
  const int64_t top = args.top;
  std::vector<int64_t> index(static_cast<size_t>(top));
  for (int64_t h = 0; h < args.q_heads; ++h) {
    ReferenceTopK(args.mass + h * args.mass_stride, args.block_tokens, top, index);
    const int64_t base = h / (args.q_heads / args.kv_heads) * args.head_stride;
    for (int64_t d = 0; d < args.head_dim; ++d) {
      double sum = 0;
      for (const int64_t token : index) {
        sum += Element(args.k, args.kv_dtype, base + token * args.head_dim + d);
      }
      args.out[h * args.head_dim + d] = static_cast<float>(sum / static_cast<double>(top));
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

void ReferenceScoreBlocks(const ScoreBlocksArgs& args) {
  const int64_t width = args.q_heads * args.head_dim;
  std::vector<const float*> blocks;
  for (const RepresentativeChunk& chunk : args.chunks) {
    for (int64_t b = 0; b < chunk.blocks; ++b) blocks.push_back(chunk.data + b * width);
  }
  std::vector<double> scores(blocks.size());
  std::vector<double> votes(blocks.size());
  for (int64_t h = 0; h < args.q_heads; ++h) {
    const int64_t at = h * args.head_dim;
    for (size_t b = 0; b < blocks.size(); ++b) {
      votes[b] = Dot(args.query + at, blocks[b] + at, args.head_dim);
      if (args.scoring == Scoring::kHeadVote) votes[b] *= args.scale;
    }
    if (args.scoring == Scoring::kHeadVote) Softmax(votes);
    for (size_t b = 0; b < blocks.size(); ++b) scores[b] += votes[b];
  }
  for (size_t b = 0; b < blocks.size(); ++b) args.out[b] = static_cast<float>(scores[b]);
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
