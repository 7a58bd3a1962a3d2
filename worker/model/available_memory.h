#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace infllm::worker {

// Bytes that this process can still allocate before the system swaps or kills it: the smallest of
// MemAvailable and of the room in each memory cgroup around the process (v1 or v2; page cache
// counts as room). nullopt if the system does not tell. The arguments are there for tests.
std::optional<int64_t> AvailableMemoryBytes(const std::string& proc = "/proc",
                                            const std::string& cgroup = "/sys/fs/cgroup");

}  // namespace infllm::worker
