#include "services/memstore/lease_holder.h"

#include <grpcpp/support/sync_stream.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "infllm/v1/memory_store.grpc.pb.h"
#include "services/memstore/wire.h"

namespace infllm::services {
namespace {

namespace pb = infllm::v1;

// Between two calls; it doubles while they are not answered, up to a tenth of the grace.
constexpr std::chrono::milliseconds kFirstPause{20};

}  // namespace

LeaseHolder::LeaseHolder(std::shared_ptr<grpc::Channel> channel)
    : channel_(std::move(channel)), thread_([this] { Run(); }) {}

LeaseHolder::~LeaseHolder() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    if (call_ != nullptr) call_->TryCancel();
  }
  changed_.notify_all();
  thread_.join();
}

void LeaseHolder::Run() {
  const std::unique_ptr<pb::MemoryStore::Stub> stub = pb::MemoryStore::NewStub(channel_);
  pb::LeaseRequest request;
  request.set_lease(wire::ToProto(lease_));
  std::chrono::milliseconds pause = kFirstPause, longest = 10 * kFirstPause;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    grpc::ClientContext context;
    call_ = &context;
    lock.unlock();
    const auto reader = stub->Lease(&context, request);
    pb::LeaseResponse response;
    while (reader->Read(&response)) {
      pause = kFirstPause;
      longest = std::max(kFirstPause, std::chrono::milliseconds(response.grace_ms() / 10));
    }
    reader->Finish();  // we call again, whatever it was
    lock.lock();
    call_ = nullptr;
    changed_.wait_for(lock, pause, [&] { return stopping_; });
    pause = std::min(2 * pause, longest);
  }
}

}  // namespace infllm::services
