#include "worker/model/available_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string_view>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace infllm::worker {
namespace {

// The number after `key` in a file of "key value" lines; `key` includes a colon if the file has it.
std::optional<int64_t> ReadValue(const std::string& path, std::string_view key) {
  std::ifstream file(path);
  std::string name;
  int64_t value = 0;
  for (std::string line; std::getline(file, line);) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    if (words.size() >= 2 && words[0] == key && absl::SimpleAtoi(words[1], &value)) return value;
  }
  return std::nullopt;
}

// The number that is all of a file; nullopt for "max".
std::optional<int64_t> ReadNumber(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  int64_t value = 0;
  if (!(file >> word) || !absl::SimpleAtoi(word, &value)) return std::nullopt;
  return value;
}

// File names of one cgroup version.
struct Layout {
  std::string_view limit;
  std::string_view usage;
  std::string_view cache_prefix;  // v1 counts children under total_*
};
constexpr Layout kV1 = {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_"};
constexpr Layout kV2 = {"memory.max", "memory.current", ""};

std::optional<int64_t> RoomInGroup(const std::string& directory, const Layout& layout) {
  const std::optional<int64_t> limit =
      ReadNumber(absl::StrCat(directory, "/", layout.limit.data()));
  const std::optional<int64_t> usage =
      ReadNumber(absl::StrCat(directory, "/", layout.usage.data()));
  if (!limit.has_value() || !usage.has_value()) return std::nullopt;
  int64_t cache = 0;
  for (const char* list : {"inactive_file", "active_file"}) {
    cache += ReadValue(directory + "/memory.stat", absl::StrCat(layout.cache_prefix.data(), list))
                 .value_or(0);
  }
  return std::max<int64_t>(0, *limit - std::max<int64_t>(0, *usage - cache));
}

// The group at `path` and all above it. Inside a container the path may be the host's and not
// exist; the groups that do are those of the mount's root.
int64_t RoomInGroups(const std::string& mount, std::string path, const Layout& layout) {
  int64_t room = std::numeric_limits<int64_t>::max();
  while (true) {
    room = std::min(room, RoomInGroup(mount + path, layout).value_or(room));
    const size_t slash = path.rfind('/');
    if (slash == std::string::npos) return room;
    path.resize(slash);
  }
}

}  // namespace

std::optional<int64_t> AvailableMemoryBytes(const std::string& proc, const std::string& cgroup) {
  const std::optional<int64_t> kib = ReadValue(proc + "/meminfo", "MemAvailable:");
  if (!kib.has_value()) return std::nullopt;
  int64_t available = *kib * 1024;
  // "hierarchy:controllers:path"; version 2 is hierarchy 0 without controllers.
  std::ifstream groups(proc + "/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const std::vector<std::string> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    const std::vector<std::string> controllers = absl::StrSplit(fields[1], ',');
    if (fields[0] == "0" && fields[1].empty()) {
      available = std::min(available, RoomInGroups(cgroup, fields[2], kV2));
    } else if (std::find(controllers.begin(), controllers.end(), "memory") != controllers.end()) {
      available = std::min(available, RoomInGroups(cgroup + "/memory", fields[2], kV1));
    }
  }
  return available;
}

}  // namespace infllm::worker
