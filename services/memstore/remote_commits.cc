#include "services/memstore/remote_commits.h"

#include <string>
#include <utility>

#include "infllm/v1/memory_store.grpc.pb.h"
#include "kernels/core/status_macros.h"
#include "memstore/validate.h"
#include "services/common/errors.h"
#include "services/memstore/wire.h"

namespace infllm::services {

namespace pb = infllm::v1;

namespace {

absl::StatusOr<memstore::CommittedContext> Committed(const RemoteCalls& calls,
                                                     const pb::CommittedContext& proto) {
  if (proto.crc32c() != wire::Checksum(proto)) {
    return error::DamagedAnswer(calls.target(), {},
                                "the checksum of a committed context does not fit");
  }
  absl::StatusOr<memstore::CommittedContext> context = wire::FromProto(proto);
  const absl::Status valid = context.ok() ? Validate(context->options) : context.status();
  if (!valid.ok()) return error::WrongAnswer(calls.target(), {}, std::string(valid.message()));
  if (context->tokens < 0 || context->published < 0 || context->blocks < context->published ||
      !memstore::Validate(context->reusable, context->tokens).ok()) {
    return error::WrongAnswer(calls.target(), {}, "a committed context that cannot be");
  }
  return context;
}
}  // namespace

absl::Status CommitRemotely(RemoteCalls& calls, const memstore::CommitRequest& request) {
  INFLLM_RETURN_IF_ERROR(Validate(request));
  pb::CommitRequest message;
  message.set_context(wire::ToProto(request.context));
  message.set_id(wire::ToProto(request.id));
  message.set_name(request.name);
  message.set_replaces(wire::ToProto(request.replaces));
  message.set_blocks(request.blocks);
  message.set_exec_block(request.reusable.exec_block);
  message.set_reusable_tokens(request.reusable.tokens);
  message.mutable_tokens()->Assign(request.tokens.begin(), request.tokens.end());
  message.set_state(request.state.data(), request.state.size());
  message.set_crc32c(wire::Checksum(message));
  pb::CommitResponse response;
  return calls.Call("Commit", &RemoteCalls::Stub::AsyncCommit, message, &response);
}

absl::StatusOr<memstore::CommittedContext> FindRemotely(RemoteCalls& calls, std::string_view name) {
  pb::FindCommittedRequest request;
  request.set_name(std::string(name));
  pb::FindCommittedResponse response;
  memstore::CommittedContext found;
  const absl::Status status = calls.retrier().Run([&]() -> absl::Status {
    INFLLM_RETURN_IF_ERROR(calls.CallOnce("FindCommitted", &RemoteCalls::Stub::AsyncFindCommitted,
                                          request, &response));
    INFLLM_ASSIGN_OR_RETURN(found, calls.Counted(Committed(calls, response.context())));
    return absl::OkStatus();
  });
  INFLLM_RETURN_IF_ERROR(calls.Settle("FindCommitted", status));
  return found;
}

absl::StatusOr<std::vector<memstore::CommittedContext>> ListRemotely(RemoteCalls& calls) {
  const pb::ListCommittedRequest request;
  std::vector<memstore::CommittedContext> all;
  const absl::Status status = calls.retrier().Run([&]() -> absl::Status {
    all.clear();
    return calls.Stream<pb::ListCommittedResponse>(
        "ListCommitted", request, [&](pb::ListCommittedResponse& part) -> absl::Status {
          for (const pb::CommittedContext& context : part.contexts()) {
            INFLLM_ASSIGN_OR_RETURN(memstore::CommittedContext one, Committed(calls, context));
            all.push_back(std::move(one));
          }
          return absl::OkStatus();
        });
  });
  INFLLM_RETURN_IF_ERROR(calls.Settle("ListCommitted", status));
  return all;
}

absl::StatusOr<memstore::Prefix> FindPrefixRemotely(RemoteCalls& calls,
                                                    const memstore::ContextOptions& options,
                                                    int32_t exec_block,
                                                    std::span<const int32_t> tokens) {
  pb::FindPrefixRequest request;
  wire::OptionsToProto(options, request);
  request.set_exec_block(exec_block);
  request.mutable_tokens()->Assign(tokens.begin(), tokens.end());
  request.set_crc32c(wire::Checksum(request));
  pb::FindPrefixResponse response;
  memstore::Prefix found;
  const absl::Status status = calls.retrier().Run([&]() -> absl::Status {
    INFLLM_RETURN_IF_ERROR(
        calls.CallOnce("FindPrefix", &RemoteCalls::Stub::AsyncFindPrefix, request, &response));
    if (response.crc32c() != wire::Checksum(response)) {
      return calls.Counted(
          error::DamagedAnswer(calls.target(), {}, "the checksum of a prefix does not fit"));
    }
    INFLLM_ASSIGN_OR_RETURN(found.context, calls.Counted(Committed(calls, response.context())));
    found.tokens = response.tokens();
    const memstore::Reusable& reusable = found.context.reusable;
    if (found.context.options == options && reusable.exec_block == exec_block && found.tokens > 0 &&
        found.tokens <= reusable.tokens && found.tokens % exec_block == 0 &&
        found.tokens <= static_cast<int64_t>(tokens.size())) {
      return absl::OkStatus();
    }
    return error::WrongAnswer(calls.target(), {}, "a prefix that cannot be");
  });
  INFLLM_RETURN_IF_ERROR(calls.Settle("FindPrefix", status));
  return found;
}

absl::StatusOr<memstore::Checkpoint> ReadCheckpointRemotely(RemoteCalls& calls,
                                                            const memstore::ContextId& committed) {
  pb::ReadCheckpointRequest request;
  request.set_id(wire::ToProto(committed));
  pb::ReadCheckpointResponse response;
  const absl::Status status = calls.retrier().Run([&]() -> absl::Status {
    INFLLM_RETURN_IF_ERROR(calls.CallOnce("ReadCheckpoint", &RemoteCalls::Stub::AsyncReadCheckpoint,
                                          request, &response));
    if (response.crc32c() == wire::CheckpointChecksum(committed, response)) {
      return absl::OkStatus();
    }
    return calls.Counted(
        error::DamagedAnswer(calls.target(), {committed}, "its checksum does not fit"));
  });
  INFLLM_RETURN_IF_ERROR(calls.Settle("ReadCheckpoint", status));
  const auto state = std::as_bytes(wire::AsSpan(response.state()));
  return memstore::Checkpoint{
      .tokens = std::vector<int32_t>(response.tokens().begin(), response.tokens().end()),
      .state = std::vector<std::byte>(state.begin(), state.end())};
}

}  // namespace infllm::services
