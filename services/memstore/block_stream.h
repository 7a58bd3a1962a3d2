// Makes the messages in which blocks leave the server, around payloads that stay where they are.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "memstore/memory_store.h"

namespace infllm::services {

// Counts what keeps room in the RAM tier for a while: calls that have got payloads from the store,
// and payloads that gRPC still sends from, though their call may be over. Thread-safe.
class PinsInFlight {
 public:
  // One call's share, for as long as it lives.
  class Hold {
   public:
    explicit Hold(PinsInFlight& pins) : pins_(pins) {}
    ~Hold() {
      if (taken_) pins_.Release();
    }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;
    PinsInFlight& pins() { return pins_; }
    // Around a call to the store that may pin payloads; withdrawn if it did not.
    void Take() {
      taken_ = true;
      pins_.Add();
    }
    void Withdraw() {
      taken_ = false;
      pins_.Withdraw();
    }

   private:
    PinsInFlight& pins_;
    bool taken_ = false;
  };

  // How many were released so far.
  int64_t released() const;
  // Waits until more than `seen` have been released, which frees room. False if nothing is in
  // flight, or nothing more was released by `give_up`.
  bool AwaitRelease(int64_t seen, std::chrono::steady_clock::time_point give_up);

  void Add();
  void Release();

 private:
  void Withdraw();

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  int64_t in_flight_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t released_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Takes one encoded message; `last` if none follows. False if the caller has gone.
using BlockSink = absl::FunctionRef<bool(const grpc::ByteBuffer& message, bool last)>;

// Sends the answers to queries of `contexts`, then each payload that they name once, as
// infllm.v1.SelectResponse messages of about wire::kTargetMessageBytes.
//   CANCELLED  the caller has gone
absl::Status SendSelections(std::span<const memstore::ContextId> contexts, int32_t layer,
                            std::vector<memstore::Selection> selections,
                            const std::shared_ptr<PinsInFlight>& pins, BlockSink sink);

// Sends `blocks`, whose indices are `indices`, as one infllm.v1.FetchResponse.
//   CANCELLED  the caller has gone
absl::Status SendFetched(const memstore::ContextId& context, int32_t layer,
                         std::span<const int64_t> indices,
                         std::vector<memstore::BlockHandle> blocks,
                         const std::shared_ptr<PinsInFlight>& pins, bool last, BlockSink sink);

}  // namespace infllm::services
