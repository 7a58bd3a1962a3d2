// Sizes in bytes as people write them in flags and read them in reports.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace infllm::services {

// A non-negative whole number with an optional unit: "4GiB", "512 MiB", "1048576". Units, in any
// case: B, KiB, MiB, GiB, TiB (powers of 1024), kB, MB, GB, TB (powers of 1000).
//   INVALID_ARGUMENT  anything else; the text shows what is accepted
//   OUT_OF_RANGE      more than int64 holds
absl::StatusOr<int64_t> ParseByteSize(std::string_view text);

// "512 B", "1.5 MiB", "4 GiB": in powers of 1024, with at most one decimal.
std::string FormatByteSize(int64_t bytes);

}  // namespace infllm::services
