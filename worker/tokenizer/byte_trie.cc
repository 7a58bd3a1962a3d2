#include "worker/tokenizer/byte_trie.h"

#include <algorithm>
#include <cstring>

namespace infllm::worker {

ByteTrie::ByteTrie(std::vector<Entry> keys) {
  std::sort(keys.begin(), keys.end());
  // The keys below a node are a range of the sorted ones, which share their first `depth` bytes.
  struct Range {
    uint32_t begin;
    uint32_t end;
    uint32_t depth;
  };
  std::vector<Range> ranges = {{0, static_cast<uint32_t>(keys.size()), 0}};
  labels_ = {0};
  for (size_t node = 0; node < ranges.size(); ++node) {
    auto [begin, end, depth] = ranges[node];
    first_child_.push_back(static_cast<NodeId>(ranges.size()));
    values_.push_back(kNoValue);
    if (begin < end && keys[begin].first.size() == depth) {
      values_.back() = keys[begin].second;
      ++begin;
    }
    while (begin < end) {
      const char label = keys[begin].first[depth];
      const uint32_t first = begin;
      while (begin < end && keys[begin].first[depth] == label) ++begin;
      labels_.push_back(label);
      ranges.push_back({first, begin, depth + 1});
    }
  }
  first_child_.push_back(static_cast<NodeId>(ranges.size()));
}

std::optional<ByteTrie::NodeId> ByteTrie::Child(NodeId node, char byte) const {
  const NodeId first = first_child_[node];
  const size_t count = first_child_[node + 1] - first;
  if (count == 0) return std::nullopt;
  const char* begin = labels_.data() + first;
  const void* found = std::memchr(begin, byte, count);
  if (found == nullptr) return std::nullopt;
  return first + static_cast<NodeId>(static_cast<const char*>(found) - begin);
}

size_t LongestMatch(const ByteTrie& trie, std::string_view text, size_t max_matches) {
  size_t longest = 0;
  size_t matches = 0;
  std::optional<ByteTrie::NodeId> node = ByteTrie::kRoot;
  for (size_t i = 0; i < text.size() && matches < max_matches; ++i) {
    node = trie.Child(*node, text[i]);
    if (!node.has_value()) break;
    if (trie.value(*node) == ByteTrie::kNoValue) continue;
    longest = i + 1;
    ++matches;
  }
  return longest;
}

}  // namespace infllm::worker
