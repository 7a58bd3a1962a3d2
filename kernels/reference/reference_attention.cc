#include "kernels/reference/reference_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace infllm::kernels {
namespace {

double Element(const std::byte* page, DType dtype, int64_t index) {
  return dtype == DType::kBF16 ? static_cast<float>(reinterpret_cast<const BF16*>(page)[index])
                               : reinterpret_cast<const float*>(page)[index];
}

enum class Source { kNear, kFar, kBlock };

// One key of the list that a query attends over.
struct Key {
  Source source;
  int64_t entry;          // of the page table
  const std::byte* page;  // in the layer at hand
  int64_t slot;
  int64_t position;
};

std::vector<Key> KeysOf(const AttentionArgs& args, const AttentionSpan& span) {
  std::vector<Key> keys;
  const auto add = [&](Source source, const PageEntry* entries, int64_t count) {
    for (int64_t e = 0; e < count; ++e) {
      const int64_t offset = source == Source::kBlock ? 0 : args.layer_offset;
      for (int64_t s = entries[e].first; s < entries[e].first + entries[e].tokens; ++s) {
        keys.push_back({source, e, entries[e].page + offset, s, entries[e].position + s});
      }
    }
  };
  add(Source::kNear, span.near, span.near_pages);
  add(Source::kFar, span.far, span.far_pages);
  add(Source::kBlock, span.blocks, span.block_count);
  return keys;
}

bool Visible(const AttentionArgs& args, const Key& key, int64_t position) {
  const int64_t distance = position - key.position;
  switch (key.source) {
    case Source::kNear:
      return distance >= 0 && distance < args.window;
    case Source::kFar:
      return args.far_unmasked || distance >= args.window;
    case Source::kBlock:
      return true;
  }
  return false;
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

void Attend(const AttentionArgs& args, const AttentionSpan& span) {
  const PageShape& page = args.page;
  const int64_t dim = page.head_dim;
  const std::vector<Key> keys = KeysOf(args, span);
  std::vector<double> p(keys.size()), mass(keys.size());
  std::vector<double> block_mass(static_cast<size_t>(span.block_count));
  for (int64_t h = 0; h < args.q_heads; ++h) {
    const int64_t kv_head = h / (args.q_heads / page.kv_heads);
    const auto k = [&](const Key& key, int64_t d) {
      const bool rotated =
          key.source == Source::kNear || (key.source == Source::kFar && args.far_rotated);
      const int64_t at =
          rotated ? page.rotated_key(kv_head, key.slot) : page.key(kv_head, key.slot);
      return Element(key.page, page.dtype, at + d);
    };
    const auto v = [&](const Key& key, int64_t d) {
      return Element(key.page, page.dtype, page.value(kv_head, key.slot) + d);
    };
    std::fill(mass.begin(), mass.end(), 0.0);
    for (int64_t t = 0; t < span.rows; ++t) {
      const int64_t row = ((span.first_row + t) * args.q_heads + h) * dim;
      for (size_t j = 0; j < keys.size(); ++j) {
        p[j] = -std::numeric_limits<double>::infinity();
        if (!Visible(args, keys[j], span.first_position + t)) continue;
        const auto* q =
            static_cast<const float*>(keys[j].source == Source::kNear ? args.q_near : args.q_far);
        p[j] = 0;
        for (int64_t d = 0; d < dim; ++d) p[j] += q[row + d] * k(keys[j], d);
        p[j] *= args.scale;
        if (keys[j].source == Source::kBlock) p[j] += args.block_bias;
      }
      Softmax(p);
      for (int64_t d = 0; d < dim; ++d) {
        double sum = 0;
        for (size_t j = 0; j < keys.size(); ++j) {
          if (p[j] > 0) sum += p[j] * v(keys[j], d);
        }
        static_cast<float*>(args.out)[row + d] = static_cast<float>(sum);
      }
      for (size_t j = 0; j < keys.size(); ++j) mass[j] += p[j];
    }
    for (size_t j = 0; j < keys.size(); ++j) {
      const Key& key = keys[j];
      if (key.source == Source::kBlock) block_mass[static_cast<size_t>(key.entry)] += mass[j];
      if (key.source != Source::kNear || span.near_mass == nullptr) continue;
      float* of_page = span.near_mass[key.entry];
      if (of_page == nullptr) continue;
      of_page += args.mass_layer_offset / static_cast<int64_t>(sizeof(float));
      of_page[h * page.page_tokens + key.slot] += static_cast<float>(mass[j]);
    }
  }
  if (span.block_mass == nullptr) return;
  for (int64_t b = 0; b < span.block_count; ++b) {
    span.block_mass[b] = static_cast<float>(block_mass[static_cast<size_t>(b)]);
  }
}

}  // namespace

void ReferenceAttention(const AttentionArgs& args) {
  for (int64_t i = 0; i < args.span_count; ++i) Attend(args, args.spans[i]);
}

}  // namespace infllm::kernels
