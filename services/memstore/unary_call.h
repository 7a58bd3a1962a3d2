#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/support/async_unary_call.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "services/memstore/cancellation.h"

namespace infllm::services {

// Makes a unary call of an asynchronous stub method, `start(context, queue)`, and waits for it; but
// once `cancellation` (may be null) has come, or the deadline has passed, no longer than kGrace. A
// peer that has stopped reading may leave a message half written, and gRPC does not complete the
// call, cancelled or not, before the socket has taken the rest. Such a call is left to itself, with
// all it needs.
template <typename Response, typename Start>
grpc::Status CallUnary(Cancellation* cancellation, absl::Time deadline, Start start,
                       Response* response) {
  constexpr absl::Duration kGrace = absl::Milliseconds(300);
  constexpr std::chrono::milliseconds kLook{50};
  struct Call {
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    Response response;
    grpc::Status status;
    std::unique_ptr<grpc::ClientAsyncResponseReader<Response>> reader;
  };
  auto call = std::make_unique<Call>();
  std::optional<Cancellation::Call> in_flight;
  if (cancellation != nullptr) in_flight.emplace(*cancellation, call->context);
  call->context.set_deadline(absl::ToChronoTime(deadline));
  call->reader = start(&call->context, &call->queue);
  call->reader->Finish(&call->response, &call->status, call.get());
  void* tag = nullptr;
  bool ok = false;
  while (call->queue.AsyncNext(&tag, &ok, std::chrono::system_clock::now() + kLook) ==
         grpc::CompletionQueue::TIMEOUT) {
    const absl::Time cancelled =
        cancellation == nullptr ? absl::InfiniteFuture() : cancellation->when();
    if (absl::Now() < std::min(deadline, cancelled) + kGrace) continue;
    in_flight.reset();
    std::thread([left = std::move(call)] {
      void* tag = nullptr;
      bool ok = false;
      left->queue.Next(&tag, &ok);
    }).detach();
    return cancelled <= deadline
               ? grpc::Status(grpc::StatusCode::CANCELLED, "cancelled")
               : grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED, "the peer reads nothing");
  }
  *response = std::move(call->response);
  return call->status;
}

}  // namespace infllm::services
