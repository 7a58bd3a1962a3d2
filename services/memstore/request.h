// Requests as they arrive: bytes of a client that need not mean well.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstdint>

#include "absl/status/status.h"
#include "google/protobuf/message.h"

namespace infllm::services {

// The most that a request of this type may have.
int64_t MaxRequestBytes(const google::protobuf::Descriptor& type);

// Reads `bytes` into `request`.
//   RESOURCE_EXHAUSTED  it has, or unpacks to, more than MaxRequestBytes(): none of it is unpacked
//   ABORTED             it is malformed
absl::Status ParseRequest(grpc::ByteBuffer& bytes, google::protobuf::Message& request);

}  // namespace infllm::services
