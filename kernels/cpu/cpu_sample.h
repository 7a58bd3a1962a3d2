// From logits to tokens on the CPU; see kernels/ops/sample.h for what each operation computes.
// Arguments have been validated by the caller. Nothing is allocated once calls of that size have
// been made by the thread.
#pragma once

#include "kernels/core/thread_pool.h"
#include "kernels/ops/sample.h"

namespace infllm::kernels {

void CpuSample(ThreadPool& pool, const SampleArgs& args);
void CpuLogProbs(ThreadPool& pool, const LogProbsArgs& args);

}  // namespace infllm::kernels
