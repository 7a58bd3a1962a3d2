#include "kernels/backend.h"

#include "absl/strings/str_cat.h"

namespace infllm::kernels {

#define INFLLM_DEFINE_OP(Name)                                                              \
  absl::Status Backend::Name(Stream, const Name##Args&) {                                   \
    return absl::UnimplementedError(                                                        \
        absl::StrCat("the ", std::string(name()), " backend has ", "no operation " #Name)); \
  }
INFLLM_KERNEL_OPS(INFLLM_DEFINE_OP)
#undef INFLLM_DEFINE_OP

}  // namespace infllm::kernels
