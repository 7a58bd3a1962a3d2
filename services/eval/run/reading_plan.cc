#include "services/eval/run/reading_plan.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "kernels/core/status_macros.h"

namespace infllm::services {
namespace {

class Planner {
 public:
  Planner(std::span<const std::vector<int32_t>> texts, int64_t alignment)
      : texts_(texts), order_(texts.size()), shared_(texts.size()) {
    std::iota(order_.begin(), order_.end(), size_t{0});
    std::stable_sort(order_.begin(), order_.end(),
                     [&](size_t a, size_t b) { return texts[a] < texts[b]; });
    for (size_t i = 1; i < order_.size(); ++i) {
      const std::vector<int32_t>&a = texts[order_[i - 1]], &b = texts[order_[i]];
      const auto differ = std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first;
      shared_[i] = (differ - a.begin()) / alignment * alignment;
    }
  }

  // What reads the texts order_[first, last) from token `begin` on, which they share up to there.
  ReadingNode Plan(size_t first, size_t last, int64_t begin) const {
    ReadingNode node{.text = order_[first], .begin = begin, .end = 0, .children = {}};
    if (last - first == 1) {
      node.end = static_cast<int64_t>(texts_[node.text].size());
      return node;
    }
    node.end = *std::min_element(shared_.begin() + static_cast<std::ptrdiff_t>(first) + 1,
                                 shared_.begin() + static_cast<std::ptrdiff_t>(last));
    std::vector<std::pair<size_t, size_t>> groups;  // that part here
    size_t group = first;
    for (size_t i = first + 1; i <= last; ++i) {
      if (i < last && shared_[i] > node.end) continue;
      groups.emplace_back(group, i);
      group = i;
    }
    std::stable_sort(groups.begin(), groups.end(), [](const auto& a, const auto& b) {
      return a.second - a.first < b.second - b.first;
    });
    for (const auto& [from, to] : groups) node.children.push_back(Plan(from, to, node.end));
    return node;
  }

 private:
  std::span<const std::vector<int32_t>> texts_;
  std::vector<size_t> order_;    // texts, sorted by their tokens
  std::vector<int64_t> shared_;  // [i]: whole chunks that order_[i] shares with order_[i - 1]
};

}  // namespace

int64_t ReadingNode::TokensToRead() const {
  int64_t tokens = end - begin;
  for (const ReadingNode& child : children) tokens += child.TokensToRead();
  return tokens;
}

ReadingNode PlanReading(std::span<const std::vector<int32_t>> texts, int64_t alignment) {
  INFLLM_CHECK(!texts.empty() && alignment > 0);
  return Planner(texts, alignment).Plan(0, texts.size(), 0);
}

}  // namespace infllm::services
