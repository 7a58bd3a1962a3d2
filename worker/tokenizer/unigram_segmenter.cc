// The algorithm of SentencePiece's unigram_model.cc (EncodeOptimized), in its float arithmetic,
// so that near ties fall the same way. It keeps only the part of the text whose best path is still
// open.
#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "worker/tokenizer/byte_trie.h"
#include "worker/tokenizer/segmenter.h"
#include "worker/tokenizer/utf8.h"

namespace infllm::worker {
namespace {

// An unknown character costs this more than the least likely piece.
constexpr float kUnknownPenalty = 10.0f;
// Sums beyond it are set back to zero, before they lose the digits that tell pieces apart.
constexpr float kScoreResetThreshold = 100000.0f;

// Above any log probability, so user-defined pieces always win, long ones before several short.
float UserDefinedScore(size_t bytes) {
  return static_cast<float>(0.1 * (static_cast<double>(bytes) - 1));
}

class UnigramSegmenter final : public Segmenter {
 public:
  UnigramSegmenter(const Vocabulary& vocabulary, ByteTrie trie, float unknown_score)
      : vocabulary_(vocabulary), trie_(std::move(trie)), unknown_score_(unknown_score) {}

  std::vector<int32_t> Segment(std::string_view normalized) const override;

 private:
  // The best path to a position in the text.
  struct Node {
    float score = 0;
    int32_t id = Vocabulary::kNoId;  // the last piece of the path
    uint32_t size = 0;               // its bytes; 0 if no path leads here yet
  };
  // The nodes of the positions begin .. begin + nodes.size() - 1; the last one has a path, or is
  // the only one.
  struct Window {
    size_t begin = 0;
    std::vector<Node> nodes = std::vector<Node>(1);
    std::vector<Node> path;  // scratch of Flush()
  };

  static void Offer(Window& window, size_t from, size_t size, int32_t id, float score);
  void ExtendPaths(std::string_view text, size_t from, Window& window) const;
  void Flush(std::string_view text, Window& window, std::vector<int32_t>& ids) const;

  const Vocabulary& vocabulary_;
  const ByteTrie trie_;  // of all matchable pieces that are used; values are ids
  const float unknown_score_;
};

std::vector<int32_t> UnigramSegmenter::Segment(std::string_view normalized) const {
  std::vector<int32_t> ids;
  ids.reserve(normalized.size() / 4);
  Window window;
  for (size_t from = 0; from < normalized.size();
       from += FirstCodePoint(normalized.substr(from)).length) {
    // No piece spans this position: all that follows has the same path up to here.
    if (from - window.begin == window.nodes.size() - 1) Flush(normalized, window, ids);
    const float score = window.nodes[from - window.begin].score;
    if (score < -kScoreResetThreshold || score > kScoreResetThreshold) {
      for (size_t i = from - window.begin; i < window.nodes.size(); ++i)
        window.nodes[i].score -= score;
    }
    ExtendPaths(normalized, from, window);
  }
  Flush(normalized, window, ids);
  return ids;
}

// Offers each piece that the text has at `from` to the position where it ends.
void UnigramSegmenter::ExtendPaths(std::string_view text, size_t from, Window& window) const {
  const float score = window.nodes[from - window.begin].score;
  const size_t character_size = FirstCodePoint(text.substr(from)).length;
  bool has_character = false;  // a piece of just one character
  std::optional<ByteTrie::NodeId> node = ByteTrie::kRoot;
  for (size_t size = 1; from + size <= text.size(); ++size) {
    node = trie_.Child(*node, text[from + size - 1]);
    if (!node.has_value()) break;
    const int32_t id = trie_.value(*node);
    if (id == ByteTrie::kNoValue) continue;
    const Piece& piece = vocabulary_.piece(id);
    const float piece_score =
        piece.type == PieceType::kUserDefined ? UserDefinedScore(size) : piece.score;
    Offer(window, from, size, id, piece_score + score);
    has_character = has_character || size == character_size;
  }
  if (!has_character) {
    Offer(window, from, character_size, vocabulary_.unk_id(), unknown_score_ + score);
  }
}

// A path that takes `size` bytes at `from` as piece `id`; kept if it is the best to its end.
void UnigramSegmenter::Offer(Window& window, size_t from, size_t size, int32_t id, float score) {
  const size_t end = from + size - window.begin;
  if (end >= window.nodes.size()) window.nodes.resize(end + 1);
  Node& node = window.nodes[end];
  if (node.size != 0 && !(score > node.score)) return;
  node = {.score = score, .id = id, .size = static_cast<uint32_t>(size)};
}

// Appends the pieces of the best path to the window's last position, where the next window begins.
void UnigramSegmenter::Flush(std::string_view text, Window& window,
                             std::vector<int32_t>& ids) const {
  window.path.clear();
  for (size_t at = window.nodes.size() - 1; at > 0; at -= window.nodes[at].size) {
    window.path.push_back(window.nodes[at]);
  }
  size_t begin = window.begin;
  for (auto node = window.path.rbegin(); node != window.path.rend(); ++node) {
    if (node->id == vocabulary_.unk_id()) {
      vocabulary_.AppendUnknown(text.substr(begin, node->size), ids);
    } else {
      ids.push_back(node->id);
    }
    begin += node->size;
  }
  window.begin = begin;
  window.nodes = {Node{.score = window.nodes.back().score}};
}

}  // namespace

absl::StatusOr<std::unique_ptr<Segmenter>> NewUnigramSegmenter(const Vocabulary& vocabulary) {
  std::vector<ByteTrie::Entry> keys;
  float min_score = std::numeric_limits<float>::max();
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    const Piece& piece = vocabulary.piece(id);
    if (piece.type == PieceType::kNormal) min_score = std::min(min_score, piece.score);
    if (piece.type == PieceType::kNormal || piece.type == PieceType::kUserDefined) {
      keys.emplace_back(piece.text, id);
    }
  }
  if (keys.empty()) {
    return absl::InvalidArgumentError("a unigram model without a normal or user-defined piece");
  }
  return std::make_unique<UnigramSegmenter>(vocabulary, ByteTrie(std::move(keys)),
                                            min_score - kUnknownPenalty);
}

}  // namespace infllm::worker
