#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace infllm::kernels {

// The instruction sets that SIMD sources are compiled for, weakest first.
enum class Isa : uint8_t { kGeneric, kAvx2, kAvx512, kAvx512Bf16, kAmx };

std::string_view Name(Isa isa);
// Those that this CPU and operating system can run, weakest first; kGeneric is always one. The
// first call asks Linux for the tile registers of AMX, for the whole process.
std::vector<Isa> SupportedIsas();

}  // namespace infllm::kernels
