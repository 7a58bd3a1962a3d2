#pragma once

#include "services/memstore/log.h"
#include "services/memstore/metrics.h"
#include "services/memstore/server_events.h"

namespace infllm::services {

// What the daemon's server does, as lines of its log and as metrics. Every failed call is a line:
//   call_failed       a client's mistake (info), what may pass (warning), ours (error)
//   query_failed      of one query of a Select
//   corruption_found  in place of these, where the store has refused what it keeps (error)
//   commit, lease_ended
class DaemonEvents final : public ServerEvents {
 public:
  // `metrics` may be null; both must outlive the object.
  DaemonEvents(Log& log, Metrics* metrics) : log_(log), metrics_(metrics) {}

  void CallEnded(const Call& call) override;
  void QueryFailed(std::string_view request_id, const absl::Status& status) override;
  void Committed(std::string_view request_id, const memstore::CommitRequest& request) override;
  void LeaseEnded(const memstore::ContextId& context, const absl::Status& dropped) override;

 private:
  void WriteFailure(std::string_view event, std::string_view method, std::string_view request_id,
                    const absl::Status& status, absl::Duration duration);

  Log& log_;
  Metrics* const metrics_;
};

}  // namespace infllm::services
