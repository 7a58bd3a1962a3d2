// The way to an NVIDIA GPU: a plugin opened at run time, so that this program starts without a
// driver, without CUDA libraries and without the plugin itself.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace infllm::kernels {

// libinfllm_cuda.so in the directory of the running executable.
std::string CudaPluginPath();

// Opens the plugin and the first visible GPU (CUDA_VISIBLE_DEVICES chooses among several).
//   UNAVAILABLE  the message says which: no plugin file at the path, one that cannot be loaded or
//                is of another build, no NVIDIA driver (or too old), no device (or too old).
//
// So far the backend has its memory, streams and events, and RmsNorm in kF32. Every other operation
// returns UNIMPLEMENTED with its name, so no model runs on it yet.
absl::StatusOr<std::unique_ptr<Backend>> NewCudaBackend(
    const std::string& plugin_path = CudaPluginPath());

}  // namespace infllm::kernels
