#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>

#include <string>

#include "absl/functional/function_ref.h"

namespace infllm::services {

// Makes a call of `path`, "/package.Service/Method", that answers with a stream, and waits for it.
// Messages are bytes, so that one that does not parse is not taken for the end of the answer.
// `take` gets each; once it returns false the call is cancelled.
grpc::Status CallStream(grpc::GenericStub& stub, const std::string& path,
                        grpc::ClientContext& context, const grpc::ByteBuffer& request,
                        absl::FunctionRef<bool(grpc::ByteBuffer& message)> take);

}  // namespace infllm::services
