// What the checks of arguments are written with: see kernels/validate_args.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/dtype.h"
#include "kernels/ops/attention.h"

namespace infllm::kernels {

// Collects the first failed check of one call of `op`.
class ArgChecker {
 public:
  explicit ArgChecker(const char* op) : op_(op) {}

  ArgChecker& AtLeast(const char* name, int64_t value, int64_t limit) {
    if (status_.ok() && value < limit) {
      Fail(absl::StrCat(name, " is ", value, ", must be at least ", limit));
    }
    return *this;
  }
  ArgChecker& AtMost(const char* name, int64_t value, const char* limit_name, int64_t limit) {
    if (status_.ok() && value > limit) {
      Fail(absl::StrCat(name, " is ", value, ", must be at most ", limit_name, " = ", limit));
    }
    return *this;
  }
  // `of` is positive, or a check of it has failed.
  ArgChecker& MultipleOf(const char* name, int64_t value, const char* of_name, int64_t of) {
    if (status_.ok() && value % of != 0) {
      Fail(absl::StrCat(name, " is ", value, ", must be a multiple of ", of_name, " = ", of));
    }
    return *this;
  }
  ArgChecker& NotNull(const char* name, const void* pointer) {
    if (status_.ok() && pointer == nullptr) Fail(absl::StrCat(name, " is null"));
    return *this;
  }
  ArgChecker& F32(const char* name, DType dtype) {
    return Require(dtype == DType::kF32, name, NameOf(dtype), "f32 on this backend");
  }
  ArgChecker& F32OrBf16(const char* name, DType dtype) {
    return Require(dtype == DType::kF32 || dtype == DType::kBF16, name, NameOf(dtype),
                   "f32 or bf16");
  }
  ArgChecker& Page(const PageShape& page) {
    return F32OrBf16("page.dtype", page.dtype)
        .AtLeast("page.kv_heads", page.kv_heads, 1)
        .AtLeast("page.head_dim", page.head_dim, 1)
        .AtLeast("page.page_tokens", page.page_tokens, 1);
  }
  // Arrays of bytes, the first of which is written.
  ArgChecker& Apart(const char* to_name, const void* to, int64_t to_bytes, const char* from_name,
                    const void* from, int64_t from_bytes) {
    const auto end = [](const void* begin, int64_t bytes) -> const void* {
      return static_cast<const std::byte*>(begin) + bytes;
    };
    const std::less<const void*> less;
    if (status_.ok() && less(to, end(from, from_bytes)) && less(from, end(to, to_bytes))) {
      Fail(absl::StrCat(to_name, " overlaps ", from_name, ", must be apart"));
    }
    return *this;
  }
  ArgChecker& Require(bool holds, const char* name, const std::string& value, const char* wanted) {
    if (status_.ok() && !holds) Fail(absl::StrCat(name, " is ", value, ", must be ", wanted));
    return *this;
  }
  absl::Status status() const { return status_; }

 private:
  static std::string NameOf(DType dtype) { return std::string(Name(dtype)); }
  void Fail(const std::string& what) {
    status_ = absl::InvalidArgumentError(absl::StrCat(op_, ": ", what));
  }
  const char* op_;
  absl::Status status_;
};

}  // namespace infllm::kernels
