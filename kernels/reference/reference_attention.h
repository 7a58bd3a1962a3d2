// Attention of the reference backend: plain loops in double. Arguments have been validated by the
// caller.
#pragma once

#include "kernels/ops/attention.h"

namespace infllm::kernels {

void ReferenceAttention(const AttentionArgs& args);

}  // namespace infllm::kernels
