// Calls whose messages are bytes, as gRPC's callbacks have them. Handlers run on CallThreads;
// between two messages of an answer a call holds no thread, however slowly its client reads.
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <functional>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/memstore/call_gate.h"
#include "services/memstore/call_threads.h"

namespace infllm::services {

// What calls share. All must outlive them.
struct CallHost {
  CallGate& gate;
  CallThreads& threads;
};

// Set when the caller has gone or its deadline has passed.
using Cancelled = std::atomic<bool>;

// Makes the answer, `response`.
using UnaryHandler =
    std::function<absl::Status(const Cancelled& cancelled, grpc::ByteBuffer* response)>;
// Answers a call, which then owns itself. `refusal`, unless OK, is all of its answer.
grpc::ServerUnaryReactor* AnswerUnary(const CallHost& host, absl::Status refusal,
                                      UnaryHandler handler, grpc::ByteBuffer* response);

struct StreamPart {
  std::optional<grpc::ByteBuffer> message;
  bool last = false;
};
// Makes the next part of the answer. It is let go with the call.
using StreamHandler = std::function<absl::StatusOr<StreamPart>(const Cancelled& cancelled)>;
grpc::ServerWriteReactor<grpc::ByteBuffer>* AnswerStream(const CallHost& host, absl::Status refusal,
                                                         StreamHandler handler);

}  // namespace infllm::services
