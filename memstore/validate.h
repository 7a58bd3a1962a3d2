// What a store refuses before it does anything: INVALID_ARGUMENT names field, value and limit.
#pragma once

#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "memstore/block.h"
#include "memstore/memory_store.h"

namespace infllm::memstore {

absl::Status CheckField(absl::string_view name, int64_t value, int64_t least, int64_t most);

// Zero is nobody's.
absl::Status Validate(const ContextId& id);
// Of a geometry that is valid no size overflows.
absl::Status Validate(const Geometry& geometry);
absl::Status Validate(const ContextOptions& options);
// Of a committed context.
absl::Status ValidateName(std::string_view name);
// Sizes, name and ids of a commit.
absl::Status Validate(const Reusable& reusable, int64_t tokens);  // of a context of so many
absl::Status Validate(const CommitRequest& request);
// What fails the whole call. Each query is checked against the geometry of its context.
absl::Status Validate(const SelectRequest& request);
// REQUIRES: a valid geometry.
absl::Status Validate(const SelectQuery& query, const Geometry& geometry);
// Whole representatives, finite also in the dtype in which they are kept; bounds in their order.
// REQUIRES: a valid geometry.
absl::Status ValidateRepresentatives(std::span<const float> representatives,
                                     const Geometry& geometry);

}  // namespace infllm::memstore
