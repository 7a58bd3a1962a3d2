// What a remote store asks about committed contexts. Errors are those of memstore::MemoryStore and
// of RemoteStore.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "memstore/memory_store.h"
#include "services/memstore/remote_calls.h"

namespace infllm::services {

absl::Status CommitRemotely(RemoteCalls& calls, const memstore::CommitRequest& request);
absl::StatusOr<memstore::CommittedContext> FindRemotely(RemoteCalls& calls, std::string_view name);
absl::StatusOr<std::vector<memstore::CommittedContext>> ListRemotely(RemoteCalls& calls);
absl::StatusOr<memstore::Prefix> FindPrefixRemotely(RemoteCalls& calls,
                                                    const memstore::ContextOptions& options,
                                                    int32_t exec_block,
                                                    std::span<const int32_t> tokens);
absl::StatusOr<memstore::Checkpoint> ReadCheckpointRemotely(RemoteCalls& calls,
                                                            const memstore::ContextId& committed);

}  // namespace infllm::services
