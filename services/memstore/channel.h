#pragma once

#include <grpcpp/channel.h>

#include <atomic>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/memstore/credentials.h"

namespace infllm::services {

// A connection to a store at `target`, made.
//   INVALID_ARGUMENT  `target` is malformed
//   UNAVAILABLE       nobody answered within `timeout`
//   CANCELLED         `cancel` (may be null) was set
//   and the errors of credentials.h
absl::StatusOr<std::shared_ptr<grpc::Channel>> ConnectChannel(const std::string& target,
                                                              const ClientSecurity& security,
                                                              absl::Duration timeout,
                                                              const std::atomic<bool>* cancel);

}  // namespace infllm::services
