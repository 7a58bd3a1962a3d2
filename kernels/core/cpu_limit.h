#pragma once

#include <optional>
#include <string>

namespace infllm::kernels {

// The CPUs that this process may use at once: its affinity mask, and the CPU quota of its cgroup
// (v1 or v2) or of one above it, whichever is smaller. At least 1.
int AvailableCpus();

// The quota alone, in CPUs; nullopt where there is none. Reads `root`/proc and `root`/sys: tests
// give a made-up tree, everybody else "".
std::optional<double> CgroupCpuQuota(const std::string& root);

}  // namespace infllm::kernels
