#include "services/memstore/call_interceptor.h"

#include <map>
#include <new>
#include <string_view>
#include <utility>

#include "absl/time/clock.h"
#include "infllm/v1/memory_store.grpc.pb.h"
#include "services/common/errors.h"
#include "services/memstore/request_id.h"

namespace infllm::services {
namespace {

using grpc::experimental::InterceptionHookPoints;

class CallInterceptor final : public grpc::experimental::Interceptor {
 public:
  CallInterceptor(ServerEvents& events, std::string_view method)
      : events_(events), method_(method), start_(absl::Now()) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* batch) override {
    if (batch->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_INITIAL_METADATA)) {
      // What the handlers find there is safe to print, and there is one.
      std::multimap<grpc::string_ref, grpc::string_ref>& metadata =
          *batch->GetRecvInitialMetadata();
      const auto given = metadata.find(kRequestIdKey);
      if (given != metadata.end()) {
        id_ = CleanRequestId({given->second.data(), given->second.size()});
        metadata.erase(kRequestIdKey);
      }
      if (id_.empty()) id_ = NewRequestId();
      metadata.emplace(kRequestIdKey, id_);
    }
    if (batch->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_STATUS)) {
      try {
        const absl::Status status = FromGrpcStatus(batch->GetSendStatus());
        events_.CallEnded({.method = method_,
                           .request_id = id_,
                           .duration = absl::Now() - start_,
                           .status = status});
      } catch (const std::bad_alloc&) {  // the call matters more than its line
      }
    }
    batch->Proceed();
  }

 private:
  ServerEvents& events_;
  const std::string_view method_;
  const absl::Time start_;
  std::string id_;
};

class CallInterceptors final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit CallInterceptors(ServerEvents& events) : events_(events) {}

  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override {
    // "/infllm.v1.MemoryStore/Select"; it lives as long as the server.
    std::string_view method = info->method();
    const std::string service =
        std::string("/") + infllm::v1::MemoryStore::service_full_name() + "/";
    if (!method.starts_with(service)) return nullptr;
    method.remove_prefix(service.size());
    return new CallInterceptor(events_, method);
  }

 private:
  ServerEvents& events_;
};

}  // namespace

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> NewCallInterceptors(
    ServerEvents& events) {
  return std::make_unique<CallInterceptors>(events);
}

std::string RequestIdOf(const grpc::ServerContextBase& context) {
  const auto found = context.client_metadata().find(kRequestIdKey);
  if (found == context.client_metadata().end()) return "-";
  return std::string(found->second.data(), found->second.size());
}

}  // namespace infllm::services
