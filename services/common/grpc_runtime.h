#pragma once

namespace infllm::services {

// Keeps gRPC initialised until the process ends. Otherwise the destructor of the last channel or
// server takes the library down, which waits for its pollers: up to 10 s in gRPC 1.51.
void KeepGrpcInitialized();

}  // namespace infllm::services
