#include "kernels/cpu/cpu_select.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <vector>

#include "kernels/core/status_macros.h"
#include "kernels/cpu/rank.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/select_ranges.h"

namespace infllm::kernels {
namespace {

// The heads [begin, end) of one page.
void BoundsOfHeads(const SelectKernels& kernels, const RepresentativesArgs& args,
                   const RepresentativeItem& item, int64_t begin, int64_t end) {
  const PageShape& page = args.page;
  const auto element = static_cast<int64_t>(SizeOf(page.dtype));
  for (int64_t g = begin; g < end; ++g) {
    float* least = item.out + g * page.head_dim;
    kernels.bounds(item.page + page.key(g, 0) * element, page.page_tokens,
                   page.dtype == DType::kBF16, page.head_dim, least,
                   least + page.kv_heads * page.head_dim);
  }
}

void MeanKeysOfHeads(const SelectKernels& kernels, const RepresentativesArgs& args,
                     const RepresentativeItem& item, int64_t begin, int64_t end) {
  static thread_local std::vector<uint64_t> best;
  static thread_local Scratch row_scratch;
  const PageShape& page = args.page;
  const auto element = static_cast<int64_t>(SizeOf(page.dtype));
  auto* rows = row_scratch.Get<const void*>(args.top);
  for (int64_t h = begin; h < end; ++h) {
    SelectBest(item.mass + h * page.page_tokens, page.page_tokens, args.top, best);
    std::sort(best.begin(), best.end(), std::greater<>());
    const int64_t kv_head = h / (args.q_heads / page.kv_heads);
    for (int64_t i = 0; i < args.top; ++i) {
      rows[i] = item.page + page.key(kv_head, IndexOf(best[static_cast<size_t>(i)])) * element;
    }
    kernels.mean_rows(rows, args.top, page.dtype == DType::kBF16, page.head_dim,
                      item.out + h * page.head_dim);
  }
}

}  // namespace

const SelectKernels& SelectKernelsFor(Isa isa) {
  switch (isa) {
#ifdef INFLLM_X86
    case Isa::kAvx2:
      return avx2::kSelectKernels;
    case Isa::kAvx512:
      return avx512::kSelectKernels;
    case Isa::kAvx512Bf16:
    case Isa::kAmx:  // differs in bf16 products only
      return avx512bf16::kSelectKernels;
#endif
    default:
      INFLLM_CHECK(isa == Isa::kGeneric);
      return generic::kSelectKernels;
  }
}

void CpuRepresentatives(ThreadPool& pool, Isa isa, const RepresentativesArgs& args) {
  const SelectKernels& kernels = SelectKernelsFor(isa);
  const bool bounds = args.kind == RepresentativeKind::kBounds;
  const int64_t heads = bounds ? args.page.kv_heads : args.q_heads;
  const int64_t head_bytes =
      args.page.head_elements() * static_cast<int64_t>(SizeOf(args.page.dtype));
  ForRanges(pool, args.count * heads, RangeItems(head_bytes), [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const RepresentativeItem& item = args.items[begin / heads];
      const int64_t first = begin % heads;
      const int64_t last = std::min(heads, first + end - begin);
      if (bounds) {
        BoundsOfHeads(kernels, args, item, first, last);
      } else {
        MeanKeysOfHeads(kernels, args, item, first, last);
      }
      begin += last - first;
    }
  });
}

void CpuMeanQueries(ThreadPool& pool, Isa isa, const MeanQueriesArgs& args) {
  // Columns that are summed at once: the unit that is handed to threads.
  constexpr int64_t kColumns = 512;
  const SelectKernels& kernels = SelectKernelsFor(isa);
  const int64_t width = args.q_heads * args.head_dim;
  const int64_t pieces = (width + kColumns - 1) / kColumns;
  int64_t all_rows = 0;
  for (int64_t i = 0; i < args.count; ++i) all_rows += args.ranges[i].rows;
  if (args.count == 0) return;
  const int64_t piece_bytes = all_rows / args.count * std::min(width, kColumns) * 4;
  const auto run = [&](int64_t begin, int64_t end) {
    static thread_local Scratch scratch;
    for (; begin < end; ++begin) {
      const int64_t i = begin / pieces, column = begin % pieces * kColumns;
      const RowRange& range = args.ranges[i];
      const float* q = args.q + range.first * width + column;
      float* out = args.out + i * width + column;
      const int64_t columns = std::min(kColumns, width - column);
      if (range.rows == 1) {
        std::memcpy(out, q, static_cast<size_t>(columns) * sizeof(float));
        continue;
      }
      auto* rows = scratch.Get<const void*>(range.rows);
      for (int64_t t = 0; t < range.rows; ++t) rows[t] = q + t * width;
      kernels.mean_rows(rows, range.rows, /*bf16=*/false, columns, out);
    }
  };
  ForRanges(pool, args.count * pieces, RangeItems(piece_bytes), run);
}

void SelectTop(const TopKItem& item) {
  static thread_local std::vector<uint64_t> best;
  SelectBest(item.scores, item.n, item.k, best);
  std::sort(best.begin(), best.end(),
            [](uint64_t a, uint64_t b) { return IndexOf(a) < IndexOf(b); });
  for (size_t i = 0; i < best.size(); ++i) {
    item.out_index[i] = IndexOf(best[i]);
    item.out_score[i] = item.scores[item.out_index[i]];
  }
}

void CpuTopK(ThreadPool& pool, const TopKArgs& args) {
  int64_t all = 0;
  for (int64_t i = 0; i < args.count; ++i) all += args.items[i].n;
  if (args.count == 0) return;
  // Scores are read at a fraction of what representatives are.
  const int64_t grain = RangeItems(all / args.count * 4 * 4);
  ForRanges(pool, args.count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) SelectTop(args.items[i]);
  });
}

void CpuLookUpBlocks(const LookUpBlocksArgs& args) {
  for (int64_t i = 0; i < args.count; ++i) {
    const LookUpItem& item = args.items[i];
    const int64_t* end = item.cached + item.cached_count;
    for (int64_t b = 0; b < item.count; ++b) {
      const int64_t index = item.index[b];
      const int64_t* at = std::lower_bound(item.cached, end, index);
      const bool found = at != end && *at == index;
      PageEntry entry;
      entry.position = item.first_position + index * args.page_tokens;
      if (found) {
        entry.page = item.pages[at - item.cached];
        entry.tokens = static_cast<int32_t>(args.page_tokens);
      } else {
        ++*item.misses;
      }
      item.out[b] = entry;
    }
  }
}

}  // namespace infllm::kernels
