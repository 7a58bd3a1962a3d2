#include "services/memstore/identity.h"

#include <grpc/grpc_security_constants.h>
#include <grpcpp/security/auth_context.h>
#include <grpcpp/server_context.h>

#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "memstore/limits.h"
#include "services/common/errors.h"
#include "services/memstore/token_table.h"

namespace infllm::services {
namespace {

std::string_view View(const grpc::string_ref& text) { return {text.data(), text.size()}; }

class Trusting final : public Authenticator {
 public:
  absl::StatusOr<Caller> CallerOf(const grpc::ServerContextBase&) const override {
    return Caller();
  }
};

class ByCertificate final : public Authenticator {
 public:
  absl::StatusOr<Caller> CallerOf(const grpc::ServerContextBase& call) const override {
    const std::shared_ptr<const grpc::AuthContext> proof = call.auth_context();
    if (proof == nullptr || !proof->IsPeerAuthenticated()) {
      return error::Unauthenticated("the connection has no client certificate");
    }
    constexpr struct {
      const char* property;
      const char* name;
    } kKinds[] = {{GRPC_PEER_URI_PROPERTY_NAME, "URIs"},
                  {GRPC_PEER_DNS_PROPERTY_NAME, "DNS names"},
                  {GRPC_X509_CN_PROPERTY_NAME, "common names"}};
    for (const auto& kind : kKinds) {
      std::vector<grpc::string_ref> names = proof->FindPropertyValues(kind.property);
      std::erase_if(names, [](const grpc::string_ref& name) { return name.empty(); });
      if (names.empty()) continue;
      if (names.size() > 1) {
        return error::Unauthenticated(absl::StrCat("the client certificate has ", names.size(), " ",
                                                   kind.name, "; the tenant must be one"));
      }
      const std::string_view name = View(names[0]);
      if (name.size() > memstore::limits::kMaxTenantBytes) {
        return error::Unauthenticated(
            absl::StrCat("the name in the client certificate, the tenant, has ", name.size(),
                         " bytes; at most ", memstore::limits::kMaxTenantBytes, " are possible"));
      }
      return Caller{.tenant = std::string(name), .one_of_many = true};
    }
    return error::Unauthenticated(
        "the client certificate names nobody: it needs a URI, a DNS name or a common name");
  }
};

class ByToken final : public Authenticator {
 public:
  explicit ByToken(std::unique_ptr<TokenTable> tokens) : tokens_(std::move(tokens)) {}

  absl::StatusOr<Caller> CallerOf(const grpc::ServerContextBase& call) const override {
    const auto& metadata = call.client_metadata();
    const auto [first, last] = metadata.equal_range("authorization");
    if (first == last) {
      return error::Unauthenticated(
          "this memory store wants a token: give it with --token-file or INFLLM_TOKEN");
    }
    constexpr std::string_view kScheme = "Bearer ";
    const std::string_view value = View(first->second);
    if (std::next(first) != last || !value.starts_with(kScheme)) {
      return error::Unauthenticated("the authorization of the call is not one bearer token");
    }
    const std::optional<std::string> tenant = tokens_->TenantOf(value.substr(kScheme.size()));
    if (!tenant.has_value()) {
      return error::Unauthenticated("the token is none that this memory store knows");
    }
    return Caller{.tenant = *tenant, .one_of_many = true};
  }

 private:
  const std::unique_ptr<TokenTable> tokens_;
};

}  // namespace

std::unique_ptr<Authenticator> NewTrustingAuthenticator() { return std::make_unique<Trusting>(); }

std::unique_ptr<Authenticator> NewCertificateAuthenticator() {
  return std::make_unique<ByCertificate>();
}

std::unique_ptr<Authenticator> NewTokenAuthenticator(std::unique_ptr<TokenTable> tokens) {
  return std::make_unique<ByToken>(std::move(tokens));
}

}  // namespace infllm::services
