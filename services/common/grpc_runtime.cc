#include "services/common/grpc_runtime.h"

#include <grpc/grpc.h>

namespace infllm::services {

void KeepGrpcInitialized() {
  static const bool initialized = (grpc_init(), true);
  static_cast<void>(initialized);
}

}  // namespace infllm::services
