#include "kernels/validate_args.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/arg_checker.h"
#include "kernels/core/status_macros.h"

namespace infllm::kernels {
namespace {

int64_t Bytes(int64_t elements, DType dtype) {
  return elements * static_cast<int64_t>(SizeOf(dtype));
}

absl::Status ValidateEntries(const char* op, std::span<const PageEntry> entries,
                             int64_t page_tokens) {
  for (const PageEntry& entry : entries) {
    if (entry.tokens == 0) continue;
    ArgChecker check(op);
    check.AtLeast("entry.first", entry.first, 0)
        .AtLeast("entry.tokens", entry.tokens, 0)
        .AtMost("entry.first + entry.tokens", int64_t{entry.first} + entry.tokens,
                "page.page_tokens", page_tokens)
        .NotNull("entry.page", entry.page);
    INFLLM_RETURN_IF_ERROR(check.status());
  }
  return absl::OkStatus();
}

absl::Status ValidateSpan(const AttentionSpan& span, const AttentionArgs& args) {
  ArgChecker check("Attention");
  check.AtLeast("span.rows", span.rows, 0)
      .AtLeast("span.first_row", span.first_row, 0)
      .AtLeast("span.first_position", span.first_position, 0)
      .AtLeast("span.near_pages", span.near_pages, 0)
      .AtLeast("span.far_pages", span.far_pages, 0)
      .AtLeast("span.block_count", span.block_count, 0);
  if (span.near_pages > 0) check.NotNull("span.near", span.near).NotNull("q_near", args.q_near);
  if (span.far_pages > 0) check.NotNull("span.far", span.far).NotNull("q_far", args.q_far);
  if (span.block_count > 0) check.NotNull("span.blocks", span.blocks).NotNull("q_far", args.q_far);
  INFLLM_RETURN_IF_ERROR(check.status());
  const auto entries = [&](const char* op, const PageEntry* first, int64_t count) {
    return ValidateEntries(op, {first, static_cast<size_t>(count)}, args.page.page_tokens);
  };
  INFLLM_RETURN_IF_ERROR(entries("Attention near", span.near, span.near_pages));
  INFLLM_RETURN_IF_ERROR(entries("Attention far", span.far, span.far_pages));
  return entries("Attention blocks", span.blocks, span.block_count);
}

}  // namespace

absl::Status Validate(const LinearArgs& args) {
  ArgChecker check("Linear");
  check.NotNull("weight.data", args.weight.data)
      .AtLeast("weight.in_features", args.weight.in_features, 1)
      .AtLeast("weight.out_features", args.weight.out_features, 1)
      .AtLeast("rows", args.rows, 0);
  if (!check.status().ok() || args.rows == 0) return check.status();
  return check.NotNull("x", args.x)
      .NotNull("y", args.y)
      .Apart("y", args.y, Bytes(args.rows * args.weight.out_features, args.y_dtype), "x", args.x,
             Bytes(args.rows * args.weight.in_features, args.x_dtype))
      .status();
}

absl::Status Validate(const RmsNormArgs& args) {
  ArgChecker check("RmsNorm");
  check.AtLeast("rows", args.rows, 0).AtLeast("width", args.width, 1);
  if (args.rows == 0) return check.status();
  return check.NotNull("x", args.x).NotNull("weight", args.weight).NotNull("y", args.y).status();
}

absl::Status Validate(const SiluMulArgs& args) {
  ArgChecker check("SiluMul");
  check.AtLeast("rows", args.rows, 0).AtLeast("width", args.width, 1);
  if (!check.status().ok() || args.rows == 0) return check.status();
  const int64_t elements = args.rows * args.width;
  return check.NotNull("gate_up", args.gate_up)
      .NotNull("out", args.out)
      .Apart("out", args.out, Bytes(elements, args.out_dtype), "gate_up", args.gate_up,
             Bytes(2 * elements, args.gate_up_dtype))
      .status();
}

absl::Status Validate(const GatherRowsArgs& args) {
  ArgChecker check("GatherRows");
  check.AtLeast("rows", args.rows, 0).AtLeast("width", args.width, 1);
  if (args.rows == 0) return check.status();
  return check.NotNull("x", args.x).NotNull("index", args.index).NotNull("out", args.out).status();
}

absl::Status Validate(const RotateAndStoreArgs& args) {
  ArgChecker check("RotateAndStore");
  check.Page(args.page)
      .AtLeast("rows", args.rows, 0)
      .AtLeast("q_heads", args.q_heads, 1)
      .MultipleOf("page.head_dim", args.page.head_dim, "2", 2)
      .AtLeast("layer_offset", args.layer_offset, 0);
  if (!check.status().ok() || args.rows == 0) return check.status();
  check.NotNull("qkv", args.qkv)
      .NotNull("angles", args.angles)
      .NotNull("q_near", args.q_near)
      .NotNull("pages", args.pages)
      .NotNull("slots", args.slots);
  const int64_t q = args.rows * args.q_heads * args.page.head_dim;
  const int64_t qkv = q + args.rows * 2 * args.page.kv_heads * args.page.head_dim;
  const auto apart = [&](const char* name, const void* out) {
    check.Apart(name, out, Bytes(q, args.activation_dtype), "qkv", args.qkv,
                Bytes(qkv, args.activation_dtype));
  };
  apart("q_near", args.q_near);
  if (args.far_angle != nullptr) {
    check.NotNull("q_far", args.q_far);
    apart("q_far", args.q_far);
  }
  return check.status();
}

absl::Status Validate(const AttentionArgs& args) {
  ArgChecker check("Attention");
  check.Page(args.page)
      .AtLeast("q_heads", args.q_heads, 1)
      .MultipleOf("q_heads", args.q_heads, "page.kv_heads", args.page.kv_heads)
      .AtLeast("span_count", args.span_count, 0)
      .AtLeast("window", args.window, 0)
      .Require(args.scale > 0 && std::isfinite(args.scale), "scale", absl::StrCat(args.scale),
               "finite and above 0")
      .Require(std::isfinite(args.block_bias), "block_bias", absl::StrCat(args.block_bias),
               "finite")
      .AtLeast("layer_offset", args.layer_offset, 0)
      .AtLeast("mass_layer_offset", args.mass_layer_offset, 0);
  if (args.span_count == 0) return check.status();
  return check.NotNull("spans", args.spans).NotNull("out", args.out).status();
}

absl::Status ValidateForHost(const LinearArgs& args) {
  return ArgChecker("Linear").F32("x_dtype", args.x_dtype).F32("y_dtype", args.y_dtype).status();
}

absl::Status ValidateForHost(const RmsNormArgs& args) {
  return ArgChecker("RmsNorm").F32("x_dtype", args.x_dtype).F32("y_dtype", args.y_dtype).status();
}

absl::Status ValidateForHost(const SiluMulArgs& args) {
  return ArgChecker("SiluMul")
      .F32("gate_up_dtype", args.gate_up_dtype)
      .F32("out_dtype", args.out_dtype)
      .status();
}

absl::Status ValidateForHost(const GatherRowsArgs& args) {
  ArgChecker check("GatherRows");
  check.F32("dtype", args.dtype);
  for (int64_t i = 0; i < args.rows; ++i) check.AtLeast("index[i]", args.index[i], 0);
  return check.status();
}

absl::Status ValidateForHost(const RotateAndStoreArgs& args) {
  ArgChecker check("RotateAndStore");
  check.F32("activation_dtype", args.activation_dtype);
  for (int64_t i = 0; i < args.rows; ++i) {
    check.NotNull("pages[i]", args.pages[i])
        .AtLeast("slots[i]", args.slots[i], 0)
        .AtMost("slots[i]", args.slots[i], "page.page_tokens - 1", args.page.page_tokens - 1);
  }
  return check.status();
}

absl::Status ValidateForHost(const AttentionArgs& args) {
  ArgChecker check("Attention");
  check.F32("q_dtype", args.q_dtype).F32("out_dtype", args.out_dtype);
  INFLLM_RETURN_IF_ERROR(check.status());
  for (int64_t i = 0; i < args.span_count; ++i) {
    INFLLM_RETURN_IF_ERROR(ValidateSpan(args.spans[i], args));
  }
  return absl::OkStatus();
}

absl::Status ValidateCopy(const void* to, const void* from, size_t bytes) {
  ArgChecker check("Copy");
  if (bytes > 0) check.NotNull("to", to).NotNull("from", from);
  return check.status();
}

absl::Status ValidateZero(const void* device, size_t bytes) {
  ArgChecker check("Zero");
  if (bytes > 0) check.NotNull("device", device);
  return check.status();
}

absl::Status ValidatePackWeight(std::span<const WeightSource> sources, int64_t in_features,
                                DType compute) {
  ArgChecker check("PackWeight");
  check.AtLeast("number of sources", static_cast<int64_t>(sources.size()), 1)
      .AtLeast("in_features", in_features, 1)
      .F32OrBf16("compute", compute);
  for (const WeightSource& source : sources) {
    check.AtLeast("source.out_features", source.out_features, 1)
        .NotNull("source.host", source.host);
  }
  return check.status();
}

}  // namespace infllm::kernels
