#pragma once

#include <cuda_runtime_api.h>

#include "kernels/ops/layer.h"

namespace infllm::kernels::cuda {

// In kF32. Launches on `stream` and returns at once. Any width; widths of a multiple of four with
// 16-byte aligned pointers are fastest. cudaErrorInvalidValue: a negative size or a null pointer.
cudaError_t RmsNorm(const RmsNormArgs& args, cudaStream_t stream);

}  // namespace infllm::kernels::cuda
