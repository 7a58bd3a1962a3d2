#pragma once

#include "kernels/cpu/attention_simd.h"

namespace infllm::kernels::INFLLM_ISA {

extern const TileKernels kInPlaceKernels;

}  // namespace infllm::kernels::INFLLM_ISA
