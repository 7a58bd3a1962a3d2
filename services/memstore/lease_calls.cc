#include "services/memstore/lease_calls.h"

#include <new>
#include <optional>
#include <utility>

#include "services/common/errors.h"
#include "services/memstore/byte_buffer.h"
#include "services/memstore/wire.h"

namespace infllm::services {

namespace pb = infllm::v1;
using memstore::ContextId;

class LeaseCalls::Call final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  explicit Call(LeaseCalls& calls) : calls_(calls) {}

  void Hold(const LeaseTable::LeaseId& lease) {
    lease_ = lease;
    calls_.table_.Hold(lease);
    const std::lock_guard lock(calls_.mutex_);
    calls_.calls_.insert(this);
    pb::LeaseResponse response;
    response.set_grace_ms(absl::ToInt64Milliseconds(calls_.table_.grace()));
    response_ = ToBytes(response);
    StartWrite(&response_);
    if (calls_.ended_) End(error::Stopping());
  }
  void Refuse(const absl::Status& status) {
    const std::lock_guard lock(calls_.mutex_);
    End(status);
  }
  // Under the lock of `calls_`; the first one counts.
  void End(const absl::Status& status) {
    if (!std::exchange(finished_, true)) Finish(ToGrpcStatus(status));
  }

  void OnCancel() override {
    const std::lock_guard lock(calls_.mutex_);
    End(error::CallerGone());
  }
  void OnDone() override {
    if (lease_.has_value()) {
      calls_.table_.LetGo(*lease_);
      const std::lock_guard lock(calls_.mutex_);
      calls_.calls_.erase(this);
    }
    delete this;
  }

 private:
  LeaseCalls& calls_;
  std::optional<LeaseTable::LeaseId> lease_;
  grpc::ByteBuffer response_;
  bool finished_ = false;  // guarded by the lock of calls_
};

LeaseCalls::LeaseCalls(absl::Duration grace, memstore::MemoryStore& store, ServerEvents* events)
    : table_(grace, [&store, events](const ContextId& context) {
        try {
          const absl::Status dropped = store.Drop(context);
          if (events != nullptr) events->LeaseEnded(context, dropped);
        } catch (const std::bad_alloc&) {  // it has gone; its entries go with the next one's
        }
      }) {}

grpc::ServerWriteReactor<grpc::ByteBuffer>* LeaseCalls::Begin(const absl::Status& refusal,
                                                              const std::string& tenant,
                                                              const pb::LeaseRequest& request) {
  auto* const call = new Call(*this);
  const absl::StatusOr<ContextId> lease =
      refusal.ok() ? wire::ContextFromProto("lease", request.lease()) : refusal;
  if (!lease.ok()) {
    call->Refuse(lease.status());
  } else {
    call->Hold({.tenant = tenant, .id = *lease});
  }
  return call;
}

void LeaseCalls::EndAll() {
  const std::lock_guard lock(mutex_);
  ended_ = true;
  for (Call* const call : calls_) call->End(error::Stopping());
}

}  // namespace infllm::services
