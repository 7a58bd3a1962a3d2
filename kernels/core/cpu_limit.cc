#include "kernels/core/cpu_limit.h"

#include <sched.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <sstream>
#include <thread>

namespace infllm::kernels {
namespace {

std::optional<double> ParseNumber(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// quota / period; nullopt for "max", -1 (no quota) and whatever is not a number.
std::optional<double> Ratio(const std::string& quota, const std::string& period) {
  const std::optional<double> q = ParseNumber(quota), p = ParseNumber(period);
  if (!q || !p || *q <= 0 || *p <= 0) return std::nullopt;
  return *q / *p;
}

// v2: "quota period" in one file.
std::optional<double> QuotaV2(const std::string& folder) {
  std::string quota, period;
  std::ifstream(folder + "/cpu.max") >> quota >> period;
  return Ratio(quota, period);
}

std::optional<double> QuotaV1(const std::string& folder) {
  std::string quota, period;
  std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
  std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  return Ratio(quota, period);
}

bool HasController(const std::string& list, const std::string& name) {
  std::istringstream in(list);
  for (std::string item; std::getline(in, item, ',');) {
    if (item == name) return true;
  }
  return false;
}

// The tightest quota from `path` up to the root of the hierarchy. Inside a container the path may
// be the host's and not exist below `mount`; the root then carries the container's own quota.
template <typename Read>
std::optional<double> Tightest(const std::string& mount, std::string path, Read read) {
  std::optional<double> tightest;
  while (true) {
    if (const std::optional<double> quota = read(mount + path)) {
      tightest = tightest ? std::min(*tightest, *quota) : *quota;
    }
    const size_t slash = path.find_last_of('/');
    if (slash == std::string::npos) return tightest;
    path.resize(slash);
  }
}

}  // namespace

std::optional<double> CgroupCpuQuota(const std::string& root) {
  std::optional<double> tightest;
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "id:controllers:path"
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    std::optional<double> quota;
    if (controllers.empty()) {
      quota = Tightest(root + "/sys/fs/cgroup", path, QuotaV2);
    } else if (HasController(controllers, "cpu")) {
      quota = Tightest(root + "/sys/fs/cgroup/cpu", path, QuotaV1);
    }
    if (quota) tightest = tightest ? std::min(*tightest, *quota) : *quota;
  }
  return tightest;
}

int AvailableCpus() {
  int cpus = static_cast<int>(std::thread::hardware_concurrency());
  cpu_set_t affinity;
  CPU_ZERO(&affinity);
  // Fails on machines with more CPUs than the set has room for: then all of them count.
  if (sched_getaffinity(0, sizeof(affinity), &affinity) == 0) cpus = CPU_COUNT(&affinity);
  // Rounded down: a thread that is throttled while it holds a chunk stops all others.
  if (const std::optional<double> quota = CgroupCpuQuota("")) {
    if (*quota < cpus) cpus = static_cast<int>(*quota);
  }
  return std::max(cpus, 1);
}

}  // namespace infllm::kernels
