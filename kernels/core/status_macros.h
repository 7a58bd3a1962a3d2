// The Abseil of Debian 12 has Status and StatusOr but not the macros that make them readable.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define INFLLM_CONCAT_INNER(a, b) a##b
#define INFLLM_CONCAT(a, b) INFLLM_CONCAT_INNER(a, b)

// Returns the status of `expr` from the enclosing function unless it is OK.
#define INFLLM_RETURN_IF_ERROR(expr)                                \
  do {                                                              \
    if (absl::Status infllm_status = (expr); !infllm_status.ok()) { \
      return infllm_status;                                         \
    }                                                               \
  } while (false)

// `INFLLM_ASSIGN_OR_RETURN(auto x, F());` declares x or returns F's error.
#define INFLLM_ASSIGN_OR_RETURN(lhs, expr) \
  INFLLM_ASSIGN_OR_RETURN_IMPL(INFLLM_CONCAT(infllm_statusor_, __LINE__), lhs, expr)
#define INFLLM_ASSIGN_OR_RETURN_IMPL(statusor, lhs, expr)  \
  auto statusor = (expr);                                  \
  if (!statusor.ok()) return std::move(statusor).status(); \
  lhs = std::move(statusor).value()

// For broken invariants of our own code only; whatever input can cause is a Status.
#define INFLLM_CHECK(condition)                                                          \
  do {                                                                                   \
    if (!(condition)) [[unlikely]] {                                                     \
      std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                      \
    }                                                                                    \
  } while (false)
