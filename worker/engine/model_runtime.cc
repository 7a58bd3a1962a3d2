#include "worker/engine/model_runtime.h"

#include <chrono>

#include "kernels/core/status_macros.h"

namespace infllm::worker {
absl::StatusOr<std::unique_ptr<ModelRuntime>> ModelRuntime::Load(
    const ModelOptions& options,
    absl::FunctionRef<absl::Status(const ModelConfig&, kernels::DType)> check) {
  const auto start = std::chrono::steady_clock::now();
  auto runtime = std::make_unique<ModelRuntime>();
  runtime->pool = std::make_unique<kernels::ThreadPool>(options.threads);
  INFLLM_ASSIGN_OR_RETURN(runtime->backend, kernels::OpenBackend(options.device, *runtime->pool));
  runtime->dtype = options.dtype.value_or(runtime->backend->preferred_dtype());
  INFLLM_ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(options.directory));
  INFLLM_RETURN_IF_ERROR(check(config, runtime->dtype));
  INFLLM_ASSIGN_OR_RETURN(runtime->model,
                          LoadModel(options.directory, *runtime->backend, runtime->dtype));
  runtime->load_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return runtime;
}

}  // namespace infllm::worker
