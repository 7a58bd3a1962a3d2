// The algorithm of SentencePiece's bpe_model.cc, made fast by cutting the text where no merge can
// happen: pieces that a text needs again and again are then found in a cache.
#include <algorithm>
#include <bit>
#include <bitset>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "worker/tokenizer/segmenter.h"
#include "worker/tokenizer/utf8.h"

namespace infllm::worker {
namespace {

// Which characters stand side by side in some piece. Where two do not, no merge joins them, since
// what a merge makes is a piece.
class NeighbourSet {
 public:
  void Add(char32_t left, char32_t right) {
    if (IsAscii(left, right)) {
      ascii_.set(AsciiIndex(left, right));
    } else {
      others_.insert(Key(left, right));
    }
  }
  bool Contains(char32_t left, char32_t right) const {
    return IsAscii(left, right) ? ascii_.test(AsciiIndex(left, right))
                                : others_.contains(Key(left, right));
  }

 private:
  static bool IsAscii(char32_t left, char32_t right) { return (left | right) < 128; }
  static size_t AsciiIndex(char32_t left, char32_t right) { return left * 128 + right; }
  static uint64_t Key(char32_t left, char32_t right) {
    return static_cast<uint64_t>(left) << 32 | right;
  }

  std::bitset<128 * 128> ascii_;
  absl::flat_hash_set<uint64_t> others_;
};

// A piece in the making: a stretch of the text that merges have joined so far.
struct Symbol {
  uint32_t begin;
  uint32_t size;  // 0 once it has been merged into the symbol before it
  int32_t previous;
  int32_t next;
  bool frozen;  // user-defined: takes part in no merge
};
constexpr int32_t kNoSymbol = -1;

// A possible merge of a symbol with the next one.
struct Merge {
  int32_t rank;   // larger goes first
  uint32_t size;  // of both symbols: if it is no longer that, the merge is out of date
  int32_t left;
};

// The heap keeps the merge to do next on top: the best score, then the leftmost.
bool GoesAfter(const Merge& a, const Merge& b) {
  return a.rank != b.rank ? a.rank < b.rank : a.left > b.left;
}

// Orders floats as integers; -0 is below +0, as in the library.
int32_t RankOfScore(float score) {
  const int32_t bits = std::bit_cast<int32_t>(score);
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

class BpeSegmenter final : public Segmenter {
 public:
  explicit BpeSegmenter(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {
    for (int32_t id = 0; id < vocabulary.size(); ++id) AddNeighbours(vocabulary.piece(id));
  }

  std::vector<int32_t> Segment(std::string_view normalized) const override;

 private:
  // The most bytes that are segmented as one: positions must fit int32_t. Beyond, the text is cut,
  // where the library would overflow.
  static constexpr size_t kMaxRunBytes = size_t{1} << 30;
  // Runs that are worth caching, and how many. The cache lives for one call only.
  static constexpr size_t kMaxCachedBytes = 48;
  static constexpr size_t kMaxCachedRuns = size_t{1} << 16;
  // How deep unused pieces are taken apart; the library's limit.
  static constexpr int kMaxUnusedDepth = 100;

  // The two halves that each unused piece was merged from.
  using Halves =
      absl::flat_hash_map<std::string_view, std::pair<std::string_view, std::string_view>>;

  // Everything that a run needs, kept between runs to save allocations.
  struct Scratch {
    std::vector<Symbol> symbols;
    std::vector<Merge> agenda;  // a heap
    Halves halves;
    std::vector<int32_t> ids;
  };

  void AddNeighbours(const Piece& piece);
  size_t RunLength(std::string_view text) const;
  void SegmentRun(std::string_view run, Scratch& scratch) const;
  void SplitIntoSymbols(std::string_view run, std::vector<Symbol>& symbols) const;
  void AddMerge(std::string_view run, int32_t left, Scratch& scratch) const;
  void Emit(std::string_view text, int depth, Scratch& scratch) const;

  const Vocabulary& vocabulary_;
  NeighbourSet neighbours_;
};

void BpeSegmenter::AddNeighbours(const Piece& piece) {
  switch (piece.type) {
    case PieceType::kNormal:
    case PieceType::kUserDefined:
    case PieceType::kUnused:
      break;
    case PieceType::kUnknown:
    case PieceType::kControl:
    case PieceType::kByte:
      return;  // never the result of a merge
  }
  std::string_view text = piece.text;
  CodePoint left = FirstCodePoint(text);
  for (text.remove_prefix(left.length); !text.empty(); text.remove_prefix(left.length)) {
    const CodePoint right = FirstCodePoint(text);
    neighbours_.Add(left.value, right.value);
    left = right;
  }
}

std::vector<int32_t> BpeSegmenter::Segment(std::string_view normalized) const {
  std::vector<int32_t> ids;
  ids.reserve(normalized.size() / 4);
  Scratch scratch;
  // A run's ids are a range of `ids` where it was first seen.
  struct Range {
    size_t begin;
    size_t size;
  };
  absl::flat_hash_map<std::string_view, Range> cache;
  while (!normalized.empty()) {
    const std::string_view run = normalized.substr(0, RunLength(normalized));
    normalized.remove_prefix(run.size());
    const auto cached = cache.find(run);
    if (cached != cache.end()) {
      const Range range = cached->second;
      for (size_t i = range.begin; i < range.begin + range.size; ++i) ids.push_back(ids[i]);
      continue;
    }
    scratch.ids.clear();
    SegmentRun(run, scratch);
    // A run of unknown characters has one unknown id, across the runs that we see.
    const bool has_unknown = std::find(scratch.ids.begin(), scratch.ids.end(),
                                       vocabulary_.unk_id()) != scratch.ids.end();
    const bool joins_unknown = has_unknown && !ids.empty() && ids.back() == vocabulary_.unk_id() &&
                               scratch.ids.front() == vocabulary_.unk_id();
    if (!has_unknown && run.size() <= kMaxCachedBytes) {
      if (cache.size() == kMaxCachedRuns) cache.clear();
      cache.emplace(run, Range{ids.size(), scratch.ids.size()});
    }
    ids.insert(ids.end(), scratch.ids.begin() + (joins_unknown ? 1 : 0), scratch.ids.end());
  }
  return ids;
}

// The bytes at the start of `text` that segment as they would alone: up to a place that no piece,
// user-defined ones included, spans.
size_t BpeSegmenter::RunLength(std::string_view text) const {
  CodePoint left = FirstCodePoint(text);
  size_t length = left.length;
  while (length < text.size() && length < kMaxRunBytes) {
    const CodePoint right = FirstCodePoint(text.substr(length));
    if (!neighbours_.Contains(left.value, right.value)) break;
    length += right.length;
    left = right;
  }
  return length;
}

void BpeSegmenter::SegmentRun(std::string_view run, Scratch& scratch) const {
  std::vector<Symbol>& symbols = scratch.symbols;
  std::vector<Merge>& agenda = scratch.agenda;
  agenda.clear();
  scratch.halves.clear();
  SplitIntoSymbols(run, symbols);
  const int32_t count = static_cast<int32_t>(symbols.size());
  for (int32_t left = 0; left < count; ++left) AddMerge(run, left, scratch);

  while (!agenda.empty()) {
    std::pop_heap(agenda.begin(), agenda.end(), GoesAfter);
    const Merge merge = agenda.back();
    agenda.pop_back();
    Symbol& left = symbols[merge.left];
    if (left.size == 0 || left.next == kNoSymbol) continue;
    Symbol& right = symbols[left.next];
    if (left.size + right.size != merge.size) continue;
    left.size = merge.size;
    right.size = 0;
    left.next = right.next;
    if (left.next != kNoSymbol) symbols[left.next].previous = merge.left;
    if (left.previous != kNoSymbol) AddMerge(run, left.previous, scratch);
    AddMerge(run, merge.left, scratch);
  }
  for (int32_t i = 0; i != kNoSymbol; i = symbols[i].next) {
    Emit(run.substr(symbols[i].begin, symbols[i].size), 0, scratch);
  }
}

void BpeSegmenter::SplitIntoSymbols(std::string_view run, std::vector<Symbol>& symbols) const {
  symbols.clear();
  for (size_t begin = 0; begin < run.size();) {
    const std::string_view rest = run.substr(begin);
    const size_t frozen = vocabulary_.UserDefinedPrefix(rest);
    const size_t size = frozen > 0 ? frozen : FirstCodePoint(rest).length;
    const int32_t index = static_cast<int32_t>(symbols.size());
    symbols.push_back({.begin = static_cast<uint32_t>(begin),
                       .size = static_cast<uint32_t>(size),
                       .previous = index == 0 ? kNoSymbol : index - 1,
                       .next = index + 1,
                       .frozen = frozen > 0});
    begin += size;
  }
  symbols.back().next = kNoSymbol;
}

// Puts the merge of `left` with its neighbour on the agenda if it makes a piece.
void BpeSegmenter::AddMerge(std::string_view run, int32_t left, Scratch& scratch) const {
  const Symbol& first = scratch.symbols[left];
  if (first.next == kNoSymbol) return;
  const Symbol& second = scratch.symbols[first.next];
  if (first.frozen || second.frozen) return;
  const std::string_view joined = run.substr(first.begin, first.size + second.size);
  if (joined.size() > kMaxPieceBytes) return;
  const int32_t id = vocabulary_.FindMatchable(joined);
  if (id == Vocabulary::kNoId) return;
  const Piece& piece = vocabulary_.piece(id);
  scratch.agenda.push_back({RankOfScore(piece.score), static_cast<uint32_t>(joined.size()), left});
  std::push_heap(scratch.agenda.begin(), scratch.agenda.end(), GoesAfter);
  // An unused piece is only a step on the way: what remains of it is taken apart again. Its halves
  // follow from its text alone, so any place where it was made will do.
  if (piece.type == PieceType::kUnused) {
    scratch.halves[joined] = {run.substr(first.begin, first.size),
                              run.substr(second.begin, second.size)};
  }
}

void BpeSegmenter::Emit(std::string_view text, int depth, Scratch& scratch) const {
  const int32_t id = vocabulary_.FindMatchable(text);
  if (id == Vocabulary::kNoId) return vocabulary_.AppendUnknown(text, scratch.ids);
  if (vocabulary_.piece(id).type != PieceType::kUnused || depth > kMaxUnusedDepth) {
    scratch.ids.push_back(id);
    return;
  }
  const auto halves = scratch.halves.find(text);
  if (halves == scratch.halves.end()) return vocabulary_.AppendUnknown(text, scratch.ids);
  Emit(halves->second.first, depth + 1, scratch);
  Emit(halves->second.second, depth + 1, scratch);
}

}  // namespace

std::unique_ptr<Segmenter> NewBpeSegmenter(const Vocabulary& vocabulary) {
  return std::make_unique<BpeSegmenter>(vocabulary);
}

}  // namespace infllm::worker
