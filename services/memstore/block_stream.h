// Makes the messages in which blocks leave the server, around payloads that stay where they are.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "memstore/memory_store.h"

namespace infllm::services {

// Takes one encoded message; `last` if none follows. False if the caller has gone.
using BlockSink = absl::FunctionRef<bool(const grpc::ByteBuffer& message, bool last)>;

// Sends a selection as infllm.v1.SelectResponse messages of about wire::kTargetMessageBytes.
//   CANCELLED  the caller has gone
absl::Status SendSelection(memstore::ContextId context, int32_t layer,
                           memstore::Selection selection, BlockSink sink);

// Sends `blocks`, whose indices are `indices`, as one infllm.v1.FetchResponse.
//   CANCELLED  the caller has gone
absl::Status SendFetched(memstore::ContextId context, int32_t layer,
                         std::span<const int64_t> indices,
                         std::vector<memstore::BlockHandle> blocks, bool last, BlockSink sink);

}  // namespace infllm::services
