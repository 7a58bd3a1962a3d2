// From logits to tokens in the reference backend. Arguments have been validated by the caller.
#pragma once

#include "kernels/ops/sample.h"

namespace infllm::kernels {

void ReferenceSample(const SampleArgs& args);
void ReferenceLogProbs(const LogProbsArgs& args);

}  // namespace infllm::kernels
