#include "services/runtime/runtime.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <iostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "memstore/ram_tier.h"
#include "services/common/byte_size.h"
#include "services/common/progress.h"
#include "services/common/store_factory.h"
#include "services/common/xz.h"
#include "worker/model/read_file.h"

namespace infllm::services {
namespace {

// Far more than anybody waits for: a device or a wrong file must not fill the memory.
constexpr int64_t kMaxTextBytes = kMaxUnpackedBytes;

// Enough for any test or document; many more only wait for each other.
constexpr int64_t kMostSequences = 32;

// What a sequence pins of the store's RAM when the store is in this process.
int64_t PinnedBytes(const worker::ModelConfig& model, const worker::AttentionOptions& attention,
                    kernels::DType dtype) {
  if (attention.top_k == 0) return 0;
  const int64_t payload = 2 * model.kv_heads * attention.block_tokens * model.head_dim *
                          static_cast<int64_t>(SizeOf(dtype));
  return attention.cache_blocks * model.layers *
         memstore::RamTier::SlotBytes(static_cast<size_t>(payload));
}

// Of two sequences: a text that has been read, and the question that is being answered.
absl::Status CheckRamHoldsBlockCache(int64_t ram_bytes, const worker::ModelConfig& model,
                                     const worker::AttentionOptions& attention,
                                     kernels::DType dtype) {
  const int64_t pinned = 2 * PinnedBytes(model, attention, dtype);
  if (ram_bytes >= pinned) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "--ram-bytes is ", FormatByteSize(ram_bytes), ", but the block caches of two sequences may ",
      "hold ", FormatByteSize(pinned), " of it (2 x cache-blocks ", attention.cache_blocks, " x ",
      model.layers, " layers x ",
      FormatByteSize(pinned / (2 * attention.cache_blocks * model.layers)),
      "): raise --ram-bytes or lower --cache-blocks"));
}

// 0 if the engine is to choose.
absl::StatusOr<int64_t> ParseKvBytes(const RuntimeFlags& flags) {
  if (flags.kv_bytes == "auto") return 0;
  INFLLM_ASSIGN_OR_RETURN(const int64_t bytes, ParseByteSize(flags.kv_bytes));
  if (bytes > 0) return bytes;
  return absl::InvalidArgumentError("--kv-bytes is 0, must be positive, or auto");
}

absl::Status CheckAttention(const RuntimeFlags& flags, const worker::ModelConfig& model,
                            kernels::DType dtype) {
  INFLLM_ASSIGN_OR_RETURN(const int64_t ram_bytes, ParseByteSize(flags.ram_bytes));
  INFLLM_RETURN_IF_ERROR(ParseKvBytes(flags).status());
  const worker::AttentionOptions& attention = flags.attention;
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
      return absl::ErrnoToStatus(errno, absl::StrCat("cannot read \"", path, "\""));
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
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot read \"", path, "\""));
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

absl::StatusOr<std::unique_ptr<worker::ModelRuntime>> LoadModel(
    const RuntimeFlags& flags, std::span<const RuntimeFlags> attentions) {
  return worker::ModelRuntime::Load(
      {.directory = flags.model,
       .device = flags.device,
       .dtype = kernels::ParseDType(flags.dtype),
       .threads = flags.threads},
      [&](const worker::ModelConfig& config, kernels::DType dtype) {
        for (const RuntimeFlags& attention : attentions) {
          INFLLM_RETURN_IF_ERROR(CheckAttention(attention, config, dtype));
        }
        return absl::OkStatus();
      });
}

absl::StatusOr<EngineRuntime> NewEngine(worker::ModelRuntime& model, const RuntimeFlags& flags,
                                        const std::atomic<bool>* cancel) {
  const worker::ModelConfig& config = model.model->config;
  INFLLM_RETURN_IF_ERROR(CheckAttention(flags, config, model.dtype));
  const worker::AttentionOptions& options = flags.attention;
  EngineRuntime runtime{.step_tokens = flags.step_tokens, .max_sequences = kMostSequences};
  if (options.policy == worker::PolicyKind::kInfLlm) {
    INFLLM_ASSIGN_OR_RETURN(const int64_t ram_bytes, ParseByteSize(flags.ram_bytes));
    INFLLM_ASSIGN_OR_RETURN(runtime.store, OpenStore({.memstore_target = flags.memstore,
                                                      .security = flags.security,
                                                      .cancel = cancel,
                                                      .ram_bytes = ram_bytes,
                                                      .data_dir = flags.data_dir},
                                                     *model.backend));
    if (const int64_t pinned = PinnedBytes(config, options, model.dtype);
        flags.memstore.empty() && pinned > 0) {
      // One of them is the text's, another's worth is room to breathe.
      runtime.max_sequences = std::clamp<int64_t>(ram_bytes / pinned - 2, 1, kMostSequences);
    }
  }
  INFLLM_ASSIGN_OR_RETURN(const int64_t kv_bytes, ParseKvBytes(flags));
  INFLLM_ASSIGN_OR_RETURN(
      runtime.engine,
      worker::Engine::New(*model.model, *model.backend, *model.pool, runtime.store.get(),
                          {.attention = options, .kv_dtype = model.dtype, .kv_bytes = kv_bytes}));
  return runtime;
}

absl::StatusOr<std::unique_ptr<Runtime>> Runtime::Make(const RuntimeFlags& flags,
                                                       const std::atomic<bool>* cancel) {
  INFLLM_ASSIGN_OR_RETURN(const std::unique_ptr<worker::ModelRuntime> model,
                          LoadModel(flags, {&flags, 1}));
  auto runtime = std::make_unique<Runtime>();
  static_cast<worker::ModelRuntime&>(*runtime) = std::move(*model);
  INFLLM_ASSIGN_OR_RETURN(static_cast<EngineRuntime&>(*runtime),
                          NewEngine(*runtime, flags, cancel));
  return runtime;
}

absl::StatusOr<worker::Engine::Start> StartFromPrefix(worker::Engine& engine,
                                                      std::span<const int32_t> tokens, bool quiet) {
  INFLLM_ASSIGN_OR_RETURN(worker::Engine::Start start, engine.StartFromPrefix(tokens));
  if (!start.passed_over.ok()) {
    TellReadAnew(start.passed_over);
  } else if (start.cached_tokens > 0 && !quiet) {
    std::cerr << "context \"" << start.context << "\" begins with "
              << WithThousands(start.cached_tokens) << " tokens of it\n";
  }
  return start;
}

void TellReadAnew(const absl::Status& why) {
  std::cerr << "infllm: all is read anew, although a committed context begins alike: "
            << why.message() << "\n";
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
