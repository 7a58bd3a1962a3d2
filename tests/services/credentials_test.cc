// Who may connect, over TCP: certificates, files that are wrong, and what is refused without proof.
#include "services/memstore/credentials.h"

#include <sys/stat.h>

#include <filesystem>
#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "memstore/in_process_store.h"
#include "services/memstore/remote_store.h"
#include "services/memstore/server.h"
#include "tests/memstore/test_blocks.h"
#include "tests/services/test_certificates.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::services {
namespace {

using ::infllm::testing::IsOk;
using ::infllm::testing::StatusIs;
using ::infllm::testing::TempDir;
using ::infllm::testing::TestCa;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr const char* kToken = "a-token-of-32-characters-exactly";

class CredentialsTest : public ::testing::Test {
 protected:
  CredentialsTest() {
    ca_.Issue("server", "", "IP:127.0.0.1,DNS:localhost");
    ca_.Issue("uri", "common", "URI:spiffe://test/a,DNS:b.test");
    ca_.Issue("dns", "common", "DNS:b.test");
    ca_.Issue("cn", "common", "");
  }

  absl::Status Start(const ServerSecurity& security) {
    server_.reset();
    auto server = MemstoreServer::Start({.path = "", .host = "127.0.0.1"}, *store_,
                                        absl::Seconds(10), security);
    if (!server.ok()) return server.status();
    server_ = *std::move(server);
    return absl::OkStatus();
  }
  ServerSecurity Tls() const {
    return {.tls_cert = ca_.path("server.pem"), .tls_key = ca_.path("server.key")};
  }
  ServerSecurity MutualTls() const {
    ServerSecurity security = Tls();
    security.tls_client_ca = ca_.ca();
    return security;
  }
  // Of the client with that certificate.
  ClientSecurity Client(const std::string& name) const {
    return {.tls_ca = ca_.ca(),
            .tls_cert = ca_.path(name + ".pem"),
            .tls_key = ca_.path(name + ".key")};
  }
  absl::StatusOr<std::unique_ptr<RemoteStore>> Connect(
      const ClientSecurity& security, absl::Duration timeout = absl::Seconds(10)) const {
    return ConnectRemoteStore(server_->endpoint().ToString(),
                              {.connect_timeout = timeout, .security = security});
  }
  // Whose a new context of the client's is.
  std::string TenantOf(const ClientSecurity& security) {
    auto client = Connect(security);
    EXPECT_OK(client);
    if (!client.ok()) return "refused";
    const memstore::ContextId id = memstore::NewContextId();
    memstore::ContextOptions options = memstore::Options();
    options.tenant.clear();
    EXPECT_OK((*client)->Create(id, options));
    return store_->Describe(id)->tenant;
  }
  std::string Secret(const std::string& name, const std::string& text, mode_t mode = 0600) const {
    const std::string path = dir_.Write(name, text);
    ::chmod(path.c_str(), mode);
    return path;
  }

  const TempDir dir_;
  const TestCa ca_{dir_.file("ca")};
  const std::unique_ptr<memstore::MemoryStore> store_ =
      memstore::NewInProcessStore({}, memstore::TestBackend(), nullptr).value();
  std::unique_ptr<MemstoreServer> server_;
};

TEST_F(CredentialsTest, TheNameInTheCertificateIsTheTenant) {
  ASSERT_OK(Start(MutualTls()));
  EXPECT_EQ(TenantOf(Client("uri")), "spiffe://test/a");
  EXPECT_EQ(TenantOf(Client("dns")), "b.test");
  EXPECT_EQ(TenantOf(Client("cn")), "common");
}

TEST_F(CredentialsTest, ACertificateMustNameOne) {
  ca_.Issue("two", "common", "URI:spiffe://test/a,URI:spiffe://test/b");
  ca_.Issue("none", "", "");
  ca_.Issue("long", "", "URI:spiffe://test/" + std::string(250, 'x'));
  ASSERT_OK(Start(MutualTls()));
  EXPECT_THAT(Connect(Client("two")),
              StatusIs(absl::StatusCode::kUnauthenticated, HasSubstr("2 URIs")));
  EXPECT_THAT(Connect(Client("none")),
              StatusIs(absl::StatusCode::kUnauthenticated, HasSubstr("names nobody")));
  EXPECT_THAT(Connect(Client("long")), StatusIs(absl::StatusCode::kUnauthenticated,
                                                HasSubstr("has 264 bytes; at most 256")));
}

TEST_F(CredentialsTest, WhoIsNotSignedForIsNotHeard) {
  ASSERT_OK(Start(MutualTls()));
  const auto refused = [&](const ClientSecurity& security) {
    EXPECT_THAT(Connect(security, absl::Milliseconds(300)),
                StatusIs(absl::StatusCode::kUnavailable));
  };
  refused({});
  refused({.tls_ca = ca_.ca()});  // a client without a certificate
  const TestCa other(dir_.file("other"));
  other.Issue("server", "", "IP:127.0.0.1");
  other.Issue("uri", "", "URI:spiffe://test/a");
  ClientSecurity strange = Client("uri");
  strange.tls_cert = other.path("uri.pem");
  strange.tls_key = other.path("uri.key");
  refused(strange);
  // Nor does a client speak to a server that is not what it expects.
  ClientSecurity expecting = Client("uri");
  expecting.tls_ca = other.ca();
  refused(expecting);
  ca_.Issue("elsewhere", "", "DNS:elsewhere.test");
  ServerSecurity named = MutualTls();
  named.tls_cert = ca_.path("elsewhere.pem");
  named.tls_key = ca_.path("elsewhere.key");
  ASSERT_OK(Start(named));
  refused(Client("uri"));
}

TEST_F(CredentialsTest, CertificatesThatChangeAreReadAgain) {
  // Certificate, key and CA in a directory that a link names, as Kubernetes has them.
  const TestCa other(dir_.file("other"));
  other.Issue("server", "", "IP:127.0.0.1");
  other.Issue("uri", "", "URI:spiffe://test/new");
  const std::string link = dir_.file("link");
  std::filesystem::create_directory_symlink(dir_.file("ca"), link);
  ASSERT_OK(Start({.tls_cert = link + "/server.pem",
                   .tls_key = link + "/server.key",
                   .tls_client_ca = link + "/ca.pem"}));
  EXPECT_EQ(TenantOf(Client("uri")), "spiffe://test/a");
  std::filesystem::create_directory_symlink(dir_.file("other"), dir_.file("new"));
  std::filesystem::rename(dir_.file("new"), link);
  const ClientSecurity fresh = {
      .tls_ca = other.ca(), .tls_cert = other.path("uri.pem"), .tls_key = other.path("uri.key")};
  while (!Connect(fresh, absl::Milliseconds(500)).ok()) {  // the test's timeout bounds it
  }
  EXPECT_EQ(TenantOf(fresh), "spiffe://test/new");
  EXPECT_THAT(Connect(Client("uri"), absl::Milliseconds(300)),
              StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(CredentialsTest, TokensOverTls) {
  ServerSecurity security = Tls();
  security.tokens_file = Secret("tokens", std::string("tenant ") + kToken);
  ASSERT_OK(Start(security));
  const std::string token = Secret("token", kToken);
  EXPECT_EQ(TenantOf({.tls_ca = ca_.ca(), .token_file = token}), "tenant");
  EXPECT_THAT(Connect({.tls_ca = ca_.ca()}), StatusIs(absl::StatusCode::kUnauthenticated));
}

TEST_F(CredentialsTest, TcpWithoutProofIsAskedForByName) {
  const std::string tokens = Secret("tokens", std::string("tenant ") + kToken);
  const auto refused = [&](ServerSecurity security, const char* text) {
    EXPECT_THAT(Start(security), StatusIs(absl::StatusCode::kInvalidArgument,
                                          AllOf(HasSubstr(text), HasSubstr("--insecure"))));
    security.insecure = true;
    EXPECT_OK(Start(security));
  };
  refused({}, "read, and delete, everything");
  refused(Tls(), "read, and delete, everything");
  refused({.tokens_file = tokens}, "see the tokens");
  // The last one still runs.
  ClientSecurity client = {.token_file = Secret("token", kToken)};
  EXPECT_THAT(Connect(client),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("for others to read")));
  client.insecure = true;
  EXPECT_EQ(TenantOf(client), "tenant");
}

TEST_F(CredentialsTest, WrongFilesAreNamedAtTheStart) {
  ca_.Issue("expired", "", "IP:127.0.0.1");
  ca_.Expire("expired");
  const std::string tokens = Secret("tokens", std::string("tenant ") + kToken);
  const auto with = [&](auto change) {
    ServerSecurity security = MutualTls();
    change(security);
    return Start(security);
  };
  using Code = absl::StatusCode;
  EXPECT_THAT(with([&](auto& s) { s.tls_key.clear(); }),
              StatusIs(Code::kInvalidArgument, HasSubstr("--tls-cert is given without --tls-key")));
  EXPECT_THAT(with([&](auto& s) { s.tls_cert = s.tls_key = ""; }),
              StatusIs(Code::kInvalidArgument, HasSubstr("--tls-client-ca needs")));
  EXPECT_THAT(with([&](auto& s) { s.tokens_file = tokens; }),
              StatusIs(Code::kInvalidArgument, HasSubstr("both given")));
  EXPECT_THAT(with([&](auto& s) { s.tls_cert = dir_.file("missing"); }),
              StatusIs(Code::kNotFound, HasSubstr(dir_.file("missing"))));
  EXPECT_THAT(with([&](auto& s) { s.tls_client_ca = dir_.file("missing"); }),
              StatusIs(Code::kNotFound, HasSubstr(dir_.file("missing"))));
  EXPECT_THAT(with([&](auto& s) { s.tls_cert = s.tls_key; }),
              StatusIs(Code::kInvalidArgument, HasSubstr("no PEM certificate")));
  EXPECT_THAT(with([&](auto& s) { s.tls_key = Secret("key", "nonsense"); }),
              StatusIs(Code::kInvalidArgument, HasSubstr("no PEM private key")));
  EXPECT_THAT(with([&](auto& s) { s.tls_key = ca_.path("uri.key"); }),
              StatusIs(Code::kFailedPrecondition, HasSubstr("is not that of the certificate")));
  EXPECT_THAT(with([&](auto& s) {
                s.tls_cert = ca_.path("expired.pem");
                s.tls_key = ca_.path("expired.key");
              }),
              StatusIs(Code::kFailedPrecondition, HasSubstr("has expired")));
  ::chmod(ca_.path("server.key").c_str(), 0644);
  EXPECT_THAT(Start(MutualTls()), StatusIs(Code::kFailedPrecondition, HasSubstr("has mode 0644")));
  EXPECT_THAT(MemstoreServer::Start({.path = dir_.file("s")}, *store_, absl::Seconds(10), Tls()),
              StatusIs(Code::kInvalidArgument, HasSubstr("never leaves the machine")));
}

TEST_F(CredentialsTest, WrongTokensAreNamedByTheirLine) {
  const auto refused = [&](const std::string& text, const std::string& expected) {
    const absl::Status status = Start({.tokens_file = Secret("tokens", text), .insecure = true});
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(expected)));
    EXPECT_EQ(status.message().find("token-of-32"), std::string::npos);
  };
  const std::string token = kToken;
  refused("", "has no token");
  refused("# " + token, "has no token");
  refused("\n" + token, "line 2 of " + dir_.file("tokens") + " has 1 words");
  refused("a " + token + " more", "has 3 words");
  refused("a short", "line 1 of " + dir_.file("tokens") + " has a token of 5 bytes");
  refused("a " + token + "\xff", "must have 16 to 512 printable");
  refused("a " + token + "\nb " + token,
          "line 2 of " + dir_.file("tokens") + " has the token of an earlier line");
  refused(std::string(257, 'x') + " " + token, "257");
  for (const mode_t mode : {0604, 0620, 0660, 0644}) {
    EXPECT_THAT(Start({.tokens_file = Secret("tokens", "a " + token, mode), .insecure = true}),
                StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("chmod")));
  }
  EXPECT_OK(Start({.tokens_file = Secret("tokens", "a " + token, 0640), .insecure = true}));
  EXPECT_THAT(Start({.tokens_file = dir_.path(), .insecure = true}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("is not a file")));
}

TEST_F(CredentialsTest, ClientsNameWrongFilesToo) {
  ASSERT_OK(Start(MutualTls()));
  using Code = absl::StatusCode;
  ClientSecurity security = Client("uri");
  security.tls_key = ca_.path("dns.key");
  EXPECT_THAT(Connect(security), StatusIs(Code::kFailedPrecondition, HasSubstr("is not that of")));
  security.tls_key.clear();
  EXPECT_THAT(Connect(security), StatusIs(Code::kInvalidArgument, HasSubstr("without --tls-key")));
  security = Client("uri");
  security.tls_ca.clear();
  EXPECT_THAT(Connect(security), StatusIs(Code::kInvalidArgument, HasSubstr("without --tls-ca")));
  EXPECT_THAT(Connect({.tls_ca = dir_.file("missing")}), StatusIs(Code::kNotFound));
  EXPECT_THAT(Connect({.tls_ca = ca_.ca(), .token_file = Secret("token", "two words")}),
              StatusIs(Code::kInvalidArgument, HasSubstr("has no token")));
}

TEST_F(CredentialsTest, OnlyItsUserReachesAUnixSocket) {
  ASSERT_OK_AND_ASSIGN(const auto server, MemstoreServer::Start({.path = dir_.file("s")}, *store_));
  struct stat info;
  ASSERT_EQ(::stat(dir_.file("s").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 077, 0u);
}

}  // namespace
}  // namespace infllm::services
