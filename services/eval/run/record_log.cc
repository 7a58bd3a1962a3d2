#include "services/eval/run/record_log.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "worker/model/json_depth.h"

namespace infllm::services {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr int kManifestVersion = 2;

absl::Status FileError(const std::string& what, const std::string& path, int error) {
  return absl::UnavailableError(
      absl::StrCat("cannot ", what, " ", path, ": ", std::strerror(error)));
}

// nullopt if there is no such file.
absl::StatusOr<std::optional<std::string>> ReadIfThere(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    if (errno == ENOENT) return std::optional<std::string>();
    return FileError("read", path, errno);
  }
  return std::optional<std::string>(std::in_place, std::istreambuf_iterator<char>(file),
                                    std::istreambuf_iterator<char>());
}

std::string ToJson(const Manifest& manifest) {
  const Json json = {{"version", kManifestVersion},
                     {"settings", manifest.settings},
                     {"configurations", manifest.configurations}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

absl::StatusOr<Settings> ParseSettings(const Json& json, const std::string& path) {
  Settings settings;
  for (const auto& [name, value] : json.items()) {
    if (!value.is_string()) {
      return absl::DataLossError(absl::StrCat(path, ": \"", name, "\" is not a string"));
    }
    settings[name] = value.get<std::string>();
  }
  return settings;
}

absl::StatusOr<Manifest> ParseManifest(const std::string& text, const std::string& path) {
  if (const absl::Status depth = worker::CheckJsonDepth(text); !depth.ok()) {
    return absl::DataLossError(absl::StrCat(path, ": ", depth.message()));
  }
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto object = [&](const char* name) {
    return json.is_object() && json.contains(name) && json[name].is_object();
  };
  if (!object("settings") || !object("configurations")) {
    return absl::DataLossError(absl::StrCat(path, " is not the manifest of an evaluation"));
  }
  if (json.value("version", Json()) != kManifestVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " is of another version of this program; use another --out"));
  }
  Manifest manifest;
  INFLLM_ASSIGN_OR_RETURN(manifest.settings, ParseSettings(json["settings"], path));
  for (const auto& [name, settings] : json["configurations"].items()) {
    INFLLM_ASSIGN_OR_RETURN(manifest.configurations[name], ParseSettings(settings, path));
  }
  return manifest;
}

absl::Status CheckSame(const Settings& before, const Settings& now, const std::string& directory,
                       const std::string& whose) {
  for (const auto& [name, value] : now) {
    const auto old = before.find(name);
    if (old == before.end() || old->second == value) continue;
    const auto show = [](const std::string& text) { return text.empty() ? "not set" : text; };
    return absl::FailedPreconditionError(
        absl::StrCat(directory, " holds results with ", name, " ", show(old->second), whose,
                     ", now it is ", show(value), ": use another --out, or remove that directory"));
  }
  return absl::OkStatus();
}

// Lines up to the last newline; what comes after it was cut short.
std::string_view WholeLines(std::string_view text) {
  const size_t end = text.rfind('\n');
  return text.substr(0, end == std::string_view::npos ? 0 : end + 1);
}

class FileRecordLog final : public RecordLog {
 public:
  explicit FileRecordLog(std::string path) : path_(std::move(path)) {}
  ~FileRecordLog() override {
    if (fd_ >= 0) ::close(fd_);
  }

  absl::Status Lock() {
    fd_ = ::open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (fd_ < 0) return FileError("write", path_, errno);
    if (::flock(fd_, LOCK_EX | LOCK_NB) == 0) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat(path_,
                     ": another process is writing to it; wait for its end or use another "
                     "--out"));
  }

  absl::Status Load() {
    INFLLM_ASSIGN_OR_RETURN(const std::optional<std::string> file, ReadIfThere(path_));
    const std::string text = file.value_or("");
    const std::string_view lines = WholeLines(text);
    absl::StatusOr<Records> records = ParseRecords(lines);
    if (!records.ok()) {
      return absl::Status(records.status().code(),
                          absl::StrCat(path_, ": ", records.status().message()));
    }
    records_ = *std::move(records);
    if (::ftruncate(fd_, static_cast<off_t>(lines.size())) != 0) {
      return FileError("cut", path_, errno);
    }
    return absl::OkStatus();
  }

  const Records& records() const override { return records_; }
  absl::Status Add(const AnswerRecord& record) override { return Add(record, records_.answers); }
  absl::Status Add(const PerplexityRecord& record) override {
    return Add(record, records_.perplexities);
  }
  absl::Status Add(const IngestRecord& record) override { return Add(record, records_.ingests); }
  absl::Status Add(const SkipRecord& record) override { return Add(record, records_.skips); }

 private:
  template <typename Record>
  absl::Status Add(const Record& record, std::vector<Record>& kept) {
    const std::string line = ToJsonLine(record) + "\n";
    for (size_t done = 0; done < line.size();) {
      const ssize_t written = ::write(fd_, line.data() + done, line.size() - done);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return FileError("write", path_, errno);
      done += static_cast<size_t>(written);
    }
    kept.push_back(record);
    return absl::OkStatus();
  }

  const std::string path_;
  int fd_ = -1;
  Records records_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RecordLog>> RecordLog::Open(const std::string& directory,
                                                           const Manifest& manifest) {
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) return FileError("make the directory", directory, error.value());
  auto log = std::make_unique<FileRecordLog>(directory + "/records.jsonl");
  INFLLM_RETURN_IF_ERROR(log->Lock());
  const std::string manifest_path = directory + "/manifest.json";
  INFLLM_ASSIGN_OR_RETURN(const std::optional<std::string> before, ReadIfThere(manifest_path));
  INFLLM_RETURN_IF_ERROR(log->Load());
  const Records& records = log->records();
  const bool empty = records.answers.empty() && records.skips.empty() &&
                     records.perplexities.empty() && records.ingests.empty();
  Manifest merged = manifest;
  if (before.has_value() && !empty) {  // what has no results binds nobody
    INFLLM_ASSIGN_OR_RETURN(const Manifest old, ParseManifest(*before, manifest_path));
    INFLLM_RETURN_IF_ERROR(CheckSame(old.settings, manifest.settings, directory, ""));
    for (const auto& [name, settings] : old.configurations) {
      const auto now = manifest.configurations.find(name);
      if (now == manifest.configurations.end()) continue;
      INFLLM_RETURN_IF_ERROR(
          CheckSame(settings, now->second, directory, absl::StrCat(" (", name, ")")));
    }
    merged.settings.insert(old.settings.begin(), old.settings.end());
    merged.configurations.insert(old.configurations.begin(), old.configurations.end());
  }
  if (!before.has_value() && !empty) {
    return absl::FailedPreconditionError(
        absl::StrCat(directory,
                     " holds records but no manifest.json, which tells what they were made with: "
                     "use another --out"));
  }
  INFLLM_RETURN_IF_ERROR(WriteFile(manifest_path, ToJson(merged)));
  return log;
}

absl::Status WriteFile(const std::string& path, const std::string& bytes) {
  const std::string fresh = path + ".new";
  {
    std::ofstream file(fresh, std::ios::binary | std::ios::trunc);
    file << bytes;
    file.close();
    if (!file) return FileError("write", fresh, errno);
  }
  std::error_code error;
  fs::rename(fresh, path, error);
  if (error) return FileError("write", path, error.value());
  return absl::OkStatus();
}

}  // namespace infllm::services
