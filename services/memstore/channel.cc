#include "services/memstore/channel.h"

#include <grpcpp/client_context.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "infllm/v1/memory_store.grpc.pb.h"
#include "kernels/core/status_macros.h"
#include "services/common/endpoint.h"
#include "services/common/errors.h"
#include "services/common/grpc_runtime.h"
#include "services/memstore/wire.h"

namespace infllm::services {
namespace {

namespace pb = infllm::v1;

grpc::ChannelArguments Arguments() {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(wire::kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(wire::kMaxMessageBytes);
  // Stores are reached directly, also where http_proxy is set.
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // A connection of its own, not one shared with other channels of this process.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // A daemon that was restarted is found again within a second.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  return arguments;
}

// Between two looks at `cancel`.
constexpr absl::Duration kLook = absl::Milliseconds(50);

// gRPC tells the reason only to a call.
std::string WhyNotConnected(const std::shared_ptr<grpc::Channel>& channel, absl::Duration waited) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Milliseconds(100)));
  pb::StatsResponse response;
  const grpc::Status status =
      pb::MemoryStore::NewStub(channel)->Stats(&context, pb::StatsRequest(), &response);
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE) return status.error_message();
  return absl::StrCat("no answer within ", absl::ToDoubleSeconds(waited), " s");
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::Channel>> ConnectChannel(const std::string& target,
                                                              const ClientSecurity& security,
                                                              absl::Duration timeout,
                                                              const std::atomic<bool>* cancel) {
  INFLLM_ASSIGN_OR_RETURN(const Endpoint endpoint, ParseEndpoint(target));
  KeepGrpcInitialized();
  INFLLM_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel,
                          NewChannel(security, endpoint, Arguments()));
  const absl::Time give_up = absl::Now() + timeout;
  while (!channel->WaitForConnected(absl::ToChronoTime(std::min(give_up, absl::Now() + kLook)))) {
    if (cancel != nullptr && *cancel) return error::Cancelled(target, "connecting");
    if (absl::Now() >= give_up) {
      return error::StoreUnavailable(target, WhyNotConnected(channel, timeout));
    }
  }
  return channel;
}

}  // namespace infllm::services
