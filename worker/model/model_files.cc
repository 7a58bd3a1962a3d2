#include <sys/mman.h>
#include <sys/stat.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/core/status_macros.h"
#include "worker/model/json_depth.h"
#include "worker/model/quote.h"
#include "worker/model/read_file.h"
#include "worker/model/safetensors.h"

namespace infllm::worker {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr size_t kMaxIndexBytes = 64 << 20;
constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";

// Hashing lets go of what it has read, lest the whole model counts as this process's memory.
constexpr size_t kHashChunkBytes = 64 << 20;

std::string ShapeText(std::span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// A file's bytes, read-only, for the life of the object.
class MappedFile {
 public:
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path) {
    INFLLM_ASSIGN_OR_RETURN(UniqueFd fd, OpenRegularFile(path));
    struct stat info;
    if (::fstat(fd.get(), &info) != 0) {
      return absl::ErrnoToStatus(errno, absl::StrCat("cannot stat ", path));
    }
    const size_t size = static_cast<size_t>(info.st_size);
    void* base = nullptr;
    if (size != 0) {  // mmap refuses nothing at all
      base = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd.get(), 0);
      if (base == MAP_FAILED) return absl::ErrnoToStatus(errno, absl::StrCat("cannot map ", path));
    }
    return std::unique_ptr<MappedFile>(new MappedFile(path, std::move(fd), base, size));
  }
  ~MappedFile() {
    if (base_ != nullptr) ::munmap(base_, size_);
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {static_cast<std::byte*>(base_), size_}; }

  // INVALID_ARGUMENT: reading the mapping could end the process with SIGBUS.
  absl::Status CheckSize() const {
    struct stat info;
    if (::fstat(fd_.get(), &info) != 0) {
      return absl::ErrnoToStatus(errno, absl::StrCat("cannot stat ", path_));
    }
    if (static_cast<size_t>(info.st_size) == size_) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(path_, " had ", size_,
                                                   " bytes when it was opened, and has ",
                                                   info.st_size, " now; load the model again"));
  }

  // Advice only: nothing depends on whether the system takes it. The file cache is left alone
  // (no POSIX_FADV_DONTNEED), so that the next start does not wait for the disk.
  void DropPages() const {
    if (base_ != nullptr) ::madvise(base_, size_, MADV_DONTNEED);
  }

 private:
  MappedFile(std::string path, UniqueFd fd, void* base, size_t size)
      : path_(std::move(path)), fd_(std::move(fd)), base_(base), size_(size) {}

  const std::string path_;
  const UniqueFd fd_;
  void* const base_;
  const size_t size_;
};

// Tensors of any number of files under one name space.
class MappedModel : public ModelFiles {
 public:
  // Maps DIR/file_name and returns the names of its tensors, which must be new to this model.
  absl::StatusOr<std::vector<std::string>> Add(const std::string& path) {
    INFLLM_ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> file, MappedFile::Open(path));
    absl::StatusOr<std::map<std::string, TensorView>> parsed = ParseSafetensors(file->bytes());
    if (!parsed.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": ", parsed.status().message()));
    }
    std::vector<std::string> added;
    for (auto& [name, view] : *parsed) {
      total_bytes_ += static_cast<int64_t>(view.data.size());
      const auto [it, is_new] = tensors_.try_emplace(name, Located{std::move(view), file.get()});
      if (!is_new) {
        return absl::InvalidArgumentError(absl::StrCat("tensor ", Quote(name), " is both in ",
                                                       it->second.file->path(), " and in ", path));
      }
      added.push_back(name);
    }
    file->DropPages();  // the header's
    files_.push_back(std::move(file));
    return added;
  }

  absl::StatusOr<TensorView> Get(std::string_view name,
                                 std::span<const int64_t> shape) const override {
    const auto it = tensors_.find(name);
    if (it == tensors_.end()) {
      return absl::NotFoundError(absl::StrCat("the model has no tensor ", Quote(name)));
    }
    const auto& [view, file] = it->second;
    if (!std::equal(shape.begin(), shape.end(), view.shape.begin(), view.shape.end())) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Quote(name), " of ", file->path(),
                                                     " has shape ", ShapeText(view.shape),
                                                     " instead of ", ShapeText(shape)));
    }
    INFLLM_RETURN_IF_ERROR(file->CheckSize());
    return view;
  }

  bool Has(std::string_view name) const override { return tensors_.contains(name); }

  std::vector<std::string> names() const override {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : tensors_) names.push_back(name);
    return names;
  }

  int64_t total_bytes() const override { return total_bytes_; }

  memstore::Fingerprint fingerprint() const override {
    std::call_once(fingerprint_once_, [this] { fingerprint_ = ComputeFingerprint(); });
    return fingerprint_;
  }

  void DropPages() const override {
    for (const auto& file : files_) file->DropPages();
  }

 private:
  struct Located {
    TensorView view;
    const MappedFile* file;
  };

  memstore::Fingerprint ComputeFingerprint() const {
    XXH3_state_t* state = XXH3_createState();
    INFLLM_CHECK(state != nullptr && XXH3_128bits_reset(state) == XXH_OK);
    // Lengths go first, so that no two models run together into the same bytes.
    const auto add_int = [state](uint64_t value) { XXH3_128bits_update(state, &value, 8); };
    size_t since_drop = 0;
    for (const auto& [name, tensor] : tensors_) {
      add_int(name.size());
      XXH3_128bits_update(state, name.data(), name.size());
      add_int(static_cast<uint64_t>(tensor.view.dtype));
      add_int(tensor.view.shape.size());
      for (const int64_t dim : tensor.view.shape) add_int(static_cast<uint64_t>(dim));
      std::span<const std::byte> rest = tensor.view.data;
      while (!rest.empty()) {
        const std::span<const std::byte> chunk = rest.first(std::min(rest.size(), kHashChunkBytes));
        XXH3_128bits_update(state, chunk.data(), chunk.size());
        rest = rest.subspan(chunk.size());
        since_drop += chunk.size();
        if (since_drop >= kHashChunkBytes) {
          DropPages();
          since_drop = 0;
        }
      }
    }
    const XXH128_hash_t hash = XXH3_128bits_digest(state);
    XXH3_freeState(state);
    return {.hi = hash.high64, .lo = hash.low64};
  }

  std::vector<std::unique_ptr<MappedFile>> files_;
  std::map<std::string, Located, std::less<>> tensors_;
  int64_t total_bytes_ = 0;
  mutable std::once_flag fingerprint_once_;
  mutable memstore::Fingerprint fingerprint_;
};

absl::StatusOr<std::unique_ptr<ModelFiles>> OpenSingle(const std::string& path) {
  auto model = std::make_unique<MappedModel>();
  INFLLM_RETURN_IF_ERROR(model->Add(path).status());
  return model;
}

absl::StatusOr<std::unique_ptr<ModelFiles>> OpenSharded(const std::string& directory) {
  const std::string index_path = absl::StrCat(directory, "/", kIndexFile);
  INFLLM_ASSIGN_OR_RETURN(const std::string text, ReadFile(index_path, kMaxIndexBytes));
  absl::StatusOr<std::map<std::string, std::string>> index = ParseShardIndex(text);
  if (!index.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(index_path, ": ", index.status().message()));
  }
  std::set<std::string> shards;
  for (const auto& [name, shard] : *index) shards.insert(shard);
  auto model = std::make_unique<MappedModel>();
  for (const std::string& shard : shards) {
    const std::string path = absl::StrCat(directory, "/", shard);
    absl::StatusOr<std::vector<std::string>> names = model->Add(path);
    if (absl::IsNotFound(names.status())) {
      return absl::NotFoundError(
          absl::StrCat(path, " is missing, but ", kIndexFile, " names it: download it again"));
    }
    INFLLM_RETURN_IF_ERROR(names.status());
    for (const std::string& name : *names) {
      const auto it = index->find(name);
      if (it == index->end() || it->second != shard) {
        return absl::InvalidArgumentError(
            absl::StrCat("tensor ", Quote(name), " is in ", path, ", but ", kIndexFile,
                         it == index->end() ? " does not list it"
                                            : absl::StrCat(" says it is in ", Quote(it->second))));
      }
    }
  }
  for (const auto& [name, shard] : *index) {
    if (!model->Has(name)) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Quote(name), " is not in ",
                                                     directory, "/", shard, ", though ", kIndexFile,
                                                     " says so"));
    }
  }
  return model;
}

}  // namespace

absl::StatusOr<std::map<std::string, std::string>> ParseShardIndex(std::string_view json) {
  INFLLM_RETURN_IF_ERROR(CheckJsonDepth(json));
  // The parser keeps the last of duplicate keys; which of two shards is meant is not ours to say.
  std::set<std::string> keys;
  std::string section, duplicate;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& key) {
    if (event != Json::parse_event_t::key || depth > 2) return true;
    const std::string& name = key.get_ref<const std::string&>();
    if (depth == 1) section = name;
    if (!keys.insert(absl::StrCat(depth == 1 ? "" : section, "\n", name)).second) duplicate = name;
    return true;
  };
  Json index;
  try {
    index = Json::parse(json.begin(), json.end(), watch);
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("not valid JSON: ", Escape(error.what(), 300)));
  }
  if (!duplicate.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(Quote(duplicate), " occurs twice"));
  }
  const Json* map =
      index.is_object() && index.contains("weight_map") ? &index["weight_map"] : nullptr;
  if (map == nullptr || !map->is_object() || map->empty()) {
    return absl::InvalidArgumentError("there is no weight_map, an object of tensor and file names");
  }
  std::map<std::string, std::string> shards;
  for (const auto& [name, value] : map->items()) {
    if (!value.is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat("weight_map[", Quote(name), "] is not the name of a file"));
    }
    const std::string& shard = value.get_ref<const std::string&>();
    if (!shard.ends_with(".safetensors") ||
        shard.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("weight_map[", Quote(name), "] is ", Quote(shard),
                       ", but must be the plain name of a .safetensors file beside the index"));
    }
    shards[name] = shard;
  }
  return shards;
}

absl::StatusOr<std::unique_ptr<ModelFiles>> ModelFiles::Open(const std::string& directory) {
  std::error_code error;
  const fs::file_status status = fs::status(directory, error);
  if (status.type() == fs::file_type::not_found) {
    return absl::NotFoundError(absl::StrCat(directory, " does not exist"));
  }
  if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat("cannot look at ", directory));
  if (!fs::is_directory(status)) {
    return absl::InvalidArgumentError(absl::StrCat(
        directory, " is not a directory; a model is one with config.json and *.safetensors"));
  }
  std::vector<std::string> names;
  fs::directory_iterator entries(directory, error);
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    std::string name = entries->path().filename().string();
    if (name.ends_with(".safetensors") || name == kIndexFile) names.push_back(std::move(name));
  }
  if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat("cannot list ", directory));
  std::sort(names.begin(), names.end());

  if (std::find(names.begin(), names.end(), kSingleFile) != names.end()) {
    return OpenSingle(absl::StrCat(directory, "/", kSingleFile));
  }
  if (std::find(names.begin(), names.end(), kIndexFile) != names.end()) {
    return OpenSharded(directory);
  }
  if (names.size() == 1) return OpenSingle(absl::StrCat(directory, "/", names[0]));
  if (names.empty()) {
    return absl::NotFoundError(absl::StrCat(directory,
                                            " has no *.safetensors file; other formats (such as "
                                            "pytorch_model.bin) must be converted first"));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      directory, " has ", names.size(), " *.safetensors files, but neither ", kSingleFile,
      " nor the index ", kIndexFile, " that says which of them are the model"));
}

}  // namespace infllm::worker
