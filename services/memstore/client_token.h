#pragma once

#include <grpcpp/support/client_interceptor.h>

#include <memory>
#include <mutex>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "services/memstore/secret_file.h"

namespace infllm::services {

// The token by which a client says who it is. Thread-safe.
class ClientToken {
 public:
  // From the file, which may change; `path` empty: from the environment's INFLLM_TOKEN; null if
  // that is not set either.
  //   The errors of SecretFile::Read(); INVALID_ARGUMENT: what is there is not a token
  static absl::StatusOr<std::unique_ptr<ClientToken>> Open(const std::string& path);

  std::string Get();

 private:
  explicit ClientToken(const std::string& path) : file_(path) {}
  static absl::StatusOr<std::string> Parse(const std::string& where, const std::string& text);

  std::mutex mutex_;
  SecretFile file_ ABSL_GUARDED_BY(mutex_);
  std::string token_ ABSL_GUARDED_BY(mutex_);
};

// Puts the token into the metadata of every call, whatever the connection is.
std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface> NewTokenSender(
    std::unique_ptr<ClientToken> token);

}  // namespace infllm::services
