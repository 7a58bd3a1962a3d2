#include "services/memstore/raw_call.h"

#include <new>
#include <utility>

#include "services/common/errors.h"

namespace infllm::services {
namespace {

// No exception leaves a handler.
template <typename Call>
auto Guarded(Call call) -> decltype(call()) {
  try {
    return call();
  } catch (const std::bad_alloc&) {
    return error::OutOfMemory();
  }
}

// A place in the gate, if it is open.
class Pass {
 public:
  explicit Pass(CallGate& gate) : gate_(gate.Enter() ? &gate : nullptr) {}
  ~Pass() {
    if (gate_ != nullptr) gate_->Leave();
  }
  Pass(const Pass&) = delete;
  Pass& operator=(const Pass&) = delete;
  explicit operator bool() const { return gate_ != nullptr; }

 private:
  CallGate* const gate_;
};

// `refusal`, or why the call cannot begin.
absl::Status Begin(const CallHost& host, const Pass& pass, absl::Status refusal,
                   std::function<void()> work) {
  if (!refusal.ok()) return refusal;
  if (!pass) return error::Stopping();
  return host.threads.Begin(std::move(work)) ? absl::OkStatus() : error::TooManyCalls();
}

class Unary final : public grpc::ServerUnaryReactor {
 public:
  Unary(const CallHost& host, UnaryHandler handler, grpc::ByteBuffer* response)
      : host_(host), pass_(host.gate), handler_(std::move(handler)), response_(response) {}

  void Begin(absl::Status refusal) {
    const absl::Status begun =
        services::Begin(host_, pass_, std::move(refusal), [this] { Work(); });
    if (!begun.ok()) Finish(ToGrpcStatus(begun));
  }
  void OnCancel() override { cancelled_ = true; }
  void OnDone() override { delete this; }

 private:
  void Work() {
    absl::Status status =
        cancelled_ ? error::CallerGone()
                   : Guarded([&]() -> absl::Status { return handler_(cancelled_, response_); });
    handler_ = nullptr;  // with all it holds
    Finish(ToGrpcStatus(status));
  }

  const CallHost host_;
  const Pass pass_;
  UnaryHandler handler_;
  grpc::ByteBuffer* const response_;
  Cancelled cancelled_ = false;
};

class Stream final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  Stream(const CallHost& host, StreamHandler handler)
      : host_(host), pass_(host.gate), handler_(std::move(handler)) {}

  void Begin(absl::Status refusal) {
    const absl::Status begun =
        services::Begin(host_, pass_, std::move(refusal), [this] { Work(); });
    if (!begun.ok()) End(begun);
  }
  void OnWriteDone(bool ok) override {
    message_.Clear();  // what it pins is free before the client knows that all has come
    if (!ok) return End(error::CallerGone());
    if (last_) return End(absl::OkStatus());
    host_.threads.Continue([this] { Work(); });
  }
  void OnCancel() override { cancelled_ = true; }
  void OnDone() override { delete this; }

 private:
  void Work() {
    if (cancelled_) return End(error::CallerGone());
    absl::StatusOr<StreamPart> part =
        Guarded([&]() -> absl::StatusOr<StreamPart> { return handler_(cancelled_); });
    if (!part.ok()) return End(part.status());
    if (!part->message.has_value()) return End(absl::OkStatus());
    message_.Swap(&*part->message);  // and nobody else has it
    last_ = part->last;
    StartWrite(&message_);
  }
  void End(const absl::Status& status) {
    handler_ = nullptr;
    Finish(ToGrpcStatus(status));
  }

  const CallHost host_;
  const Pass pass_;
  StreamHandler handler_;
  grpc::ByteBuffer message_;  // on its way
  bool last_ = false;
  Cancelled cancelled_ = false;
};

}  // namespace

grpc::ServerUnaryReactor* AnswerUnary(const CallHost& host, absl::Status refusal,
                                      UnaryHandler handler, grpc::ByteBuffer* response) {
  auto* const call = new Unary(host, std::move(handler), response);
  call->Begin(std::move(refusal));
  return call;
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* AnswerStream(const CallHost& host, absl::Status refusal,
                                                         StreamHandler handler) {
  auto* const call = new Stream(host, std::move(handler));
  call->Begin(std::move(refusal));
  return call;
}

}  // namespace infllm::services
