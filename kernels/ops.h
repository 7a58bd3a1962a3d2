// The arguments of every operation, and the list of operations. Plain data, no library beneath: a
// plugin includes this, too.
#pragma once

#include "kernels/ops/attention.h"
#include "kernels/ops/layer.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/sample.h"
#include "kernels/ops/select.h"

// Every operation, declared once: X(Name), whose arguments are NameArgs. Backend, the plugin's C
// table, and whatever forwards or counts operations are made from this list.
#define INFLLM_KERNEL_OPS(X) \
  X(Linear)                  \
  X(RmsNorm)                 \
  X(SiluMul)                 \
  X(GatherRows)              \
  X(RotateAndStore)          \
  X(Attention)               \
  X(Representatives)         \
  X(MeanQueries)             \
  X(ScoreBlocks)             \
  X(TopK)                    \
  X(SelectBlocks)            \
  X(EncodeBounds)            \
  X(LookUpBlocks)            \
  X(Sample)                  \
  X(LogProbs)
