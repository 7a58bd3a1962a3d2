// Texts come packed with xz, the books that ship with the project among them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace infllm::services {

// A packed text unpacks to at most this: a small archive must not be able to fill the memory.
inline constexpr int64_t kMaxUnpackedBytes = int64_t{1} << 30;

// Whether the bytes begin as those of an .xz file do.
bool IsXz(std::string_view bytes);

// What the whole of an .xz file holds.
//   DATA_LOSS           the bytes are cut short, damaged or no .xz file
//   RESOURCE_EXHAUSTED  it unpacks to more than `limit` bytes
absl::StatusOr<std::string> UnpackXz(std::string_view packed, int64_t limit = kMaxUnpackedBytes);

}  // namespace infllm::services
