#include "kernels/backend.h"

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "kernels/cuda_loader.h"

namespace infllm::kernels {

#define INFLLM_DEFINE_OP(Name)                                                              \
  absl::Status Backend::Name(Stream, const Name##Args&) {                                   \
    return absl::UnimplementedError(                                                        \
        absl::StrCat("the ", std::string(name()), " backend has ", "no operation " #Name)); \
  }
INFLLM_KERNEL_OPS(INFLLM_DEFINE_OP)
#undef INFLLM_DEFINE_OP

absl::StatusOr<std::unique_ptr<Backend>> OpenBackend(std::string_view device, ThreadPool& pool) {
  if (device == "cuda") {
    INFLLM_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> cuda, NewCudaBackend());
    return absl::UnimplementedError(
        "--device cuda: the CUDA plugin has no attention and matrix kernels yet; use --device cpu");
  }
  if (device != "cpu" && device != "auto") {
    return absl::InvalidArgumentError(
        absl::StrCat("device is ", std::string(device), ", must be auto, cpu or cuda"));
  }
  return NewCpuBackend(pool);
}

}  // namespace infllm::kernels
