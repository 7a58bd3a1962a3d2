// SelectBlocks of the CPU backend: codes bound the scores of most blocks, and only those that may
// be among the best are scored (a vector approximation file: Weber, Schek and Blott, VLDB 1998).
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/core/status_macros.h"
#include "kernels/cpu/chunk_strips.h"
#include "kernels/cpu/codes_simd.h"
#include "kernels/cpu/cpu_select.h"
#include "kernels/cpu/rank.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/select_ranges.h"

namespace infllm::kernels {
namespace {

// Below so many coded blocks of an item, or of a block to select, all are scored at once.
constexpr int64_t kLeastCoded = 4096;
constexpr int64_t kCodedPerSelected = 16;
// Whole numbers of a bound fit into 31 bits up to many times this width.
constexpr int64_t kMaxCodedWidth = 1 << 16;

const CodeKernels& CodeKernelsFor(Isa isa) {
  switch (isa) {
#ifdef INFLLM_X86
    case Isa::kAvx2:
      return avx2::kCodeKernels;
    case Isa::kAvx512:
      return avx512::kCodeKernels;
    case Isa::kAvx512Bf16:
    case Isa::kAmx:
      return avx512bf16::kCodeKernels;
#endif
    default:
      INFLLM_CHECK(isa == Isa::kGeneric);
      return generic::kCodeKernels;
  }
}

int64_t WholeRuns(const RepresentativeChunk& chunk) {
  return chunk.codes == nullptr ? 0 : chunk.blocks / kRunBlocks;
}

bool UsesCodes(const ScoreBlocksArgs& args, int64_t width, int64_t i, int64_t k) {
  if (args.kind != RepresentativeKind::kBounds || args.scoring != Scoring::kMean) return false;
  int64_t coded = 0;
  for (int64_t c = 0; c < args.items[i].chunk_count; ++c) {
    coded += WholeRuns(args.items[i].chunks[c]) * kRunBlocks;
  }
  return width <= kMaxCodedWidth && coded >= kLeastCoded && coded / kCodedPerSelected >= k;
}

// Writes the scores of blocks without codes, and bounds of all others.
void BoundAll(ThreadPool& pool, const SelectKernels& select, const CodeKernels& code,
              const ScoreBlocksArgs& args, const ScoredQueries& scored, const TopKArgs& best) {
  static thread_local Scratch coded_scratch;
  static thread_local Scratch rest_scratch;
  const int64_t width = scored.width;
  const int64_t row_bytes = width * static_cast<int64_t>(SizeOf(args.dtype));
  int64_t chunks = 0;
  for (int64_t i = 0; i < args.count; ++i) chunks += args.items[i].chunk_count;
  auto* coded = coded_scratch.Get<ChunkQuery>(chunks);
  auto* rest = rest_scratch.Get<ChunkQuery>(chunks);
  int64_t coded_count = 0, rest_count = 0;
  for (int64_t i = 0; i < args.count; ++i) {
    const ScoreItem& item = args.items[i];
    const bool uses_codes = UsesCodes(args, width, i, best.items[i].k);
    float* out = item.out;
    for (int64_t c = 0; c < item.chunk_count; ++c) {
      const RepresentativeChunk& chunk = item.chunks[c];
      const int64_t runs = uses_codes ? WholeRuns(chunk) : 0;
      const int64_t behind = runs * kRunBlocks;
      if (runs > 0) coded[coded_count++] = {chunk.codes, runs, scored.summed(i), out};
      if (behind < chunk.blocks) {
        rest[rest_count++] = {static_cast<const std::byte*>(chunk.data) + behind * row_bytes,
                              chunk.blocks - behind, scored.arranged(i), out + behind};
      }
      out += chunk.blocks;
    }
  }
  ScoreChunks(pool, select, args.dtype, width, rest, rest_count);
  const auto run_bytes = static_cast<int64_t>(RunCodeBytes(width));
  ForStrips(pool, coded, coded_count, RangeItems(run_bytes),
            [&](const ChunkQuery* queries, int64_t count, int64_t first, int64_t end) {
              static thread_local Scratch query_scratch;
              static thread_local Scratch level_scratch;
              auto* bounded = query_scratch.Get<BoundedQuery>(count);
              auto* levels = level_scratch.Get<uint8_t>(4 * 2 * CodedWidth(width));
              for (int64_t run = first; run < end; ++run) {
                for (int64_t q = 0; q < count; ++q) {
                  bounded[q] = {queries[q].query, queries[q].out + run * kRunBlocks};
                }
                code.bound(bounded, count, width,
                           static_cast<const std::byte*>(queries->rows) + run * run_bytes, levels);
              }
            });
}

// Scores blocks of an item, ascending.
class Scorer {
 public:
  Scorer(const SelectKernels& kernels, const ScoreBlocksArgs& args, const ScoreItem& item,
         const float* arranged, int64_t width)
      : kernels_(kernels),
        bf16_(args.dtype == DType::kBF16),
        item_(item),
        arranged_(arranged),
        width_(width),
        row_bytes_(width * static_cast<int64_t>(SizeOf(args.dtype))) {}

  // Valid until the thread's next call.
  const float* Score(const uint32_t* blocks, int64_t count) const {
    static thread_local Scratch row_scratch;
    static thread_local Scratch score_scratch;
    auto* rows = row_scratch.Get<const void*>(count);
    const RepresentativeChunk* chunk = item_.chunks;
    int64_t first = 0;
    for (int64_t i = 0; i < count; ++i) {
      while (blocks[i] >= first + chunk->blocks) first += (chunk++)->blocks;
      rows[i] = static_cast<const std::byte*>(chunk->data) + (blocks[i] - first) * row_bytes_;
    }
    auto* scores = score_scratch.Get<float>(count);
    kernels_.dots_of(rows, count, bf16_, width_, arranged_, scores);
    return scores;
  }

 private:
  const SelectKernels& kernels_;
  const bool bf16_;
  const ScoreItem& item_;
  const float* arranged_;
  const int64_t width_, row_bytes_;
};

// The best of an item whose `out` has the bounds.
void SelectByBounds(const CodeKernels& code, const Scorer& scorer, const TopKItem& item) {
  static thread_local std::vector<uint64_t> best;
  static thread_local Scratch block_scratch;
  // The score of the k-th best of any blocks is one that the k-th best of all is no less than. Of
  // the 2 k with the largest bounds it is hardly ever less.
  SelectBest(item.scores, item.n, 2 * item.k, best);
  auto* blocks = block_scratch.Get<uint32_t>(item.n);
  const auto seeds = static_cast<int64_t>(best.size());
  for (int64_t i = 0; i < seeds; ++i) {
    blocks[i] = static_cast<uint32_t>(IndexOf(best[static_cast<size_t>(i)]));
  }
  std::sort(blocks, blocks + seeds);
  const float* scores = scorer.Score(blocks, seeds);
  SelectBest(scores, seeds, item.k, best);
  float least = scores[IndexOf(*std::min_element(best.begin(), best.end()))];
  if (std::isnan(least)) least = -std::numeric_limits<float>::infinity();

  const int64_t count = code.not_below(item.scores, item.n, least, blocks);
  scores = scorer.Score(blocks, count);
  SelectBest(scores, count, item.k, best);
  std::sort(best.begin(), best.end(),
            [](uint64_t a, uint64_t b) { return IndexOf(a) < IndexOf(b); });
  for (size_t i = 0; i < best.size(); ++i) {
    item.out_index[i] = blocks[IndexOf(best[i])];
    item.out_score[i] = scores[IndexOf(best[i])];
  }
}

}  // namespace

void CpuSelectBlocks(ThreadPool& pool, Isa isa, const SelectBlocksArgs& args) {
  const ScoreBlocksArgs& score = args.score;
  const int64_t width = ShapeOf(score.kind, score.q_heads, score.kv_heads).rows() * score.head_dim;
  const auto uses_codes = [&](int64_t i) {
    return args.best.items[i].k > 0 && UsesCodes(score, width, i, args.best.items[i].k);
  };
  bool any = false;
  for (int64_t i = 0; i < score.count; ++i) any = any || uses_codes(i);
  if (!any) {
    CpuScoreBlocks(pool, isa, score);
    CpuTopK(pool, args.best);
    return;
  }
  const SelectKernels& select = SelectKernelsFor(isa);
  const CodeKernels& code = CodeKernelsFor(isa);
  const ScoredQueries scored = ArrangeQueries(select, score);
  BoundAll(pool, select, code, score, scored, args.best);
  ForRanges(pool, score.count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (uses_codes(i)) {
        SelectByBounds(code, Scorer(select, score, score.items[i], scored.arranged(i), width),
                       args.best.items[i]);
      } else {
        SelectTop(args.best.items[i]);
      }
    }
  });
}

void CpuEncodeBounds(ThreadPool& pool, Isa isa, const EncodeBoundsArgs& args) {
  const CodeKernels& kernels = CodeKernelsFor(isa);
  const int64_t width = 2 * args.kv_heads * args.head_dim;
  const int64_t run_elements = kRunBlocks * width;
  const int64_t run_bytes = run_elements * static_cast<int64_t>(SizeOf(args.dtype));
  ForRanges(pool, args.runs, 1, [&](int64_t begin, int64_t end) {
    static thread_local Scratch scratch;
    for (int64_t run = begin; run < end; ++run) {
      kernels.encode(static_cast<const std::byte*>(args.bounds) + run * run_bytes,
                     args.dtype == DType::kBF16, width, scratch.Get<uint8_t>(CodedWidth(width)),
                     args.codes + run * static_cast<int64_t>(RunCodeBytes(width)));
    }
  });
}

}  // namespace infllm::kernels
