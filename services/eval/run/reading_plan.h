// In which order to read several texts so that what they begin with in common is read once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace infllm::services {

// A stretch of tokens that all texts below it have in common. Where it ends, a fork of the state is
// made for each child but the last, which takes the state itself. Children are ordered by how many
// texts they lead to, fewest first: so at most log2(texts) + 1 states exist at a time, apart from
// those that read and answer.
struct ReadingNode {
  size_t text = 0;    // a text with these tokens; of a leaf: the one that ends here
  int64_t begin = 0;  // tokens [begin, end) of it are read here
  int64_t end = 0;
  std::vector<ReadingNode> children;  // none: a leaf

  int64_t TokensToRead() const;  // here and below
};

// Each text is one leaf. All nodes but leaves end at a multiple of `alignment`.
// REQUIRES: at least one text, alignment > 0.
ReadingNode PlanReading(std::span<const std::vector<int32_t>> texts, int64_t alignment);

}  // namespace infllm::services
