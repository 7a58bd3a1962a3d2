// Calls of any method, with messages as bytes.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"

namespace infllm::testing {

inline grpc::ByteBuffer ToBuffer(std::string_view bytes) {
  const grpc::Slice slice(bytes.data(), bytes.size());
  return grpc::ByteBuffer(&slice, 1);
}
inline std::string ToString(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) bytes.append(slice.begin(), slice.end());
  return bytes;
}

struct RawAnswer {
  grpc::Status status;
  std::vector<std::string> messages;
};

// Sends one request to `path`, "/package.Service/Method", and waits for the end of the answer.
inline RawAnswer CallRaw(const std::shared_ptr<grpc::Channel>& channel, const std::string& path,
                         std::string_view request) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const auto await = [&] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  const auto stream = stub.PrepareCall(&context, path, &queue);
  stream->StartCall(nullptr);
  await();
  stream->WriteLast(ToBuffer(request), grpc::WriteOptions(), nullptr);
  RawAnswer answer;
  grpc::ByteBuffer message;
  if (await()) {
    while (true) {
      stream->Read(&message, nullptr);
      if (!await()) break;
      answer.messages.push_back(ToString(message));
    }
  }
  stream->Finish(&answer.status, nullptr);
  await();
  return answer;
}

// grpc.health.v1: HealthCheckRequest{service = 1}, HealthCheckResponse{status = 1}.
inline constexpr std::string_view kServing = "\x08\x01", kNotServing = "\x08\x02";
inline std::string CheckHealth(const std::shared_ptr<grpc::Channel>& channel,
                               std::string_view service) {
  std::string request;
  if (!service.empty()) {
    request = "\x0a" + std::string(1, static_cast<char>(service.size())) + std::string(service);
  }
  const RawAnswer answer = CallRaw(channel, "/grpc.health.v1.Health/Check", request);
  return answer.status.ok() ? answer.messages.at(0) : "error: " + answer.status.error_message();
}

}  // namespace infllm::testing
