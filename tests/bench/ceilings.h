// What this machine can do at best, measured in the same run as what we make of it.
#pragma once

#include "absl/functional/function_ref.h"
#include "kernels/core/thread_pool.h"
#include "kernels/cpu/isa.h"

namespace infllm::bench {

// Fp32 multiply-adds (2 flops each) per second of all threads of the pool, from registers, with the
// vectors of `isa`. The best of several tries. Measured once per instruction set and thread count.
double FmaPeakFlops(kernels::ThreadPool& pool, kernels::Isa isa);

// The same of bf16 products (vdpbf16ps, or tdpbf16ps with AMX); 0 where `isa` has none.
double Bf16PeakFlops(kernels::ThreadPool& pool, kernels::Isa isa);

// Bytes per second that all threads of the pool read from memory that is in no cache. Measured once
// per thread count.
double ReadBandwidth(kernels::ThreadPool& pool);
// Measured now, the best of so many tries: other tenants may take half of it at one time and none
// at another.
double ReadBandwidthNow(kernels::ThreadPool& pool, int tries, absl::FunctionRef<double()> clock);

}  // namespace infllm::bench
