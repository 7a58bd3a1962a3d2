// Device-side helpers that kernels share.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace infllm::kernels::cuda {

inline constexpr int kWarpSize = 32;

// True if `pointer` allows 16-byte loads.
inline bool IsVectorAligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % sizeof(float4) == 0;
}

// The sum over the 32 lanes of a warp, in all of them. All lanes must call it.
__device__ inline float WarpSum(float value) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

// The sum over a group of kThreads threads, in all of them. A group is one warp, or a whole block
// of up to 1024 threads in x, all of which must call it.
template <int kThreads>
__device__ float GroupSum(float value) {
  static_assert(kThreads % kWarpSize == 0 && kThreads <= kWarpSize * kWarpSize);
  value = WarpSum(value);
  if constexpr (kThreads > kWarpSize) {
    constexpr int kWarps = kThreads / kWarpSize;
    __shared__ float partial[kWarps];
    const int lane = threadIdx.x % kWarpSize;
    if (lane == 0) partial[threadIdx.x / kWarpSize] = value;
    __syncthreads();  // every warp reads the partial sums of all warps
    value = WarpSum(lane < kWarps ? partial[lane] : 0.0f);
    __syncthreads();  // the next call overwrites them
  }
  return value;
}

}  // namespace infllm::kernels::cuda
