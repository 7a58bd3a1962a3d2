// Packed weights and their products on the CPU: which part of a product runs where. The arithmetic
// is in gemm_simd.cc and gemm_amx.cc. Arguments have been validated by the caller.
#pragma once

#include <cstdint>
#include <mutex>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/core/dtype.h"
#include "kernels/core/thread_pool.h"
#include "kernels/cpu/isa.h"

namespace infllm::kernels {

struct GemmFormat;
struct GemmKernels;

// Thread-safe; products run one after the other.
class CpuLinear {
 public:
  CpuLinear(ThreadPool& pool, Isa isa);

  // bf16 weights are multiplied as bf16 where the instruction set can (Avx512Bf16, Amx),
  // activations being rounded too; elsewhere the rounded weights are kept and multiplied as floats.
  bool has_bf16() const;
  absl::StatusOr<Weight> Pack(std::span<const WeightSource> sources, int64_t in_features,
                              DType compute);
  // INVALID_ARGUMENT: the weight was packed by another kind of backend or instruction set.
  absl::Status Multiply(const LinearArgs& args);

 private:
  absl::StatusOr<float*> Scratch(int64_t floats);
  // PackedWeight::layout of a format of this instruction set.
  uint64_t LayoutOf(const GemmFormat& format) const;

  ThreadPool& pool_;
  const Isa isa_;
  const GemmKernels& kernels_;
  std::mutex mutex_;
  Buffer packed_x_;  // grows to the largest product seen
};

}  // namespace infllm::kernels
