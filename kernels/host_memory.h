#pragma once

#include <cstddef>

#include "absl/status/statusor.h"
#include "kernels/device.h"

namespace infllm::kernels {

// 64-byte aligned host memory. From 4 MiB on it is mapped by itself, aligned to and asking for
// huge pages: a page fault of 4 KiB costs more than reading the page. May be empty.
//   RESOURCE_EXHAUSTED  the machine has no `bytes` left.
absl::StatusOr<Buffer> AllocateHost(size_t bytes);

}  // namespace infllm::kernels
