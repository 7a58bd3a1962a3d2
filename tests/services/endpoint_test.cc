#include "services/common/endpoint.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::services {
namespace {

using ::infllm::testing::StatusIs;
using ::infllm::testing::TempDir;
using ::testing::HasSubstr;

// A socket at `path` that listens as long as the object lives; its file stays.
class UnixListener {
 public:
  explicit UnixListener(const std::string& path) : fd_(::socket(AF_UNIX, SOCK_STREAM, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
    EXPECT_EQ(::bind(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(::listen(fd_, 1), 0);
  }
  ~UnixListener() { ::close(fd_); }

 private:
  int fd_;
};

TEST(ParseEndpointTest, ReadsAllForms) {
  ASSERT_OK_AND_ASSIGN(const Endpoint tcp, ParseEndpoint("localhost:7077"));
  EXPECT_FALSE(tcp.is_unix());
  EXPECT_EQ(tcp.host, "localhost");
  EXPECT_EQ(tcp.port, 7077);
  ASSERT_OK_AND_ASSIGN(const Endpoint ipv6, ParseEndpoint("[::1]:0"));
  EXPECT_EQ(ipv6.host, "::1");
  EXPECT_EQ(ipv6.ToString(), "[::1]:0");
  ASSERT_OK_AND_ASSIGN(const Endpoint unix_socket, ParseEndpoint("unix:/run/x.sock"));
  EXPECT_TRUE(unix_socket.is_unix());
  EXPECT_EQ(unix_socket.path, "/run/x.sock");
  EXPECT_EQ(unix_socket.ToString(), "unix:/run/x.sock");
}

TEST(ParseEndpointTest, RefusesEverythingElse) {
  for (const std::string text :
       {"", "localhost", ":7077", "localhost:", "localhost:65536", "localhost:-1", "localhost:70x",
        "::1:7077", "[::1]7077", "[::1", "[]:1", "a b:1", "http://host:1", "unix:"}) {
    SCOPED_TRACE(text);
    EXPECT_THAT(ParseEndpoint(text), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(text)));
  }
  EXPECT_THAT(ParseEndpoint("unix:/" + std::string(200, 'x')),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("201 bytes; 1 to 107")));
}

TEST(PrepareToListenTest, RemovesAStaleSocketAndKeepsALiveOne) {
  const TempDir dir;
  const Endpoint endpoint{.path = dir.file("s")};
  EXPECT_OK(PrepareToListen(endpoint));
  {
    const UnixListener live(endpoint.path);
    EXPECT_THAT(PrepareToListen(endpoint),
                StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("in use")));
    EXPECT_TRUE(std::filesystem::exists(endpoint.path));
  }
  ASSERT_TRUE(std::filesystem::exists(endpoint.path));
  EXPECT_OK(PrepareToListen(endpoint));
  EXPECT_FALSE(std::filesystem::exists(endpoint.path));
}

TEST(PrepareToListenTest, NeverRemovesWhatIsNoSocket) {
  const TempDir dir;
  const Endpoint endpoint{.path = dir.Write("precious", "bytes")};
  EXPECT_THAT(PrepareToListen(endpoint),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("not a socket")));
  EXPECT_TRUE(std::filesystem::exists(endpoint.path));
}

TEST(PrepareToListenTest, NamesAMissingDirectoryAndAnUnknownHost) {
  const TempDir dir;
  EXPECT_THAT(PrepareToListen({.path = dir.file("missing/s")}),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("No such file or directory")));
  EXPECT_THAT(PrepareToListen({.path = "", .host = "999.0.0.1", .port = 1}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("999.0.0.1:1")));
}

}  // namespace
}  // namespace infllm::services
