#include "kernels/cpu/isa.h"

#ifdef INFLLM_X86
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace infllm::kernels {
namespace {

#ifdef INFLLM_X86
// Linux hands out the tile registers (8 KiB per thread) on request only, to the whole process. It
// refuses on a kernel or a virtual machine without them.
bool MayUseTiles() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}
#endif

}  // namespace

std::string_view Name(Isa isa) {
  switch (isa) {
    case Isa::kGeneric:
      return "generic";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512bf16";
    case Isa::kAmx:
      return "amx";
  }
  return "unknown";
}

std::vector<Isa> SupportedIsas() {
  std::vector<Isa> isas = {Isa::kGeneric};
#ifdef INFLLM_X86
  // The features are those that kernels/CMakeLists.txt compiles each set with. The builtin also
  // asks whether the operating system saves the registers.
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("f16c") || !__builtin_cpu_supports("bmi2")) {
    return isas;
  }
  isas.push_back(Isa::kAvx2);
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512cd")) {
    return isas;
  }
  isas.push_back(Isa::kAvx512);
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vnni")) return isas;
  isas.push_back(Isa::kAvx512Bf16);
  if (__builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") && MayUseTiles()) {
    isas.push_back(Isa::kAmx);
  }
#endif
  return isas;
}

}  // namespace infllm::kernels
