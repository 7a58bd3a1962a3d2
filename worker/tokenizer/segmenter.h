#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/tokenizer/vocabulary.h"

namespace infllm::worker {

// Cuts a normalised text into pieces. Immutable, thread-safe.
class Segmenter {
 public:
  virtual ~Segmenter() = default;
  // `normalized` is valid UTF-8. What matches no piece becomes byte pieces or the unknown id.
  virtual std::vector<int32_t> Segment(std::string_view normalized) const = 0;
};

// Byte-pair encoding: neighbours merge, best score first, until no merge gives a piece. In
// O(n log n). `vocabulary` must outlive the segmenter.
std::unique_ptr<Segmenter> NewBpeSegmenter(const Vocabulary& vocabulary);

// Unigram language model: the segmentation with the best sum of scores. In O(n * longest piece).
// `vocabulary` must outlive the segmenter.
//   INVALID_ARGUMENT  no piece is normal or user-defined
absl::StatusOr<std::unique_ptr<Segmenter>> NewUnigramSegmenter(const Vocabulary& vocabulary);

}  // namespace infllm::worker
