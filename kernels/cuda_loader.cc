#include "kernels/cuda_loader.h"

#include <dlfcn.h>

#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "kernels/cuda/plugin_abi.h"
#include "kernels/validate_args.h"

namespace infllm::kernels {
namespace {

absl::Status ToStatus(cuda::Code code, const cuda::Message& why) {
  const std::string text = absl::StrCat("cuda: ", why.text);
  switch (code) {
    case cuda::Code::kOk:
      return absl::OkStatus();
    case cuda::Code::kUnavailable:
      return absl::UnavailableError(text);
    case cuda::Code::kInvalidArgument:
      return absl::InvalidArgumentError(text);
    case cuda::Code::kResourceExhausted:
      return absl::ResourceExhaustedError(text);
    case cuda::Code::kInternal:
      return absl::InternalError(text);
  }
  return absl::InternalError(
      absl::StrCat("cuda: the plugin returned the unknown code ", static_cast<int>(code)));
}

// Calls an entry of the table with `args` and a place for its message.
template <typename Entry, typename... Args>
absl::Status Call(Entry entry, Args... args) {
  cuda::Message why = {};
  const cuda::Code code = entry(args..., &why);
  return ToStatus(code, why);
}

class CudaBackend final : public Backend {
 public:
  CudaBackend(const cuda::PluginTable& plugin, cuda::Device* device)
      : plugin_(plugin), device_(device) {}
  ~CudaBackend() override { plugin_.close(device_); }
  CudaBackend(const CudaBackend&) = delete;
  CudaBackend& operator=(const CudaBackend&) = delete;

  std::string_view name() const override { return "cuda"; }
  bool host_accessible() const override { return false; }
  DType preferred_dtype() const override { return DType::kBF16; }

  absl::StatusOr<Buffer> Allocate(size_t bytes) override {
    void* data = nullptr;
    INFLLM_RETURN_IF_ERROR(Call(plugin_.allocate, device_, bytes, &data));
    return Buffer(data, bytes,
                  [&plugin = plugin_, device = device_](void* p) { plugin.free(device, p); });
  }
  absl::StatusOr<Buffer> AllocateHost(size_t bytes) override {
    void* data = nullptr;
    INFLLM_RETURN_IF_ERROR(Call(plugin_.allocate_host, device_, bytes, &data));
    return Buffer(data, bytes,
                  [&plugin = plugin_, device = device_](void* p) { plugin.free_host(device, p); });
  }

  absl::StatusOr<Stream> NewStream() override {
    Stream stream = kMainStream;
    INFLLM_RETURN_IF_ERROR(Call(plugin_.new_stream, device_, &stream));
    return stream;
  }
  absl::StatusOr<Event> NewEvent() override {
    Event event = {};
    INFLLM_RETURN_IF_ERROR(Call(plugin_.new_event, device_, &event));
    return event;
  }
  absl::Status Record(Stream stream, Event event) override {
    return Call(plugin_.record, device_, stream, event);
  }
  absl::Status Wait(Stream stream, Event event) override {
    return Call(plugin_.wait, device_, stream, event);
  }
  absl::Status Synchronize(Stream stream) override {
    return Call(plugin_.synchronize, device_, stream);
  }

  absl::Status Copy(Stream stream, void* to, const void* from, size_t bytes) override {
    INFLLM_RETURN_IF_ERROR(ValidateCopy(to, from, bytes));
    return Call(plugin_.copy, device_, stream, to, from, bytes);
  }
  absl::Status Zero(Stream stream, void* device, size_t bytes) override {
    INFLLM_RETURN_IF_ERROR(ValidateZero(device, bytes));
    return Call(plugin_.zero, device_, stream, device, bytes);
  }

  absl::StatusOr<Weight> PackWeight(std::span<const WeightSource>, int64_t, DType) override {
    return Missing("PackWeight");
  }

#define INFLLM_FORWARD_OP(Name)                                       \
  absl::Status Name(Stream stream, const Name##Args& args) override { \
    return Run(#Name, plugin_.Name, stream, args);                    \
  }
  INFLLM_KERNEL_OPS(INFLLM_FORWARD_OP)
#undef INFLLM_FORWARD_OP

 private:
  static absl::Status Missing(const char* op) {
    return absl::UnimplementedError(
        absl::StrCat("cuda: ", op, " has no CUDA kernel yet; use the CPU"));
  }
  template <typename Entry, typename Args>
  absl::Status Run(const char* op, Entry entry, Stream stream, const Args& args) {
    if (entry == nullptr) return Missing(op);
    if constexpr (requires { Validate(args); }) INFLLM_RETURN_IF_ERROR(Validate(args));
    return Call(entry, device_, stream, &args);
  }

  const cuda::PluginTable& plugin_;
  cuda::Device* const device_;
};

absl::StatusOr<const cuda::PluginTable*> OpenPlugin(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    return absl::UnavailableError(absl::StrCat("cuda: no plugin file at ", path));
  }
  // Never closed: the CUDA runtime keeps threads and exit handlers that point into it.
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::UnavailableError(absl::StrCat("cuda: cannot load the plugin: ", dlerror()));
  }
  const auto entry = reinterpret_cast<cuda::PluginEntry>(dlsym(library, cuda::kPluginSymbol));
  if (entry == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("cuda: ", path, " is no plugin of this program: it lacks the symbol ",
                     cuda::kPluginSymbol));
  }
  const cuda::PluginTable* table = entry();
  if (table->abi_version != cuda::kPluginAbiVersion) {
    return absl::UnavailableError(absl::StrCat("cuda: the plugin ", path, " has interface version ",
                                               table->abi_version, ", this program needs ",
                                               cuda::kPluginAbiVersion, ": build both together"));
  }
  return table;
}

}  // namespace

std::string CudaPluginPath() {
  std::error_code error;
  const std::filesystem::path executable = std::filesystem::read_symlink("/proc/self/exe", error);
  return (executable.parent_path() / cuda::kPluginFile).string();
}

absl::StatusOr<std::unique_ptr<Backend>> NewCudaBackend(const std::string& plugin_path) {
  INFLLM_ASSIGN_OR_RETURN(const cuda::PluginTable* plugin, OpenPlugin(plugin_path));
  cuda::Device* device = nullptr;
  INFLLM_RETURN_IF_ERROR(Call(plugin->open, &device));
  return std::make_unique<CudaBackend>(*plugin, device);
}

}  // namespace infllm::kernels
