// Protobuf messages and the bytes that gRPC sends.
#pragma once

#include <google/protobuf/message_lite.h>
#include <grpcpp/support/byte_buffer.h>

namespace infllm::services {

grpc::ByteBuffer ToBytes(const google::protobuf::MessageLite& message);
// False if they are malformed.
bool FromBytes(grpc::ByteBuffer& bytes, google::protobuf::MessageLite& message);

}  // namespace infllm::services
