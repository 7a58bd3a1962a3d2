#include "kernels/validate_select.h"

#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/arg_checker.h"
#include "kernels/core/status_macros.h"

namespace infllm::kernels {
namespace {

constexpr int64_t kMaxVocab = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxScores = int64_t{1} << 32;

void CheckKind(ArgChecker& check, RepresentativeKind kind) {
  check.Require(ShapeOf(kind, 1, 1).rows() > 0, "kind", absl::StrCat(static_cast<int>(kind)),
                "a RepresentativeKind");
}

// check(item) of each, until one fails.
template <typename Item, typename Check>
absl::Status ForItems(const Item* items, int64_t count, Check check) {
  for (int64_t i = 0; i < count; ++i) INFLLM_RETURN_IF_ERROR(check(items[i]));
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const RepresentativesArgs& args) {
  ArgChecker check("Representatives");
  CheckKind(check, args.kind);
  check.Page(args.page).AtLeast("count", args.count, 0).AtLeast("q_heads", args.q_heads, 1);
  if (!check.status().ok()) return check.status();
  check.MultipleOf("q_heads", args.q_heads, "page.kv_heads", args.page.kv_heads);
  if (args.kind == RepresentativeKind::kMeanKey) {
    check.AtLeast("top", args.top, 1)
        .AtMost("top", args.top, "page.page_tokens", args.page.page_tokens);
  }
  if (args.count > 0) check.NotNull("items", args.items);
  return check.status();
}

absl::Status ValidateForHost(const RepresentativesArgs& args) {
  return ForItems(args.items, args.count, [&](const RepresentativeItem& item) {
    ArgChecker check("Representatives");
    check.NotNull("item.page", item.page).NotNull("item.out", item.out);
    if (args.kind == RepresentativeKind::kMeanKey) check.NotNull("item.mass", item.mass);
    return check.status();
  });
}

absl::Status Validate(const MeanQueriesArgs& args) {
  ArgChecker check("MeanQueries");
  check.AtLeast("count", args.count, 0)
      .AtLeast("q_heads", args.q_heads, 1)
      .AtLeast("head_dim", args.head_dim, 1);
  if (!check.status().ok() || args.count == 0) return check.status();
  return check.NotNull("q", args.q)
      .NotNull("ranges", args.ranges)
      .NotNull("out", args.out)
      .status();
}

absl::Status ValidateForHost(const MeanQueriesArgs& args) {
  return ForItems(args.ranges, args.count, [](const RowRange& range) {
    ArgChecker check("MeanQueries");
    // The mean of no query does not exist.
    return check.AtLeast("range.first", range.first, 0)
        .AtLeast("range.rows", range.rows, 1)
        .status();
  });
}

absl::Status Validate(const ScoreBlocksArgs& args) {
  ArgChecker check("ScoreBlocks");
  CheckKind(check, args.kind);
  check.F32OrBf16("dtype", args.dtype)
      .Require(args.scoring == Scoring::kMean || args.scoring == Scoring::kHeadVote, "scoring",
               absl::StrCat(static_cast<int>(args.scoring)), "a Scoring")
      .AtLeast("count", args.count, 0)
      .AtLeast("q_heads", args.q_heads, 1)
      .AtLeast("kv_heads", args.kv_heads, 1)
      .AtLeast("head_dim", args.head_dim, 1);
  if (!check.status().ok()) return check.status();
  check.MultipleOf("q_heads", args.q_heads, "kv_heads", args.kv_heads);
  if (args.count > 0) check.NotNull("items", args.items);
  return check.status();
}

absl::Status ValidateForHost(const ScoreBlocksArgs& args) {
  return ForItems(args.items, args.count, [](const ScoreItem& item) {
    ArgChecker check("ScoreBlocks");
    check.AtLeast("item.chunk_count", item.chunk_count, 0);
    if (item.chunk_count > 0) check.NotNull("item.chunks", item.chunks);
    if (!check.status().ok()) return check.status();
    int64_t blocks = 0;
    for (int64_t c = 0; c < item.chunk_count; ++c) {
      const RepresentativeChunk& chunk = item.chunks[c];
      check.AtLeast("chunk.blocks", chunk.blocks, 0);
      if (chunk.blocks > 0) check.NotNull("chunk.data", chunk.data);
      blocks += chunk.blocks;
    }
    if (blocks > 0) check.NotNull("item.query", item.query).NotNull("item.out", item.out);
    return check.status();
  });
}

absl::Status Validate(const TopKArgs& args) {
  ArgChecker check("TopK");
  check.AtLeast("count", args.count, 0);
  if (args.count > 0) check.NotNull("items", args.items);
  return check.status();
}

absl::Status ValidateForHost(const TopKArgs& args) {
  return ForItems(args.items, args.count, [](const TopKItem& item) {
    ArgChecker check("TopK");
    check.AtLeast("item.n", item.n, 0)
        .AtMost("item.n", item.n, "2^32", kMaxScores)
        .AtLeast("item.k", item.k, 0);
    if (item.n > 0 && item.k > 0) {
      check.NotNull("item.scores", item.scores)
          .NotNull("item.out_index", item.out_index)
          .NotNull("item.out_score", item.out_score);
    }
    return check.status();
  });
}

absl::Status Validate(const SelectBlocksArgs& args) {
  INFLLM_RETURN_IF_ERROR(Validate(args.score));
  INFLLM_RETURN_IF_ERROR(Validate(args.best));
  ArgChecker check("SelectBlocks");
  return check
      .Require(args.best.count == args.score.count, "best.count", absl::StrCat(args.best.count),
               absl::StrCat("score.count = ", args.score.count).c_str())
      .status();
}

absl::Status ValidateForHost(const SelectBlocksArgs& args) {
  INFLLM_RETURN_IF_ERROR(ValidateForHost(args.score));
  INFLLM_RETURN_IF_ERROR(ValidateForHost(args.best));
  for (int64_t i = 0; i < args.score.count; ++i) {
    const ScoreItem& item = args.score.items[i];
    const TopKItem& best = args.best.items[i];
    int64_t blocks = 0;
    for (int64_t c = 0; c < item.chunk_count; ++c) blocks += item.chunks[c].blocks;
    ArgChecker check("SelectBlocks");
    check.Require(best.n == blocks, "best.item.n", absl::StrCat(best.n),
                  absl::StrCat("the blocks of its chunks = ", blocks).c_str());
    check.Require(blocks == 0 || best.k == 0 || best.scores == item.out, "best.item.scores",
                  "another array", "score.item.out");
    if (!check.status().ok()) return check.status();
  }
  return absl::OkStatus();
}

absl::Status Validate(const EncodeBoundsArgs& args) {
  ArgChecker check("EncodeBounds");
  check.F32OrBf16("dtype", args.dtype)
      .AtLeast("runs", args.runs, 0)
      .AtLeast("kv_heads", args.kv_heads, 1)
      .AtLeast("head_dim", args.head_dim, 1);
  if (args.runs > 0) check.NotNull("bounds", args.bounds).NotNull("codes", args.codes);
  return check.status();
}

absl::Status ValidateForHost(const EncodeBoundsArgs&) { return absl::OkStatus(); }

absl::Status Validate(const LookUpBlocksArgs& args) {
  ArgChecker check("LookUpBlocks");
  check.AtLeast("count", args.count, 0)
      .AtLeast("page_tokens", args.page_tokens, 1)
      .AtMost("page_tokens", args.page_tokens, "the largest int32",
              std::numeric_limits<int32_t>::max());
  if (args.count > 0) check.NotNull("items", args.items);
  return check.status();
}

absl::Status ValidateForHost(const LookUpBlocksArgs& args) {
  return ForItems(args.items, args.count, [](const LookUpItem& item) {
    ArgChecker check("LookUpBlocks");
    check.AtLeast("item.count", item.count, 0).AtLeast("item.cached_count", item.cached_count, 0);
    if (item.count > 0) {
      check.NotNull("item.index", item.index)
          .NotNull("item.out", item.out)
          .NotNull("item.misses", item.misses);
      if (item.cached_count > 0) {
        check.NotNull("item.cached", item.cached).NotNull("item.pages", item.pages);
      }
    }
    return check.status();
  });
}

absl::Status Validate(const SampleArgs& args) {
  ArgChecker check("Sample");
  check.AtLeast("count", args.count, 0)
      .AtLeast("vocab", args.vocab, 1)
      .AtMost("vocab", args.vocab, "the largest int32", kMaxVocab);
  if (!check.status().ok() || args.count == 0) return check.status();
  return check.NotNull("logits", args.logits)
      .NotNull("items", args.items)
      .NotNull("out_token", args.out_token)
      .status();
}

absl::Status ValidateForHost(const SampleArgs& args) {
  return ForItems(args.items, args.count, [](const SampleItem& item) {
    ArgChecker check("Sample");
    return check.AtLeast("item.row", item.row, 0)
        .AtLeast("item.top_k", item.top_k, 0)
        .Require(item.temperature >= 0 && std::isfinite(item.temperature), "item.temperature",
                 absl::StrCat(item.temperature), "finite and at least 0")
        .Require(item.top_p > 0 && item.top_p <= 1, "item.top_p", absl::StrCat(item.top_p),
                 "in (0, 1]")
        .Require(item.uniform >= 0 && item.uniform < 1, "item.uniform", absl::StrCat(item.uniform),
                 "in [0, 1)")
        .status();
  });
}

absl::Status Validate(const LogProbsArgs& args) {
  ArgChecker check("LogProbs");
  check.AtLeast("rows", args.rows, 0)
      .AtLeast("vocab", args.vocab, 1)
      .AtMost("vocab", args.vocab, "the largest int32", kMaxVocab);
  if (!check.status().ok() || args.rows == 0) return check.status();
  return check.NotNull("logits", args.logits)
      .NotNull("target", args.target)
      .NotNull("out_logprob", args.out_logprob)
      .NotNull("out_argmax", args.out_argmax)
      .status();
}

absl::Status ValidateForHost(const LogProbsArgs& args) {
  return ForItems(args.target, args.rows, [&](int32_t target) {
    ArgChecker check("LogProbs");
    return check.AtLeast("target", target, -1)
        .AtMost("target", target, "vocab - 1", args.vocab - 1)
        .status();
  });
}

}  // namespace infllm::kernels
