#include "services/memstore/unary_call.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <string>
#include <thread>

#include "gtest/gtest.h"
#include "infllm/v1/memory_store.grpc.pb.h"
#include "tests/support/temp_dir.h"

namespace infllm::services {
namespace {

namespace pb = infllm::v1;

// A server that allows a client to send whatever it likes, and reads none of it.
class DeafServer {
 public:
  explicit DeafServer(const std::string& path) : listener_(::socket(AF_UNIX, SOCK_STREAM, 0)) {
    sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
    std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
    EXPECT_EQ(::bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(::listen(listener_, 1), 0);
  }
  ~DeafServer() {
    ::close(connection_);
    ::close(listener_);
  }

  void Accept() {
    connection_ = ::accept(listener_, nullptr, nullptr);
    // HTTP/2: SETTINGS with an initial window of 2^31 - 1, and a WINDOW_UPDATE of the connection.
    constexpr unsigned char kFrames[] = {0,    0, 6, 4, 0, 0, 0, 0, 0, 0, 4,    0x7f, 0xff, 0xff,
                                         0xff, 0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7f, 0xff, 0,    0};
    EXPECT_EQ(::write(connection_, kFrames, sizeof(kFrames)),
              static_cast<ssize_t>(sizeof(kFrames)));
  }
  // Returns once so much lies in the socket.
  void WaitForBytes(int bytes) const {
    for (int waiting = 0; waiting < bytes;) {
      ASSERT_EQ(::ioctl(connection_, FIONREAD, &waiting), 0);
      std::this_thread::yield();
    }
  }

 private:
  const int listener_;
  int connection_ = -1;
};

TEST(UnaryCallTest, ACallWhoseMessageIsHalfWrittenEndsWhenItIsCancelledOrItsTimeIsOver) {
  const testing::TempDir dir;
  for (const bool cancelled : {true, false}) {
    const std::string path = dir.file(cancelled ? "a" : "b");
    DeafServer server(path);
    const auto stub = pb::MemoryStore::NewStub(
        grpc::CreateChannel("unix:" + path, grpc::InsecureChannelCredentials()));
    std::atomic<bool> flag = false;
    Cancellation cancellation(&flag);
    std::thread peer([&] {
      server.Accept();
      if (!cancelled) return;
      server.WaitForBytes(1 << 16);  // the socket is full, or nearly
      flag = true;
    });
    pb::AppendRequest request;
    request.mutable_payloads()->assign(size_t{16} << 20, 'x');
    pb::AppendResponse response;
    const grpc::Status status = CallUnary(
        &cancellation, absl::Now() + (cancelled ? absl::Hours(1) : absl::Seconds(1)),
        [&](grpc::ClientContext* context, grpc::CompletionQueue* queue) {
          return stub->AsyncAppend(context, request, queue);
        },
        &response);
    EXPECT_EQ(status.error_code(),
              cancelled ? grpc::StatusCode::CANCELLED : grpc::StatusCode::DEADLINE_EXCEEDED);
    peer.join();
  }
}

}  // namespace
}  // namespace infllm::services
