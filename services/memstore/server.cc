#include "services/memstore/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
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

// Of calls that gRPC itself answers: reflection.
constexpr int kMaxThreads = 64;

// Calls of one connection at a time; gRPC's clients wait with more.
constexpr int kMaxStreams = 256;

// A connection without calls is closed, as is every one after a while: then certificates and tokens
// are looked at again. Calls that run may end first. gRPC's clients connect again by themselves.
constexpr int kIdleMs = 600'000, kAgeMs = 3'600'000, kAgeGraceMs = 600'000;

// To say hello in, and the least time between two pings of a client.
constexpr int kHandshakeMs = 10'000, kLeastPingMs = 10'000;

// Between two looks at whether the service can serve.
constexpr std::chrono::milliseconds kLook{200};

// A connection that is silent for so long is asked for a sign of life, and has as long to give one.
constexpr int kPingMs = 30'000;

// How long the last answers may take to leave, and idle clients to close their connections.
constexpr absl::Duration kFlush = absl::Milliseconds(500);

// Only this user may connect to Unix sockets that are made meanwhile.
class PrivateFiles {
 public:
  PrivateFiles() : before_(::umask(0077)) {}
  ~PrivateFiles() { ::umask(before_); }
  PrivateFiles(const PrivateFiles&) = delete;
  PrivateFiles& operator=(const PrivateFiles&) = delete;

 private:
  const mode_t before_;
};

// Tells gRPC's health service whether ours can serve, until it is stopped.
class HealthWatch {
 public:
  HealthWatch(const LeasingService& service, grpc::HealthCheckServiceInterface& health)
      : service_(service), health_(health), thread_([this] { Run(); }) {}
  ~HealthWatch() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

 private:
  void Run() {
    std::optional<bool> told;
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      const bool can = service_.CanServe();
      if (told != can) {
        health_.SetServingStatus(infllm::v1::MemoryStore::service_full_name(), can);
        told = can;
      }
      changed_.wait_for(lock, kLook, [&] { return stopping_; });
    }
  }

  const LeasingService& service_;
  grpc::HealthCheckServiceInterface& health_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

void SetLimits(grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(wire::kMaxMessageBytes);
  builder.SetMaxSendMessageSize(wire::kMaxMessageBytes);
  // A small message could unpack to a large one.
  for (int i = GRPC_COMPRESS_NONE + 1; i < GRPC_COMPRESS_ALGORITHMS_COUNT; ++i) {
    builder.SetCompressionAlgorithmSupportStatus(static_cast<grpc_compression_algorithm>(i), false);
  }
  builder.SetResourceQuota(grpc::ResourceQuota("infllm-memstore").SetMaxThreads(kMaxThreads));
  // A client on a host that has vanished is noticed by pings, and so its lease ends.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kPingMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kPingMs);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kLeastPingMs);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreams);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, kIdleMs);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, kAgeMs);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, kAgeGraceMs);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeMs);
}

}  // namespace

struct MemstoreServer::Impl {
  Endpoint endpoint;
  CallGate gate;
  std::unique_ptr<LeasingService> service;
  std::unique_ptr<grpc::Server> server;
  std::unique_ptr<HealthWatch> health_watch;
};

absl::StatusOr<std::unique_ptr<MemstoreServer>> MemstoreServer::Start(
    const Endpoint& listen, memstore::MemoryStore& store, absl::Duration lease_grace,
    const ServerSecurity& security, ServerEvents* events) {
  KeepGrpcInitialized();
  INFLLM_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ServerCredentials> credentials,
                          NewServerCredentials(security, listen));
  INFLLM_ASSIGN_OR_RETURN(std::unique_ptr<Authenticator> authenticator, NewAuthenticator(security));
  INFLLM_RETURN_IF_ERROR(PrepareToListen(listen));
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();

  auto impl = std::make_unique<Impl>();
  impl->endpoint = listen;
  impl->service =
      NewMemoryStoreService(store, impl->gate, lease_grace, std::move(authenticator), events);
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(listen.ToString(), credentials, &port);
  builder.RegisterService(&impl->service->service());
  SetLimits(builder);
  // With it, a second daemon would share the port and half of the calls would go to each.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  if (events != nullptr) {
    std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>>
        interceptors;
    interceptors.push_back(NewCallInterceptors(*events));
    builder.experimental().SetInterceptorCreators(std::move(interceptors));
  }
  {
    const PrivateFiles only_ours;
    impl->server = builder.BuildAndStart();
  }
  if (impl->server == nullptr) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", listen.ToString()));
  }
  if (!listen.is_unix()) impl->endpoint.port = static_cast<uint16_t>(port);
  impl->health_watch =
      std::make_unique<HealthWatch>(*impl->service, *impl->server->GetHealthCheckService());
  return std::unique_ptr<MemstoreServer>(new MemstoreServer(std::move(impl)));
}

MemstoreServer::MemstoreServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

MemstoreServer::~MemstoreServer() { Shutdown(absl::ZeroDuration()); }

const Endpoint& MemstoreServer::endpoint() const { return impl_->endpoint; }

int64_t MemstoreServer::leases() const { return impl_->service->leases(); }

void MemstoreServer::Shutdown(absl::Duration grace) {
  if (impl_->server == nullptr) return;
  impl_->health_watch.reset();
  impl_->server->GetHealthCheckService()->Shutdown();
  impl_->gate.Close(grace);
  impl_->service->EndLeases();
  impl_->server->Shutdown(absl::ToChronoTime(absl::Now() + std::min(grace, kFlush)));
  impl_->server->Wait();
  impl_->gate.AwaitIdle();
  impl_->server.reset();
}

}  // namespace infllm::services
