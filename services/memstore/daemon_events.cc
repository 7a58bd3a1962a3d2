#include "services/memstore/daemon_events.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace infllm::services {
namespace {

LogLevel LevelOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kDataLoss:
      return LogLevel::kError;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kAborted:
      return LogLevel::kWarning;
    default:
      return LogLevel::kInfo;
  }
}

}  // namespace

void DaemonEvents::CallEnded(const Call& call) {
  if (metrics_ != nullptr) metrics_->CountCall(call.method, call.status.code(), call.duration);
  if (call.status.ok()) return;
  // How every lease ends: its client has gone, or we stop.
  if (call.method == "Lease" &&
      (absl::IsCancelled(call.status) || absl::IsUnavailable(call.status))) {
    return;
  }
  // An answer like any other.
  if (absl::IsNotFound(call.status) &&
      (call.method == "FindCommitted" || call.method == "FindPrefix")) {
    return;
  }
  WriteFailure("call_failed", call.method, call.request_id, call.status, call.duration);
}

void DaemonEvents::QueryFailed(std::string_view request_id, const absl::Status& status) {
  if (metrics_ != nullptr) metrics_->CountFailedQuery(status.code());
  WriteFailure("query_failed", "Select", request_id, status, absl::ZeroDuration());
}

void DaemonEvents::WriteFailure(std::string_view event, std::string_view method,
                                std::string_view request_id, const absl::Status& status,
                                absl::Duration duration) {
  if (absl::IsDataLoss(status)) event = "corruption_found";
  const std::string code = absl::StatusCodeToString(status.code());
  const std::string kind = absl::StrCat(absl::string_view(event.data(), event.size()), " ",
                                        absl::string_view(method.data(), method.size()), " ", code);
  log_.WriteLimited(
      LevelOf(status.code()), event, kind,
      {{"method", method},
       {"code", code},
       {"request_id", request_id},
       {"seconds", absl::ToDoubleSeconds(duration)},
       {"message", std::string_view(status.message().data(), status.message().size())}},
      absl::Now());
}

void DaemonEvents::Committed(std::string_view request_id, const memstore::CommitRequest& request) {
  const std::string id = ToString(request.id);
  const std::string replaces =
      request.replaces == memstore::ContextId{} ? "" : ToString(request.replaces);
  log_.WriteLimited(LogLevel::kInfo, "commit", "commit",
                    {{"name", request.name},
                     {"context", id},
                     {"replaces", replaces},
                     {"tokens", static_cast<int64_t>(request.tokens.size())},
                     {"blocks_per_layer", request.blocks},
                     {"request_id", request_id}},
                    absl::Now());
}

void DaemonEvents::LeaseEnded(const memstore::ContextId& context, const absl::Status& dropped) {
  const std::string id = ToString(context);
  const std::string code = absl::StatusCodeToString(dropped.code());
  log_.WriteLimited(
      dropped.ok() || absl::IsNotFound(dropped) ? LogLevel::kInfo : LogLevel::kWarning,
      "lease_ended", "lease_ended", {{"dropped_context", id}, {"code", code}}, absl::Now());
}

}  // namespace infllm::services
