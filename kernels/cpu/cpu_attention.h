// Attention of the CPU backend; see kernels/ops/attention.h. Arguments have been validated by the
// caller.
#pragma once

#include "kernels/core/thread_pool.h"
#include "kernels/cpu/isa.h"
#include "kernels/ops/attention.h"

namespace infllm::kernels {

void CpuAttention(ThreadPool& pool, Isa isa, const AttentionArgs& args);

}  // namespace infllm::kernels
