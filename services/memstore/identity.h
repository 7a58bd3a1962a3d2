// Who makes a call, by what the connection or the call proves.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace grpc {
class ServerContextBase;
}

namespace infllm::services {

class TokenTable;

struct Caller {
  std::string tenant;
  // It is one of several tenants, which learn nothing of each other.
  bool one_of_many = false;
};

// Thread-safe.
class Authenticator {
 public:
  virtual ~Authenticator() = default;
  // UNAUTHENTICATED  it is nobody that is known; the text says what is wanted
  virtual absl::StatusOr<Caller> CallerOf(const grpc::ServerContextBase& call) const = 0;
};

// Everybody who reaches the server is the default tenant, which has no name.
std::unique_ptr<Authenticator> NewTrustingAuthenticator();

// The tenant is the name in the client's certificate, which TLS has verified: its URI if it has
// one, else its DNS name, else its common name. It must have one of the first kind that it has, of
// at most memstore::limits::kMaxTenantBytes.
std::unique_ptr<Authenticator> NewCertificateAuthenticator();

// The tenant is that of the token in the call's metadata, `authorization: Bearer TOKEN`.
std::unique_ptr<Authenticator> NewTokenAuthenticator(std::unique_ptr<TokenTable> tokens);

}  // namespace infllm::services
