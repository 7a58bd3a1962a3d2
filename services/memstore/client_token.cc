#include "services/memstore/client_token.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "services/memstore/token_table.h"

namespace infllm::services {
namespace {

constexpr const char* kVariable = "INFLLM_TOKEN";

class Sender final : public grpc::experimental::Interceptor {
 public:
  explicit Sender(ClientToken& token) : token_(token) {}
  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(
            grpc::experimental::InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
      methods->GetSendInitialMetadata()->emplace("authorization",
                                                 absl::StrCat("Bearer ", token_.Get()));
    }
    methods->Proceed();
  }

 private:
  ClientToken& token_;
};

class SenderFactory final : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  explicit SenderFactory(std::unique_ptr<ClientToken> token) : token_(std::move(token)) {}
  grpc::experimental::Interceptor* CreateClientInterceptor(
      grpc::experimental::ClientRpcInfo*) override {
    return new Sender(*token_);
  }

 private:
  const std::unique_ptr<ClientToken> token_;
};

}  // namespace

absl::StatusOr<std::string> ClientToken::Parse(const std::string& where, const std::string& text) {
  std::string token(absl::StripAsciiWhitespace(text));
  if (token.size() >= TokenTable::kMinTokenBytes && token.size() <= TokenTable::kMaxTokenBytes &&
      std::ranges::all_of(token, absl::ascii_isgraph)) {
    return token;
  }
  return absl::InvalidArgumentError(
      absl::StrCat(where, " has no token: one has ", TokenTable::kMinTokenBytes, " to ",
                   TokenTable::kMaxTokenBytes, " printable ASCII characters and stands alone"));
}

absl::StatusOr<std::unique_ptr<ClientToken>> ClientToken::Open(const std::string& path) {
  std::unique_ptr<ClientToken> token(new ClientToken(path));
  const std::lock_guard lock(token->mutex_);
  if (path.empty()) {
    const char* const variable = std::getenv(kVariable);
    if (variable == nullptr || *variable == '\0') return nullptr;
    INFLLM_ASSIGN_OR_RETURN(token->token_, Parse(kVariable, variable));
  } else {
    INFLLM_ASSIGN_OR_RETURN(const std::string text, token->file_.Read());
    INFLLM_ASSIGN_OR_RETURN(token->token_, Parse(path, text));
  }
  return token;
}

std::string ClientToken::Get() {
  const std::lock_guard lock(mutex_);
  if (!file_.path().empty() && file_.HasChanged()) {
    const absl::StatusOr<std::string> text = file_.Read();
    if (text.ok()) {
      absl::StatusOr<std::string> token = Parse(file_.path(), *text);
      if (token.ok()) token_ = *std::move(token);
    }
  }
  return token_;
}

std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface> NewTokenSender(
    std::unique_ptr<ClientToken> token) {
  return std::make_unique<SenderFactory>(std::move(token));
}

}  // namespace infllm::services
