#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace infllm::worker {

// A set of byte strings with a value each, walked byte by byte. Nodes are in breadth-first order,
// so the children of a node are neighbours and 9 bytes per node are enough. Immutable, thread-safe.
class ByteTrie {
 public:
  using NodeId = uint32_t;
  using Entry = std::pair<std::string_view, int32_t>;  // key, value
  static constexpr NodeId kRoot = 0;
  static constexpr int32_t kNoValue = -1;

  ByteTrie() : ByteTrie(std::vector<Entry>()) {}
  // Keys in any order, unique, not empty; values >= 0. Takes time and memory linear in their bytes.
  explicit ByteTrie(std::vector<Entry> keys);

  bool empty() const { return labels_.size() == 1; }
  // The node one byte further, if a key leads there.
  std::optional<NodeId> Child(NodeId node, char byte) const;
  // The value of the key that ends at `node`, or kNoValue.
  int32_t value(NodeId node) const { return values_[node]; }

 private:
  std::vector<char> labels_;  // [nodes]: the byte that leads to the node
  std::vector<NodeId>
      first_child_;              // [nodes + 1]: children are [first_child_[n], first_child_[n + 1])
  std::vector<int32_t> values_;  // [nodes]
};

// The bytes of the longest key that `text` starts with; 0 if there is none. Only the `max_matches`
// shortest matching keys are considered, a limit that the library has.
size_t LongestMatch(const ByteTrie& trie, std::string_view text, size_t max_matches);

}  // namespace infllm::worker
