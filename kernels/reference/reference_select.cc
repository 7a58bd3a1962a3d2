#include "kernels/reference/reference_select.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace infllm::kernels {
namespace {

double Element(const void* data, DType dtype, int64_t index) {
  return dtype == DType::kBF16 ? static_cast<float>(static_cast<const BF16*>(data)[index])
                               : static_cast<const float*>(data)[index];
}

// The min(k, n) best, best first.
std::vector<int64_t> Best(const float* scores, int64_t n, int64_t k) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    // NaN is worse than any number.
    return std::isnan(scores[b]) ? !std::isnan(scores[a]) : scores[a] > scores[b];
  });
  order.resize(static_cast<size_t>(std::min(k, n)));
  return order;
}

void Softmax(std::vector<double>& x) {
  const double max = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double& value : x) sum += value = std::exp(value - max);
  for (double& value : x) value /= sum;
}

void Bounds(const RepresentativesArgs& args, const RepresentativeItem& item) {
  const PageShape& page = args.page;
  for (int64_t g = 0; g < page.kv_heads; ++g) {
    for (int64_t d = 0; d < page.head_dim; ++d) {
      double least = Element(item.page, page.dtype, page.key(g, 0) + d), largest = least;
      for (int64_t t = 1; t < page.page_tokens; ++t) {
        const double key = Element(item.page, page.dtype, page.key(g, t) + d);
        least = std::min(least, key);
        largest = std::max(largest, key);
      }
      item.out[g * page.head_dim + d] = static_cast<float>(least);
      item.out[(page.kv_heads + g) * page.head_dim + d] = static_cast<float>(largest);
    }
  }
}

void MeanKeys(const RepresentativesArgs& args, const RepresentativeItem& item) {
  const PageShape& page = args.page;
  for (int64_t h = 0; h < args.q_heads; ++h) {
    const int64_t kv_head = h / (args.q_heads / page.kv_heads);
    const float* mass = item.mass + h * page.page_tokens;
    const std::vector<int64_t> tokens = Best(mass, page.page_tokens, args.top);
    for (int64_t d = 0; d < page.head_dim; ++d) {
      double sum = 0;
      for (const int64_t t : tokens)
        sum += Element(item.page, page.dtype, page.key(kv_head, t) + d);
      item.out[h * page.head_dim + d] = static_cast<float>(sum / static_cast<double>(args.top));
    }
  }
}

// Of head h and the block whose representative begins at element `first`.
double Logit(const ScoreBlocksArgs& args, const float* query, int64_t h, const void* data,
             int64_t first) {
  const RepresentativeShape shape = ShapeOf(args.kind, args.q_heads, args.kv_heads);
  const int64_t row = h / (args.q_heads / shape.heads);
  double sum = 0;
  for (int64_t d = 0; d < args.head_dim; ++d) {
    const double q = query[h * args.head_dim + d];
    const auto product = [&](int64_t slot) {
      const int64_t at = (slot * shape.heads + row) * args.head_dim + d;
      return q * Element(data, args.dtype, first + at);
    };
    sum += args.kind == RepresentativeKind::kBounds ? std::max(product(0), product(1)) : product(0);
  }
  return sum;
}

void ScoreOne(const ScoreBlocksArgs& args, const ScoreItem& item) {
  const int64_t size = ShapeOf(args.kind, args.q_heads, args.kv_heads).rows() * args.head_dim;
  int64_t blocks = 0;
  for (int64_t c = 0; c < item.chunk_count; ++c) blocks += item.chunks[c].blocks;
  if (blocks == 0) return;
  std::vector<double> scores(static_cast<size_t>(blocks));
  for (int64_t h = 0; h < args.q_heads; ++h) {
    std::vector<double> logits;
    for (int64_t c = 0; c < item.chunk_count; ++c) {
      for (int64_t b = 0; b < item.chunks[c].blocks; ++b) {
        logits.push_back(Logit(args, item.query, h, item.chunks[c].data, b * size));
      }
    }
    if (args.scoring == Scoring::kHeadVote) {
      for (double& logit : logits) logit *= args.scale;
      Softmax(logits);
    }
    for (size_t b = 0; b < scores.size(); ++b) scores[b] += logits[b];
  }
  std::transform(scores.begin(), scores.end(), item.out,
                 [](double score) { return static_cast<float>(score); });
}

}  // namespace

void ReferenceRepresentatives(const RepresentativesArgs& args) {
  for (int64_t i = 0; i < args.count; ++i) {
    if (args.kind == RepresentativeKind::kBounds) {
      Bounds(args, args.items[i]);
    } else {
      MeanKeys(args, args.items[i]);
    }
  }
}

void ReferenceMeanQueries(const MeanQueriesArgs& args) {
  const int64_t width = args.q_heads * args.head_dim;
  for (int64_t i = 0; i < args.count; ++i) {
    const RowRange& range = args.ranges[i];
    for (int64_t d = 0; d < width; ++d) {
      double sum = 0;
      for (int64_t t = 0; t < range.rows; ++t) sum += args.q[(range.first + t) * width + d];
      args.out[i * width + d] = static_cast<float>(sum / static_cast<double>(range.rows));
    }
  }
}

void ReferenceScoreBlocks(const ScoreBlocksArgs& args) {
  for (int64_t i = 0; i < args.count; ++i) ScoreOne(args, args.items[i]);
}

void ReferenceTopK(const TopKArgs& args) {
  for (int64_t i = 0; i < args.count; ++i) {
    const TopKItem& item = args.items[i];
    std::vector<int64_t> best = Best(item.scores, item.n, item.k);
    std::sort(best.begin(), best.end());
    for (size_t j = 0; j < best.size(); ++j) {
      item.out_index[j] = best[j];
      item.out_score[j] = item.scores[best[j]];
    }
  }
}

void ReferenceLookUpBlocks(const LookUpBlocksArgs& args) {
  for (int64_t i = 0; i < args.count; ++i) {
    const LookUpItem& item = args.items[i];
    for (int64_t b = 0; b < item.count; ++b) {
      PageEntry entry;
      entry.position = item.first_position + item.index[b] * args.page_tokens;
      for (int64_t c = 0; c < item.cached_count; ++c) {
        if (item.cached[c] != item.index[b]) continue;
        entry.page = item.pages[c];
        entry.tokens = static_cast<int32_t>(args.page_tokens);
      }
      if (entry.tokens == 0) ++*item.misses;
      item.out[b] = entry;
    }
  }
}

}  // namespace infllm::kernels
