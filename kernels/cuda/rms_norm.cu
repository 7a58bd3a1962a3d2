#include "kernels/cuda/rms_norm.h"

#include <algorithm>
#include <climits>

#include "kernels/cuda/device.cuh"

namespace infllm::kernels::cuda {
namespace {

// Up to this width a warp per row keeps the GPU busy and needs no barrier.
constexpr int64_t kMaxWarpWidth = 1024;
constexpr int kWarpRowsPerBlock = 8;
constexpr int kBlockThreads = 256;

template <int kVec>
struct Pack;
template <>
struct Pack<1> {
  using Type = float;
};
template <>
struct Pack<4> {
  using Type = float4;
};

__device__ float SumOfSquares(float v) { return v * v; }
__device__ float SumOfSquares(float4 v) { return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; }
__device__ float Scaled(float v, float scale, float weight) { return v * scale * weight; }
__device__ float4 Scaled(float4 v, float scale, float4 weight) {
  return {v.x * scale * weight.x, v.y * scale * weight.y, v.z * scale * weight.z,
          v.w * scale * weight.w};
}

// blockDim is (kGroup, rows per block): a group of kGroup threads walks along one row, kVec floats
// per thread at a time; rows stride over the grid. Bound by memory bandwidth: the row comes from
// DRAM once, its second reading from a cache. Thread i writes only what it alone has read, after
// everyone's first reading, so y may be x.
template <int kGroup, int kVec>
__global__ void __launch_bounds__(kBlockThreads) RmsNormKernel(const RmsNormArgs p) {
  using Vec = typename Pack<kVec>::Type;
  const int64_t packs = p.width / kVec;
  const Vec* weight = reinterpret_cast<const Vec*>(p.weight);
  const int64_t row_step = int64_t{gridDim.x} * blockDim.y;
  for (int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y; row < p.rows;
       row += row_step) {
    const Vec* x = reinterpret_cast<const Vec*>(static_cast<const float*>(p.x) + row * p.width);
    Vec* y = reinterpret_cast<Vec*>(static_cast<float*>(p.y) + row * p.width);
    float squares = 0.0f;
    for (int64_t i = threadIdx.x; i < packs; i += kGroup) squares += SumOfSquares(x[i]);
    const float mean = GroupSum<kGroup>(squares) / static_cast<float>(p.width);
    const float scale = 1.0f / sqrtf(mean + p.eps);
    for (int64_t i = threadIdx.x; i < packs; i += kGroup) y[i] = Scaled(x[i], scale, weight[i]);
  }
}

template <int kGroup, int kVec>
cudaError_t Launch(const RmsNormArgs& args, int rows_per_block, cudaStream_t stream) {
  const int64_t blocks = (args.rows + rows_per_block - 1) / rows_per_block;
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(blocks, INT_MAX)));
  const dim3 block(kGroup, rows_per_block);
  RmsNormKernel<kGroup, kVec><<<grid, block, 0, stream>>>(args);
  return cudaGetLastError();
}

template <int kVec>
cudaError_t LaunchForWidth(const RmsNormArgs& args, cudaStream_t stream) {
  if (args.width <= kMaxWarpWidth) {
    return Launch<kWarpSize, kVec>(args, kWarpRowsPerBlock, stream);
  }
  return Launch<kBlockThreads, kVec>(args, 1, stream);
}

}  // namespace

cudaError_t RmsNorm(const RmsNormArgs& args, cudaStream_t stream) {
  if (args.rows < 0 || args.width < 0) return cudaErrorInvalidValue;
  if (args.rows == 0 || args.width == 0) return cudaSuccess;  // an empty grid is an error
  if (args.x == nullptr || args.weight == nullptr || args.y == nullptr) {
    return cudaErrorInvalidValue;
  }
  const bool vectorised = args.width % 4 == 0 && IsVectorAligned(args.x) &&
                          IsVectorAligned(args.weight) && IsVectorAligned(args.y);
  return vectorised ? LaunchForWidth<4>(args, stream) : LaunchForWidth<1>(args, stream);
}

}  // namespace infllm::kernels::cuda
