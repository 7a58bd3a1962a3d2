#include "kernels/validate_args.h"

#include <algorithm>
#include <functional>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"

namespace infllm::kernels {
namespace {

// Collects the first failed check of one call.
class Checker {
 public:
  explicit Checker(const char* op) : op_(op) {}

  Checker& AtLeast(const char* name, int64_t value, int64_t limit) {
    if (status_.ok() && value < limit) {
      Fail(absl::StrCat(name, " is ", value, ", must be at least ", limit));
    }
    return *this;
  }
  Checker& AtMost(const char* name, int64_t value, const char* limit_name, int64_t limit) {
    if (status_.ok() && value > limit) {
      Fail(absl::StrCat(name, " is ", value, ", must be at most ", limit_name, " = ", limit));
    }
    return *this;
  }
  Checker& MultipleOf(const char* name, int64_t value, const char* of_name, int64_t of) {
    if (status_.ok() && value % of != 0) {
      Fail(absl::StrCat(name, " is ", value, ", must be a multiple of ", of_name, " = ", of));
    }
    return *this;
  }
  Checker& NotNull(const char* name, const void* pointer) {
    if (status_.ok() && pointer == nullptr) Fail(absl::StrCat(name, " is null"));
    return *this;
  }
  Checker& F32OrBf16(DType dtype) {
    if (status_.ok() && dtype != DType::kF32 && dtype != DType::kBF16) {
      Fail(absl::StrCat("dtype is ", absl::string_view(Name(dtype).data(), Name(dtype).size()),
                        ", must be f32 or bf16"));
    }
    return *this;
  }
  Checker& Known(RepresentativeKind kind) {
    if (status_.ok() && ShapeOf(kind, 1, 1).rows() == 0) {
      Fail(absl::StrCat("kind is ", static_cast<int>(kind), ", must be a RepresentativeKind"));
    }
    return *this;
  }
  // Arrays of floats, the first of which is written.
  Checker& Apart(const char* to_name, const void* to, int64_t to_size, const char* from_name,
                 const void* from, int64_t from_size) {
    const auto end = [](const void* begin, int64_t size) -> const void* {
      return static_cast<const float*>(begin) + size;
    };
    const std::less<const void*> less;
    if (status_.ok() && less(to, end(from, from_size)) && less(from, end(to, to_size))) {
      Fail(absl::StrCat(to_name, " overlaps ", from_name, ", must be apart"));
    }
    return *this;
  }
  absl::Status status() const { return status_; }

 private:
  void Fail(const std::string& what) {
    status_ = absl::InvalidArgumentError(absl::StrCat(op_, ": ", what));
  }
  const char* op_;
  absl::Status status_;
};

absl::Status ValidateSegment(bool far, const KvSegment& segment, const AttentionArgs& args) {
  Checker check(far ? "Attention far" : "Attention near");
  check.AtLeast("segment.tokens", segment.tokens, 0);
  if (segment.tokens == 0) return check.status();
  check.NotNull("segment.k", segment.k).NotNull("segment.v", segment.v);
  if (args.kv_heads > 1) {
    check.AtLeast("segment.head_stride", segment.head_stride, segment.tokens * args.head_dim);
  }
  if (segment.mass != nullptr && args.q_heads > 1) {
    check.AtLeast("segment.mass_stride", segment.mass_stride, segment.tokens);
  }
  return check.status();
}

}  // namespace

absl::Status Validate(const LinearArgs& args) {
  Checker check("Linear");
  check.NotNull("weight", args.weight).AtLeast("rows", args.rows, 0);
  if (!check.status().ok() || args.rows == 0) return check.status();
  const int64_t in = args.weight->in_features(), out = args.weight->out_features();
  check.NotNull("x", args.x).NotNull("y", args.y);
  return check.Apart("y", args.y, args.rows * out, "x", args.x, args.rows * in).status();
}

absl::Status Validate(const RmsNormArgs& args) {
  Checker check("RmsNorm");
  check.AtLeast("rows", args.rows, 0).AtLeast("width", args.width, 1);
  if (args.rows == 0) return check.status();
  return check.NotNull("x", args.x).NotNull("weight", args.weight).NotNull("y", args.y).status();
}

absl::Status Validate(const RopeArgs& args) {
  Checker check("Rope");
  check.AtLeast("rows", args.rows, 0)
      .AtLeast("heads", args.heads, 1)
      .AtLeast("head_dim", args.head_dim, 2)
      .MultipleOf("head_dim", args.head_dim, "2", 2)
      .AtLeast("table_step", args.table_step, 0)
      .AtMost("table_step", args.table_step, "its limit", 1);
  if (args.rows == 0) return check.status();
  return check.NotNull("x", args.x).NotNull("table", args.table).NotNull("y", args.y).status();
}

absl::Status Validate(const StorePageArgs& args) {
  Checker check("StorePage");
  check.F32OrBf16(args.dtype)
      .AtLeast("tokens", args.tokens, 0)
      .AtLeast("heads", args.heads, 1)
      .AtLeast("head_dim", args.head_dim, 1);
  if (args.tokens == 0) return check.status();
  check.NotNull("src", args.src).NotNull("dst", args.dst);
  if (args.heads > 1) check.AtLeast("head_stride", args.head_stride, args.tokens * args.head_dim);
  return check.status();
}

absl::Status Validate(const AttentionArgs& args) {
  Checker check("Attention");
  check.F32OrBf16(args.kv_dtype)
      .AtLeast("tokens", args.tokens, 0)
      .AtLeast("head_dim", args.head_dim, 1)
      .AtLeast("kv_heads", args.kv_heads, 1)
      .AtLeast("q_heads", args.q_heads, 1);
  if (!check.status().ok() || args.tokens == 0) return check.status();
  check.MultipleOf("q_heads", args.q_heads, "kv_heads", args.kv_heads)
      .AtLeast("window", args.window, 0)
      .NotNull("out", args.out);
  if (!args.near.empty()) check.NotNull("q_near", args.q_near);
  if (!args.far.empty()) check.NotNull("q_far", args.q_far);
  INFLLM_RETURN_IF_ERROR(check.status());
  for (const KvSegment& segment : args.near) {
    INFLLM_RETURN_IF_ERROR(ValidateSegment(/*far=*/false, segment, args));
  }
  for (const KvSegment& segment : args.far) {
    INFLLM_RETURN_IF_ERROR(ValidateSegment(/*far=*/true, segment, args));
  }
  return absl::OkStatus();
}

absl::Status Validate(const RepresentativeArgs& args) {
  Checker check("Representatives");
  check.Known(args.kind)
      .F32OrBf16(args.kv_dtype)
      .AtLeast("block_tokens", args.block_tokens, 1)
      .AtLeast("head_dim", args.head_dim, 1)
      .AtLeast("kv_heads", args.kv_heads, 1)
      .AtLeast("q_heads", args.q_heads, 1)
      .NotNull("k", args.k)
      .NotNull("out", args.out);
  if (!check.status().ok()) return check.status();
  check.MultipleOf("q_heads", args.q_heads, "kv_heads", args.kv_heads);
  if (args.kv_heads > 1) {
    check.AtLeast("head_stride", args.head_stride, args.block_tokens * args.head_dim);
  }
  if (args.kind == RepresentativeKind::kBounds) return check.status();
  check.AtLeast("top", args.top, 1)
      .AtMost("top", args.top, "block_tokens", args.block_tokens)
      .NotNull("mass", args.mass);
  if (args.q_heads > 1) check.AtLeast("mass_stride", args.mass_stride, args.block_tokens);
  return check.status();
}

absl::Status Validate(const MeanQueryArgs& args) {
  Checker check("MeanQuery");
  return check
      .AtLeast("tokens", args.tokens, 1)  // the mean of no query does not exist
      .AtLeast("q_heads", args.q_heads, 1)
      .AtLeast("head_dim", args.head_dim, 1)
      .NotNull("q", args.q)
      .NotNull("out", args.out)
      .status();
}

absl::Status Validate(const ScoreBlocksArgs& args) {
  Checker check("ScoreBlocks");
  check.Known(args.kind)
      .F32OrBf16(args.dtype)
      .AtLeast("q_heads", args.q_heads, 1)
      .AtLeast("kv_heads", args.kv_heads, 1)
      .AtLeast("head_dim", args.head_dim, 1)
      .AtLeast("queries", args.queries, 1);
  if (!check.status().ok()) return check.status();
  check.MultipleOf("q_heads", args.q_heads, "kv_heads", args.kv_heads);
  int64_t blocks = 0;
  for (const RepresentativeChunk& chunk : args.chunks) {
    check.AtLeast("chunk.blocks", chunk.blocks, 0);
    if (chunk.blocks > 0) check.NotNull("chunk.data", chunk.data);
    blocks += chunk.blocks;
  }
  if (!check.status().ok() || blocks == 0) return check.status();
  return check.NotNull("query", args.query).NotNull("out", args.out).status();
}

absl::Status ValidateSiluMul(const float* gate_up, const float* out, int64_t rows, int64_t width) {
  Checker check("SiluMul");
  check.AtLeast("rows", rows, 0).AtLeast("width", width, 1);
  if (!check.status().ok() || rows == 0) return check.status();
  check.NotNull("gate_up", gate_up).NotNull("out", out);
  return check.Apart("out", out, rows * width, "gate_up", gate_up, rows * 2 * width).status();
}

absl::Status ValidateCopyColumns(const float* src, int64_t src_width, int64_t src_column,
                                 const float* dst, int64_t dst_width, int64_t dst_column,
                                 int64_t rows, int64_t width) {
  Checker check("CopyColumns");
  check.AtLeast("rows", rows, 0)
      .AtLeast("width", width, 0)
      .AtLeast("src_column", src_column, 0)
      .AtLeast("dst_column", dst_column, 0)
      .AtLeast("src_width", src_width, 0)
      .AtLeast("dst_width", dst_width, 0)
      // Not their sums, which might overflow.
      .AtMost("src_column", src_column, "src_width - width", src_width - width)
      .AtMost("dst_column", dst_column, "dst_width - width", dst_width - width);
  if (!check.status().ok() || rows == 0 || width == 0) return check.status();
  check.NotNull("src", src).NotNull("dst", dst);
  return check.Apart("dst", dst, rows * dst_width, "src", src, rows * src_width).status();
}

absl::Status ValidateTopK(const float* scores, int64_t n, int64_t k,
                          std::span<const int64_t> out_indices) {
  Checker check("TopK");
  check.AtLeast("n", n, 0).AtLeast("k", k, 0);
  if (n > 0 && k > 0) check.NotNull("scores", scores);
  return check
      .AtLeast("size of out_indices", static_cast<int64_t>(out_indices.size()), std::min(n, k))
      .status();
}

absl::Status ValidateCopy(const char* op, const void* to, const void* from, size_t bytes) {
  Checker check(op);
  if (bytes > 0) check.NotNull("destination", to).NotNull("source", from);
  return check.status();
}

absl::Status ValidatePackWeight(std::span<const Backend::WeightSource> sources, int64_t in_features,
                                DType compute) {
  Checker check("PackWeight");
  check.AtLeast("number of sources", static_cast<int64_t>(sources.size()), 1)
      .AtLeast("in_features", in_features, 1)
      .F32OrBf16(compute);
  for (const Backend::WeightSource& source : sources) {
    check.AtLeast("source.out_features", source.out_features, 1)
        .NotNull("source.host", source.host);
  }
  return check.status();
}

}  // namespace infllm::kernels
