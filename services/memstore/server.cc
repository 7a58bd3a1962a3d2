#include "services/memstore/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <unistd.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "infllm/v1/memory_store.grpc.pb.h"
#include "kernels/core/status_macros.h"
#include "services/common/grpc_runtime.h"
#include "services/memstore/call_interceptor.h"
#include "services/memstore/memory_store_service.h"
#include "services/memstore/wire.h"

namespace infllm::services {
namespace {

// Each running call holds a thread. Past this, calls fail with RESOURCE_EXHAUSTED instead of
// exhausting the machine's threads.
constexpr int kMaxThreads = 512;

// A connection that is silent for so long is asked for a sign of life, and has as long to give one.
constexpr int kPingMs = 30'000;

// How long the last answers may take to leave, and idle clients to close their connections.
constexpr absl::Duration kFlush = absl::Milliseconds(500);

}  // namespace

struct MemstoreServer::Impl {
  Endpoint endpoint;
  CallGate gate;
  std::unique_ptr<LeasingService> service;
  std::unique_ptr<grpc::Server> server;
};

absl::StatusOr<std::unique_ptr<MemstoreServer>> MemstoreServer::Start(const Endpoint& listen,
                                                                      memstore::MemoryStore& store,
                                                                      absl::Duration lease_grace,
                                                                      ServerEvents* events) {
  INFLLM_RETURN_IF_ERROR(PrepareToListen(listen));
  KeepGrpcInitialized();
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();

  auto impl = std::make_unique<Impl>();
  impl->endpoint = listen;
  impl->service = NewMemoryStoreService(store, impl->gate, lease_grace, events);
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(listen.ToString(), grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&impl->service->service());
  builder.SetMaxReceiveMessageSize(wire::kMaxMessageBytes);
  builder.SetMaxSendMessageSize(wire::kMaxMessageBytes);
  builder.SetResourceQuota(grpc::ResourceQuota("infllm-memstore").SetMaxThreads(kMaxThreads));
  // A client on a host that has vanished is noticed by pings, and so its lease ends.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kPingMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kPingMs);
  // With it, a second daemon would share the port and half of the calls would go to each.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  if (events != nullptr) {
    std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>>
        interceptors;
    interceptors.push_back(NewCallInterceptors(*events));
    builder.experimental().SetInterceptorCreators(std::move(interceptors));
  }
  impl->server = builder.BuildAndStart();
  if (impl->server == nullptr) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", listen.ToString()));
  }
  if (!listen.is_unix()) impl->endpoint.port = static_cast<uint16_t>(port);
  impl->server->GetHealthCheckService()->SetServingStatus(
      infllm::v1::MemoryStore::service_full_name(), true);
  return std::unique_ptr<MemstoreServer>(new MemstoreServer(std::move(impl)));
}

MemstoreServer::MemstoreServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

MemstoreServer::~MemstoreServer() { Shutdown(absl::ZeroDuration()); }

const Endpoint& MemstoreServer::endpoint() const { return impl_->endpoint; }

int64_t MemstoreServer::leases() const { return impl_->service->leases(); }

void MemstoreServer::Shutdown(absl::Duration grace) {
  if (impl_->server == nullptr) return;
  impl_->server->GetHealthCheckService()->Shutdown();
  impl_->gate.Close(grace);
  impl_->service->EndLeases();
  impl_->server->Shutdown(absl::ToChronoTime(absl::Now() + std::min(grace, kFlush)));
  impl_->server->Wait();
  impl_->server.reset();
}

}  // namespace infllm::services
