#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_interceptor.h>

#include <memory>
#include <string>

#include "services/memstore/server_events.h"

namespace infllm::services {

// Sees every rpc of infllm.v1.MemoryStore, whoever serves it and however it ends, and tells
// `events`, which must outlive the server. Each call has a request id from there on: the one that
// the client gave, made safe, or a new one.
std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> NewCallInterceptors(
    ServerEvents& events);

// Of a call that an interceptor has seen; "-" for others.
std::string RequestIdOf(const grpc::ServerContextBase& context);

}  // namespace infllm::services
