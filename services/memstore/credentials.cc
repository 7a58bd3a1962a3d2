#include "services/memstore/credentials.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <cerrno>
#include <fstream>
#include <sstream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "services/memstore/client_token.h"
#include "services/memstore/secret_file.h"
#include "services/memstore/token_table.h"

namespace infllm::services {
namespace {

// Between two looks at the files, in seconds.
constexpr unsigned kLookSeconds = 1;

using Bio = std::unique_ptr<BIO, decltype(&::BIO_free)>;
using X509Ptr = std::unique_ptr<X509, decltype(&::X509_free)>;
using KeyPtr = std::unique_ptr<EVP_PKEY, decltype(&::EVP_PKEY_free)>;

Bio BioOf(const std::string& text) {
  return {::BIO_new_mem_buf(text.data(), static_cast<int>(text.size())), &::BIO_free};
}

absl::StatusOr<std::string> ReadPublic(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path));
  std::ostringstream text;
  text << file.rdbuf();  // nothing, where it is empty or a directory
  return text.str();
}

// The first certificate of the file.
absl::StatusOr<X509Ptr> ReadCertificate(const std::string& path) {
  INFLLM_ASSIGN_OR_RETURN(const std::string text, ReadPublic(path));
  X509Ptr certificate(::PEM_read_bio_X509(BioOf(text).get(), nullptr, nullptr, nullptr),
                      &::X509_free);
  ::ERR_clear_error();
  if (certificate == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(path, " has no PEM certificate"));
  }
  return certificate;
}

// No key asks for a passphrase on a terminal.
int NoPassphrase(char*, int, int, void*) { return 0; }

absl::Status CheckPair(const std::string& cert_path, const std::string& key_path) {
  INFLLM_ASSIGN_OR_RETURN(const X509Ptr certificate, ReadCertificate(cert_path));
  INFLLM_ASSIGN_OR_RETURN(const std::string text, SecretFile(key_path).Read());
  const KeyPtr key(::PEM_read_bio_PrivateKey(BioOf(text).get(), nullptr, &NoPassphrase, nullptr),
                   &::EVP_PKEY_free);
  ::ERR_clear_error();
  if (key == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(key_path, " has no PEM private key, or one with a passphrase"));
  }
  const bool fits = ::X509_check_private_key(certificate.get(), key.get()) == 1;
  ::ERR_clear_error();
  if (!fits) {
    return absl::FailedPreconditionError(
        absl::StrCat("the key in ", key_path, " is not that of the certificate in ", cert_path));
  }
  if (::X509_cmp_current_time(::X509_get0_notAfter(certificate.get())) < 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("the certificate in ", cert_path, " has expired"));
  }
  return absl::OkStatus();
}

// A pair of flags of which both or none is given.
absl::Status CheckTogether(const std::string& cert, const std::string& key) {
  if (cert.empty() == key.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(cert.empty() ? "--tls-key" : "--tls-cert",
                                                 " is given without ",
                                                 cert.empty() ? "--tls-cert" : "--tls-key"));
}

absl::Status CheckFlags(const ServerSecurity& security, const Endpoint& listen) {
  INFLLM_RETURN_IF_ERROR(CheckTogether(security.tls_cert, security.tls_key));
  const bool tls = !security.tls_cert.empty();
  const bool proof = !security.tls_client_ca.empty() || !security.tokens_file.empty();
  if (!security.tls_client_ca.empty() && !tls) {
    return absl::InvalidArgumentError("--tls-client-ca needs --tls-cert and --tls-key");
  }
  if (!security.tls_client_ca.empty() && !security.tokens_file.empty()) {
    return absl::InvalidArgumentError(
        "--tls-client-ca and --tokens-file are both given: one of them says who a client is");
  }
  if (listen.is_unix()) {
    if (!tls) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        listen.ToString(), " never leaves the machine: TLS is for host:port, leave --tls-cert"));
  }
  if ((tls && proof) || security.insecure) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "whoever reaches ", listen.ToString(), " would ",
      proof ? "see the tokens of all others" : "read, and delete, everything",
      ": give --tls-cert and --tls-key with --tls-client-ca or --tokens-file, or listen on "
      "unix:/path; --insecure allows it all the same"));
}

using Watcher = grpc::experimental::FileWatcherCertificateProvider;

std::shared_ptr<grpc::ChannelCredentials> TlsCredentialsOf(const ClientSecurity& security) {
  grpc::experimental::TlsChannelCredentialsOptions options;
  if (security.tls_cert.empty()) {
    options.set_certificate_provider(std::make_shared<Watcher>(security.tls_ca, kLookSeconds));
  } else {
    options.set_certificate_provider(std::make_shared<Watcher>(security.tls_key, security.tls_cert,
                                                               security.tls_ca, kLookSeconds));
    options.watch_identity_key_cert_pairs();
  }
  options.watch_root_certs();
  return grpc::experimental::TlsCredentials(options);
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> NewServerCredentials(
    const ServerSecurity& security, const Endpoint& listen) {
  INFLLM_RETURN_IF_ERROR(CheckFlags(security, listen));
  if (security.tls_cert.empty()) return grpc::InsecureServerCredentials();
  INFLLM_RETURN_IF_ERROR(CheckPair(security.tls_cert, security.tls_key));
  const bool ask = !security.tls_client_ca.empty();
  if (ask) INFLLM_RETURN_IF_ERROR(ReadCertificate(security.tls_client_ca).status());
  grpc::experimental::TlsServerCredentialsOptions options(std::make_shared<Watcher>(
      security.tls_key, security.tls_cert, security.tls_client_ca, kLookSeconds));
  options.watch_identity_key_cert_pairs();
  if (ask) {
    options.watch_root_certs();
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return grpc::experimental::TlsServerCredentials(options);
}

absl::StatusOr<std::unique_ptr<Authenticator>> NewAuthenticator(const ServerSecurity& security) {
  if (!security.tls_client_ca.empty()) return NewCertificateAuthenticator();
  if (security.tokens_file.empty()) return NewTrustingAuthenticator();
  INFLLM_ASSIGN_OR_RETURN(std::unique_ptr<TokenTable> tokens,
                          TokenTable::Open(security.tokens_file));
  return NewTokenAuthenticator(std::move(tokens));
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> NewChannel(const ClientSecurity& security,
                                                          const Endpoint& server,
                                                          const grpc::ChannelArguments& arguments) {
  INFLLM_RETURN_IF_ERROR(CheckTogether(security.tls_cert, security.tls_key));
  const bool tls = !security.tls_ca.empty();
  if (!tls && !security.tls_cert.empty()) {
    return absl::InvalidArgumentError(
        "--tls-cert is given without --tls-ca, which makes the connection one of TLS");
  }
  if (tls && server.is_unix()) {
    return absl::InvalidArgumentError(
        absl::StrCat(server.ToString(), " never leaves the machine: leave --tls-ca"));
  }
  if (tls) INFLLM_RETURN_IF_ERROR(ReadCertificate(security.tls_ca).status());
  if (!security.tls_cert.empty()) {
    INFLLM_RETURN_IF_ERROR(CheckPair(security.tls_cert, security.tls_key));
  }
  INFLLM_ASSIGN_OR_RETURN(std::unique_ptr<ClientToken> token,
                          ClientToken::Open(security.token_file));
  if (token != nullptr && !tls && !server.is_unix() && !security.insecure) {
    return absl::InvalidArgumentError(
        absl::StrCat("the token would go to ", server.ToString(),
                     " for others to read: give --tls-ca, or allow it with --insecure"));
  }
  const std::string target =
      server.is_unix() ? server.ToString() : absl::StrCat("dns:///", server.ToString());
  const std::shared_ptr<grpc::ChannelCredentials> credentials =
      tls ? TlsCredentialsOf(security) : grpc::InsecureChannelCredentials();
  if (token == nullptr) return grpc::CreateCustomChannel(target, credentials, arguments);
  std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(NewTokenSender(std::move(token)));
  return grpc::experimental::CreateCustomChannelWithInterceptors(target, credentials, arguments,
                                                                 std::move(interceptors));
}

}  // namespace infllm::services
