// What clients can ask of a server at most, and that it goes on for the others.
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <latch>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "infllm/v1/memory_store.grpc.pb.h"
#include "services/memstore/call_threads.h"
#include "services/memstore/remote_store.h"
#include "services/memstore/request.h"
#include "services/memstore/server.h"
#include "services/memstore/wire.h"
#include "tests/services/puppet_store.h"
#include "tests/services/raw_client.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::services {
namespace {

namespace pb = infllm::v1;
using ::infllm::testing::CallRaw;
using ::infllm::testing::CheckHealth;
using ::infllm::testing::IsOk;
using ::infllm::testing::kNotServing;
using ::infllm::testing::kServing;
using ::infllm::testing::OwnedBlock;
using ::infllm::testing::PuppetStore;
using ::infllm::testing::RawAnswer;
using ::infllm::testing::StatusIs;
using ::infllm::testing::TempDir;
using memstore::ContextId;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr const char* kService = "infllm.v1.MemoryStore";
// 64 KiB per block.
constexpr memstore::Geometry kGeometry = {.layers = 1,
                                          .q_heads = 2,
                                          .kv_heads = 2,
                                          .head_dim = 64,
                                          .block_tokens = 64,
                                          .dtype = kernels::DType::kF32};
constexpr ContextId kContext{.hi = 1, .lo = 2};

class ServerLimitsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    puppet_.create = [](auto&&...) { return absl::OkStatus(); };
    puppet_.select = [](const memstore::SelectRequest& request) {
      return std::vector<memstore::Selection>(request.queries.size());
    };
    auto server = MemstoreServer::Start({.path = dir_.file("s")}, puppet_);
    ASSERT_OK(server);
    server_ = *std::move(server);
  }

  // Each has a connection of its own.
  std::shared_ptr<grpc::Channel> NewChannel(grpc::ChannelArguments arguments = {}) const {
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetMaxSendMessageSize(-1);
    return grpc::CreateCustomChannel(server_->endpoint().ToString(),
                                     grpc::InsecureChannelCredentials(), arguments);
  }
  std::unique_ptr<RemoteStore> Connect() {
    auto store = ConnectRemoteStore(server_->endpoint().ToString(),
                                    {.retry = {.unavailable_patience = absl::ZeroDuration(),
                                               .exhausted_patience = absl::ZeroDuration(),
                                               .damaged_patience = absl::ZeroDuration()}});
    EXPECT_OK(store);
    EXPECT_OK((*store)->Create(kContext, {.geometry = kGeometry}));
    return *std::move(store);
  }
  absl::Status Select(RemoteStore& store) const {
    const memstore::SelectQuery queries[] = {{.context = kContext, .query = query_}};
    return store.Select({.queries = queries}).status();
  }

  const TempDir dir_;
  PuppetStore puppet_;
  std::unique_ptr<MemstoreServer> server_;
  const std::vector<float> query_ = std::vector<float>(kGeometry.query_floats(), 1.0f);
};

TEST_F(ServerLimitsTest, CompressedMessagesAreRefused) {
  pb::DescribeRequest request;
  request.set_context(std::string(60'000, 'x'));
  for (const auto algorithm : {GRPC_COMPRESS_GZIP, GRPC_COMPRESS_DEFLATE, GRPC_COMPRESS_NONE}) {
    grpc::ClientContext context;
    context.set_compression_algorithm(algorithm);
    pb::DescribeResponse response;
    const grpc::Status status =
        pb::MemoryStore::NewStub(NewChannel())->Describe(&context, request, &response);
    EXPECT_EQ(status.error_code(), algorithm == GRPC_COMPRESS_NONE
                                       ? grpc::StatusCode::INVALID_ARGUMENT
                                       : grpc::StatusCode::UNIMPLEMENTED)
        << status.error_message();
  }
}

// Two bytes each of a field that there is not, of which protobuf keeps 16 and more. Every call must
// refuse them before.
TEST_F(ServerLimitsTest, NoCallUnpacksMoreThanItMayHave) {
  const auto channel = NewChannel();
  const google::protobuf::ServiceDescriptor& service =
      *pb::SelectRequest::descriptor()->file()->FindServiceByName("MemoryStore");
  for (int i = 0; i < service.method_count(); ++i) {
    const google::protobuf::MethodDescriptor& method = *service.method(i);
    SCOPED_TRACE(method.name());
    std::string bomb;
    const int64_t limit = MaxRequestBytes(*method.input_type());
    for (int64_t unpacked = 0; unpacked <= limit; unpacked += 64) bomb += "\x78\x01";  // field 15
    const std::string path = std::string("/") + kService + "/" + method.name();
    RawAnswer answer = CallRaw(channel, path, bomb);
    EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_THAT(answer.status.error_message(),
                AllOf(HasSubstr("unpacks to more than"), HasSubstr(std::to_string(limit))));
    bomb.resize(bomb.size() / 2 / 2 * 2);  // the limit is no smaller than it says
    answer = CallRaw(channel, path, bomb);
    EXPECT_NE(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED)
        << answer.status.error_message();
    answer = CallRaw(channel, path, "\x0a\x05x");
    EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::ABORTED) << "malformed";
    if (limit < wire::kMaxMessageBytes) {
      answer = CallRaw(channel, path, std::string(static_cast<size_t>(limit) + 1, '\0'));
      EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    }
  }
}

TEST_F(ServerLimitsTest, ListsOfBlocksAreBoundedBeforeTheyAreUnpacked) {
  const auto channel = NewChannel();
  const auto refused = [&](const pb::SelectRequest& request) {
    const RawAnswer answer =
        CallRaw(channel, "/infllm.v1.MemoryStore/Select", request.SerializeAsString());
    EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_THAT(answer.status.error_message(), HasSubstr("SelectRequest"));
  };
  pb::SelectRequest large;  // 60 MB, which would unpack to eight times that
  large.add_queries()->mutable_have()->Resize(60'000'000, 1);
  refused(large);
  pb::SelectRequest packed;  // small, until it is unpacked
  packed.add_queries()->mutable_have()->Resize(2'000'000, 1);
  EXPECT_LT(packed.ByteSizeLong(), 3'000'000u);
  refused(packed);
  pb::SelectRequest empty;  // two bytes for each query
  for (int i = 0; i < 200'000; ++i) empty.add_queries();
  refused(empty);
  const RawAnswer fetch = [&] {
    pb::FetchRequest request;
    request.mutable_blocks()->Resize(500'000, 1);
    return CallRaw(channel, "/infllm.v1.MemoryStore/Fetch", request.SerializeAsString());
  }();
  EXPECT_EQ(fetch.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(ServerLimitsTest, AThousandIdleLeasesAndConnectionsStarveNobody) {
  rlimit files;
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &files), 0);
  if (files.rlim_cur < 4096) {
    files.rlim_cur = std::min<rlim_t>(files.rlim_max, 4096);
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &files), 0);
  }
  constexpr int kChannels = 10, kLeases = 100, kSockets = 500;
  struct Held {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<pb::LeaseResponse>> reader;
  };
  std::vector<std::unique_ptr<pb::MemoryStore::Stub>> stubs;
  std::vector<std::unique_ptr<Held>> leases;
  for (int c = 0; c < kChannels; ++c) {
    stubs.push_back(pb::MemoryStore::NewStub(NewChannel()));
    for (int i = 0; i < kLeases; ++i) {
      Held& held = *leases.emplace_back(std::make_unique<Held>());
      pb::LeaseRequest request;
      request.set_lease(wire::ToProto(memstore::NewContextId()));
      held.reader = stubs.back()->Lease(&held.context, request);
    }
  }
  for (const auto& held : leases) {
    pb::LeaseResponse response;
    ASSERT_TRUE(held->reader->Read(&response));
  }
  std::vector<int> sockets;  // that never say a word
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, dir_.file("s").data(), dir_.file("s").size());
  for (int i = 0; i < kSockets; ++i) {
    sockets.push_back(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(
        ::connect(sockets.back(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  }
  const auto store = Connect();
  EXPECT_OK(Select(*store));
  EXPECT_EQ(CheckHealth(NewChannel(), kService), kServing);
  for (const int socket : sockets) ::close(socket);
  for (const auto& held : leases) held->context.TryCancel();
  for (const auto& held : leases) held->reader->Finish();
}

// More than there are threads for calls.
TEST_F(ServerLimitsTest, ClientsThatDoNotReadStarveNobody) {
  const memstore::BlockHandle block = OwnedBlock(std::vector<std::byte>(kGeometry.payload_bytes()));
  puppet_.fetch = [&](const ContextId&, int32_t, std::span<const int64_t> blocks) {
    return PuppetStore::Blocks(blocks.size(), block);
  };
  const auto store = Connect();
  pb::FetchRequest request;
  request.set_context(wire::ToProto(kContext));
  request.mutable_blocks()->Resize(16, 1);
  struct Unread {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<pb::FetchResponse>> reader;
  };
  std::vector<std::unique_ptr<pb::MemoryStore::Stub>> stubs;
  std::vector<std::unique_ptr<Unread>> calls;
  for (int c = 0; c < 3; ++c) {
    stubs.push_back(pb::MemoryStore::NewStub(NewChannel()));
    for (int i = 0; i < 100; ++i) {
      Unread& call = *calls.emplace_back(std::make_unique<Unread>());
      call.reader = stubs.back()->Fetch(&call.context, request);
      call.reader->WaitForInitialMetadata();
    }
  }
  EXPECT_OK(Select(*store));
  for (const auto& call : calls) call->context.TryCancel();
  for (const auto& call : calls) call->reader->Finish();
}

TEST_F(ServerLimitsTest, AConnectionHasSoManyCallsAtATime) {
  const auto stub = pb::MemoryStore::NewStub(NewChannel());
  constexpr int kMost = 256;
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<pb::LeaseResponse>>> leases;
  pb::LeaseRequest request;
  request.set_lease(wire::ToProto(kContext));
  pb::LeaseResponse response;
  for (int i = 0; i < kMost; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    leases.push_back(stub->Lease(contexts.back().get(), request));
    ASSERT_TRUE(leases.back()->Read(&response));
  }
  {
    grpc::ClientContext one_more;
    one_more.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
    const auto lease = stub->Lease(&one_more, request);
    EXPECT_FALSE(lease->Read(&response));
    EXPECT_EQ(lease->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  }
  contexts[0]->TryCancel();
  leases[0]->Finish();
  grpc::ClientContext next;
  const auto lease = stub->Lease(&next, request);
  EXPECT_TRUE(lease->Read(&response));
  next.TryCancel();
  lease->Finish();
  for (const auto& context : contexts) context->TryCancel();
  for (size_t i = 1; i < leases.size(); ++i) leases[i]->Finish();
}

TEST_F(ServerLimitsTest, AStoreThatCannotWriteIsNotHealthy) {
  const auto channel = NewChannel();
  const auto store = Connect();
  const auto append = [&] { return store->Append(kContext, 0, 0, {}); };
  EXPECT_EQ(CheckHealth(channel, kService), kServing);
  puppet_.append = [](auto&&...) { return absl::ResourceExhaustedError("full"); };
  EXPECT_THAT(append(), StatusIs(absl::StatusCode::kResourceExhausted));
  puppet_.append = [](auto&&...) { return absl::UnavailableError("the disk fails"); };
  EXPECT_THAT(append(), StatusIs(absl::StatusCode::kUnavailable));
  while (CheckHealth(channel, kService) != kNotServing) {  // the test's timeout bounds it
  }
  EXPECT_EQ(CheckHealth(channel, ""), kServing) << "the process itself is well";
  puppet_.append = [](auto&&...) { return absl::OkStatus(); };
  EXPECT_OK(append());
  while (CheckHealth(channel, kService) != kServing) {
  }
}

TEST_F(ServerLimitsTest, CallsThatWaitLongForAThreadAreNotHealthy) {
  const auto channel = NewChannel();
  const auto store = Connect();
  std::latch release(1);
  puppet_.drop = [&](auto&&...) {
    release.wait();
    return absl::OkStatus();
  };
  pb::DropRequest request;
  request.set_context(wire::ToProto(kContext));
  struct Dropping {
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    grpc::Status status;
    pb::DropResponse response;
    std::unique_ptr<grpc::ClientAsyncResponseReader<pb::DropResponse>> reader;
  };
  const auto first = pb::MemoryStore::NewStub(NewChannel());
  const auto second = pb::MemoryStore::NewStub(NewChannel());
  std::vector<std::unique_ptr<Dropping>> calls;
  for (int i = 0; i < 300; ++i) {
    Dropping& call = *calls.emplace_back(std::make_unique<Dropping>());
    call.reader = (i < 150 ? first : second)->AsyncDrop(&call.context, request, &call.queue);
    call.reader->Finish(&call.response, &call.status, nullptr);
  }
  while (CheckHealth(channel, kService) != kNotServing) {  // the test's timeout bounds it
  }
  EXPECT_EQ(CheckHealth(channel, ""), kServing);
  release.count_down();
  for (const auto& call : calls) {
    void* tag = nullptr;
    bool ok = false;
    ASSERT_TRUE(call->queue.Next(&tag, &ok));
    EXPECT_TRUE(call->status.ok());
  }
  while (CheckHealth(channel, kService) != kServing) {
  }
}

TEST(CallThreadsTest, RefusesWhatWouldWaitBehindTooMany) {
  std::latch running(2), release(1);
  std::atomic<int> done = 0;
  {
    CallThreads threads(2, 3);
    const auto work = [&] {
      running.count_down();
      release.wait();
      ++done;
    };
    EXPECT_TRUE(threads.Begin(work));
    EXPECT_TRUE(threads.Begin(work));
    running.wait();
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(threads.Begin([&] { ++done; }));
    EXPECT_FALSE(threads.Begin([&] { ++done; }));
    threads.Continue([&] { ++done; });
    EXPECT_GT(threads.LongestWait(), absl::ZeroDuration());
    release.count_down();
    while (done < 6) std::this_thread::yield();
    EXPECT_EQ(threads.LongestWait(), absl::ZeroDuration());
  }
  EXPECT_EQ(done, 6);
}

}  // namespace
}  // namespace infllm::services
