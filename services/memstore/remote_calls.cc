#include "services/memstore/remote_calls.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace infllm::services {

RemoteCalls::RemoteCalls(std::string target, const RemoteStoreOptions& options,
                         std::shared_ptr<grpc::Channel> channel)
    : target_(std::move(target)),
      call_timeout_(options.call_timeout),
      channel_(std::move(channel)),
      stub_(infllm::v1::MemoryStore::NewStub(channel_)),
      generic_stub_(channel_),
      cancellation_(options.cancel),
      clock_(cancellation_),
      retrier_(options.retry, options.clock != nullptr ? *options.clock : clock_) {}

std::string RemoteCalls::PathOf(std::string_view name) {
  return absl::StrCat("/", infllm::v1::MemoryStore::service_full_name(), "/",
                      absl::string_view(name.data(), name.size()));
}

absl::Status RemoteCalls::ToStatus(std::string_view call, const grpc::Status& status) const {
  switch (status.error_code()) {
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return error::StoreTimedOut(target_, call, absl::ToDoubleSeconds(TimeoutOf(call)));
    case grpc::StatusCode::CANCELLED:
      if (cancellation_.cancelled()) return error::Cancelled(target_, call);
      [[fallthrough]];  // the server did
    case grpc::StatusCode::UNAVAILABLE:
      return error::StoreUnavailable(target_, status.error_message());
    case grpc::StatusCode::UNIMPLEMENTED:
      return error::NotAMemoryStore(target_);
    default:
      return FromGrpcStatus(status);
  }
}

absl::Status RemoteCalls::Settle(std::string_view call, absl::Status status) {
  gave_up_ = absl::IsUnavailable(status);
  if (absl::IsAborted(status)) return error::AlwaysDamaged(status);
  if (absl::IsCancelled(status)) return error::Cancelled(target_, call);
  return status;
}

}  // namespace infllm::services
