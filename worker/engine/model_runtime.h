#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/core/thread_pool.h"
#include "worker/engine/loaded_model.h"

namespace infllm::worker {

struct ModelOptions {
  std::string directory;        // a Hugging Face directory
  std::string device = "auto";  // auto, cpu, cuda
  std::optional<kernels::DType>
      dtype;        // of weights, keys and values; the device's own unless given
  int threads = 0;  // 0: ThreadPool::DefaultThreads()
};

// A model in memory, and what computes it: ready for engines.
struct ModelRuntime {
  // `check` sees the model's config before the weights are loaded: a typo in some other option
  // should not cost minutes. Its error is returned.
  //   UNAVAILABLE, UNIMPLEMENTED  the device; otherwise the errors of LoadModel
  static absl::StatusOr<std::unique_ptr<ModelRuntime>> Load(
      const ModelOptions& options,
      absl::FunctionRef<absl::Status(const ModelConfig&, kernels::DType)> check);

  std::unique_ptr<kernels::ThreadPool> pool;
  std::unique_ptr<kernels::Backend> backend;
  std::unique_ptr<LoadedModel> model;
  kernels::DType dtype = kernels::DType::kF32;
  double load_seconds = 0;
};

}  // namespace infllm::worker
