// What the two ends of a connection prove to each other. All files are PEM; those of TLS are read
// again within seconds when they change (certificate and key together: as a directory, or a link to
// one, that is renamed into place).
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/common/endpoint.h"
#include "services/memstore/identity.h"

namespace grpc {
class Channel;
class ChannelArguments;
class ServerCredentials;
}  // namespace grpc

namespace infllm::services {

struct ServerSecurity {
  std::string tls_cert, tls_key;  // of the daemon; empty: no TLS
  // Whose signature a client's certificate must have, which then says who it is.
  std::string tls_client_ca;
  std::string tokens_file;  // token_table.h; then its token says who a client is
  // TCP clients need prove nothing, or prove it with a token that others can read on the way.
  bool insecure = false;
};

// Whether `listen` may be listened on so, and the files are as they must be.
//   INVALID_ARGUMENT     flags that do not go together, TCP without proof, a file with other
//   content FAILED_PRECONDITION  others have access to a secret; a key is not the certificate's, or
//   that has
//                        expired
//   NOT_FOUND, PERMISSION_DENIED, ...  a file cannot be read
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> NewServerCredentials(
    const ServerSecurity& security, const Endpoint& listen);
absl::StatusOr<std::unique_ptr<Authenticator>> NewAuthenticator(const ServerSecurity& security);

struct ClientSecurity {
  std::string tls_ca;  // whose signature the daemon's certificate must have; empty: no TLS
  std::string tls_cert, tls_key;  // of the client; empty: none
  // With one line, a token; empty: the environment's INFLLM_TOKEN, if that is set.
  std::string token_file;
  bool insecure = false;  // a token may go over TCP without TLS
};

// Errors as above.
absl::StatusOr<std::shared_ptr<grpc::Channel>> NewChannel(const ClientSecurity& security,
                                                          const Endpoint& server,
                                                          const grpc::ChannelArguments& arguments);

}  // namespace infllm::services
