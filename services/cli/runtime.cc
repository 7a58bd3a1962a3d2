#include "services/cli/runtime.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "kernels/cuda_loader.h"
#include "services/common/byte_size.h"
#include "services/common/store_factory.h"
#include "services/common/xz.h"
#include "worker/model/read_file.h"

namespace infllm::services {
namespace {

// Far more than anybody waits for: a device or a wrong file must not fill the memory.
constexpr int64_t kMaxTextBytes = kMaxUnpackedBytes;

absl::StatusOr<std::unique_ptr<kernels::Backend>> MakeBackend(const RuntimeFlags& flags,
                                                              kernels::ThreadPool& pool) {
  if (flags.device == "cuda") {
    INFLLM_ASSIGN_OR_RETURN(const std::unique_ptr<kernels::Backend> cuda,
                            kernels::NewCudaBackend());
    return absl::UnimplementedError(
        "--device cuda: the CUDA plugin has no attention and matrix kernels yet; use --device cpu");
  }
  return kernels::NewCpuBackend(pool);
}

kernels::DType ChooseDType(const RuntimeFlags& flags, const kernels::Backend& backend) {
  return kernels::ParseDType(flags.dtype).value_or(backend.preferred_dtype());
}

// The block cache pins the store's own bytes when the store is in this process, once for the text
// and once for the question that is being answered.
absl::Status CheckRamHoldsBlockCache(int64_t ram_bytes, const worker::ModelConfig& model,
                                     const worker::AttentionOptions& attention,
                                     kernels::DType dtype) {
  const int64_t record_bytes = 2 * model.kv_heads * attention.block_tokens * model.head_dim *
                               static_cast<int64_t>(SizeOf(dtype));
  const int64_t pinned = 2 * attention.cache_blocks * model.layers * record_bytes;
  if (ram_bytes >= pinned) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--ram-bytes is ", FormatByteSize(ram_bytes), ", but the block cache may hold ",
                   FormatByteSize(pinned), " of it (2 x cache-blocks ", attention.cache_blocks,
                   " x ", model.layers, " layers x ", FormatByteSize(record_bytes),
                   "): raise --ram-bytes or lower --cache-blocks"));
}

absl::Status CheckAttention(const RuntimeFlags& flags, const worker::ModelConfig& model,
                            kernels::DType dtype) {
  INFLLM_ASSIGN_OR_RETURN(const int64_t ram_bytes, ParseByteSize(flags.ram_bytes));
  const worker::AttentionOptions attention = ResolveAttention(flags);
  INFLLM_RETURN_IF_ERROR(attention.Validate(model));
  if (attention.policy != worker::PolicyKind::kInfLlm || !flags.memstore.empty()) {
    return absl::OkStatus();
  }
  return CheckRamHoldsBlockCache(ram_bytes, model, attention, dtype);
}

absl::Status TooLarge(const std::string& path) {
  return absl::InvalidArgumentError(absl::StrCat(path, " is larger than the ",
                                                 FormatByteSize(kMaxTextBytes),
                                                 " that a text may have: give a part of it"));
}

// What a file descriptor gives up to its end.
absl::StatusOr<std::string> ReadAll(int fd, const std::string& path) {
  constexpr size_t kStepBytes = size_t{1} << 16;
  std::string bytes;
  for (;;) {
    const size_t filled = bytes.size();
    bytes.resize(filled + kStepBytes);
    const ssize_t count = ::read(fd, bytes.data() + filled, kStepBytes);
    if (count < 0 && errno != EINTR) {
      return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path));
    }
    bytes.resize(filled + static_cast<size_t>(std::max<ssize_t>(count, 0)));
    if (count == 0) return bytes;
    if (static_cast<int64_t>(bytes.size()) > kMaxTextBytes) return TooLarge(path);
  }
}

absl::StatusOr<std::string> ReadPath(const std::string& path) {
  const worker::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat info {};
  if (fd.get() < 0 || ::fstat(fd.get(), &info) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path));
  }
  if (S_ISDIR(info.st_mode) || S_ISBLK(info.st_mode) ||
      (S_ISCHR(info.st_mode) && ::isatty(fd.get()) == 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, S_ISDIR(info.st_mode) ? " is a directory" : " is a device", ", not a text file"));
  }
  if (info.st_size > kMaxTextBytes) return TooLarge(path);
  return ReadAll(fd.get(), path);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ModelRuntime>> ModelRuntime::Load(
    const RuntimeFlags& flags, std::span<const RuntimeFlags> attentions) {
  const auto start = std::chrono::steady_clock::now();
  auto runtime = std::make_unique<ModelRuntime>();
  runtime->pool = std::make_unique<kernels::ThreadPool>(flags.threads);
  INFLLM_ASSIGN_OR_RETURN(runtime->backend, MakeBackend(flags, *runtime->pool));
  runtime->dtype = ChooseDType(flags, *runtime->backend);
  // Cheap checks first: a typo should not cost the loading of the weights.
  INFLLM_ASSIGN_OR_RETURN(const worker::ModelConfig config, worker::LoadModelConfig(flags.model));
  for (const RuntimeFlags& attention : attentions) {
    INFLLM_RETURN_IF_ERROR(CheckAttention(attention, config, runtime->dtype));
  }
  INFLLM_ASSIGN_OR_RETURN(runtime->model,
                          worker::LoadModel(flags.model, *runtime->backend, runtime->dtype));
  runtime->transformer = std::make_unique<worker::Transformer>(
      runtime->model->config, *runtime->model->weights, *runtime->backend);
  runtime->load_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return runtime;
}

absl::StatusOr<AttentionRuntime> NewAttention(ModelRuntime& model, const RuntimeFlags& flags) {
  INFLLM_RETURN_IF_ERROR(CheckAttention(flags, model.model->config, model.dtype));
  const worker::AttentionOptions options = ResolveAttention(flags);
  AttentionRuntime attention;
  if (options.policy == worker::PolicyKind::kInfLlm) {
    INFLLM_ASSIGN_OR_RETURN(const int64_t ram_bytes, ParseByteSize(flags.ram_bytes));
    INFLLM_ASSIGN_OR_RETURN(attention.store, OpenStore({.memstore_target = flags.memstore,
                                                        .ram_bytes = ram_bytes,
                                                        .cold_dir = flags.cold_dir},
                                                       *model.backend));
  }
  INFLLM_ASSIGN_OR_RETURN(
      attention.policy,
      worker::NewAttentionPolicy(model.model->config, options, model.dtype,
                                 model.model->fingerprint, *model.backend, attention.store.get()));
  return attention;
}

absl::StatusOr<std::unique_ptr<Runtime>> Runtime::Make(const RuntimeFlags& flags) {
  INFLLM_ASSIGN_OR_RETURN(const std::unique_ptr<ModelRuntime> model,
                          ModelRuntime::Load(flags, {&flags, 1}));
  auto runtime = std::make_unique<Runtime>();
  static_cast<ModelRuntime&>(*runtime) = std::move(*model);
  INFLLM_ASSIGN_OR_RETURN(runtime->attention, NewAttention(*runtime, flags));
  return runtime;
}

absl::Status RequireTokenizer(const worker::LoadedModel& model, const std::string& directory) {
  if (model.tokenizer != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(directory,
                   " has no tokenizer.model, which this command needs; token ids can be "
                   "scored with `infllm score --token-ids`"));
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  INFLLM_ASSIGN_OR_RETURN(std::string text,
                          path == "-" ? ReadAll(STDIN_FILENO, "stdin") : ReadPath(path));
  if (IsXz(text)) {
    absl::StatusOr<std::string> unpacked = UnpackXz(text);
    if (!unpacked.ok()) {
      return absl::Status(unpacked.status().code(),
                          absl::StrCat(path, ": ", unpacked.status().message()));
    }
    text = *std::move(unpacked);
  }
  if (text.empty()) return absl::InvalidArgumentError(absl::StrCat(path, " is empty"));
  return text;
}

}  // namespace infllm::services
