// What a client sees when the other end is slow, stops, is large, or is something else. That a
// remote store behaves like one in process is in remote_store_contract_test.cc.
#include "services/memstore/remote_store.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <future>
#include <latch>
#include <limits>
#include <mutex>
#include <numeric>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "infllm/v1/memory_store.grpc.pb.h"
#include "services/memstore/server.h"
#include "services/memstore/wire.h"
#include "tests/services/fake_retry_clock.h"
#include "tests/services/puppet_store.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::services {
namespace {

namespace pb = infllm::v1;
using ::infllm::testing::FakeRetryClock;
using ::infllm::testing::OwnedBlock;
using ::infllm::testing::PuppetStore;
using ::infllm::testing::StatusIs;
using ::infllm::testing::TempDir;
using memstore::ContextId;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;

// 512 KiB per block.
constexpr memstore::Geometry kGeometry = {.layers = 2,
                                          .q_heads = 8,
                                          .kv_heads = 4,
                                          .head_dim = 128,
                                          .block_tokens = 128,
                                          .dtype = kernels::DType::kF32};
constexpr ContextId kContext{.hi = 41, .lo = 42};
constexpr char kRequest[] = " \\(request [0-9a-f]{16}\\)";

class RemoteStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    puppet_.create = [](auto&&...) { return absl::OkStatus(); };
    auto server = MemstoreServer::Start({.path = dir_.file("s")}, puppet_);
    ASSERT_OK(server);
    server_ = *std::move(server);
  }

  std::unique_ptr<RemoteStore> Connect(absl::Duration call_timeout = absl::Seconds(60)) {
    auto store = ConnectRemoteStore(target(), {.call_timeout = call_timeout, .clock = &clock_});
    EXPECT_OK(store);
    return *std::move(store);
  }
  // One query of kContext.
  absl::StatusOr<memstore::Selection> Select(memstore::MemoryStore& store, int32_t layer, int32_t k,
                                             std::span<const int64_t> have = {}) {
    const memstore::SelectQuery query = {
        .context = kContext, .query = query_, .k = k, .have = have};
    auto selections = store.Select({.layer = layer, .queries = {&query, 1}});
    if (!selections.ok()) return selections.status();
    if (!(*selections)[0].status.ok()) return (*selections)[0].status;
    return (*selections)[0];
  }
  // Waits for all handlers: they use what the test owns.
  void Stop() { server_->Shutdown(absl::Minutes(5)); }
  std::string target() const { return server_->endpoint().ToString(); }

  const TempDir dir_;
  FakeRetryClock clock_;
  PuppetStore puppet_;
  std::unique_ptr<MemstoreServer> server_;
  const std::vector<float> query_ = std::vector<float>(kGeometry.query_floats(), 1.0f);
};

TEST_F(RemoteStoreTest, NobodyListening) {
  EXPECT_THAT(
      ConnectRemoteStore("unix:" + dir_.file("other"), {.connect_timeout = absl::Milliseconds(50)}),
      StatusIs(absl::StatusCode::kUnavailable,
               AllOf(HasSubstr(dir_.file("other")), HasSubstr("No such file"),
                     HasSubstr("is infllm-memstore running there?"))));
  EXPECT_THAT(ConnectRemoteStore("nonsense", RemoteStoreOptions()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("nonsense")));
}

TEST_F(RemoteStoreTest, ListenerThatNeverAnswersIsGivenUpInTime) {
  const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = dir_.file("mute");
  std::memcpy(address.sun_path, path.data(), path.size());
  ASSERT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(::listen(fd, 1), 0);
  EXPECT_THAT(ConnectRemoteStore("unix:" + path, {.connect_timeout = absl::Milliseconds(50)}),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("no answer within 0.05 s")));
  ::close(fd);
}

TEST_F(RemoteStoreTest, AnotherGrpcServerIsNamedAsSuch) {
  pb::MemoryStore::Service nothing;  // answers UNIMPLEMENTED to everything
  grpc::ServerBuilder builder;
  const std::string address = "unix:" + dir_.file("grpc");
  builder.AddListeningPort(address, grpc::InsecureServerCredentials());
  builder.RegisterService(&nothing);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  EXPECT_THAT(ConnectRemoteStore(address, RemoteStoreOptions()),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("not an infllm-memstore")));
}

TEST_F(RemoteStoreTest, ErrorsOfTheStoreArriveWithTheRequestTheyAreOf) {
  const absl::Status errors[] = {
      absl::NotFoundError("a"),         absl::OutOfRangeError("b"),
      absl::InvalidArgumentError("c"),  absl::AlreadyExistsError("d"),
      absl::DataLossError("e"),         absl::FailedPreconditionError("f"),
      absl::ResourceExhaustedError("g")};
  const auto store = Connect();
  ASSERT_OK(store->Create(kContext, {.geometry = kGeometry}));
  for (const absl::Status& error : errors) {
    puppet_.select = [&](auto&&...) { return error; };
    puppet_.fetch = [&](auto&&...) { return error; };
    puppet_.append = [&](auto&&...) { return error; };
    const std::vector<int64_t> blocks = {0};
    const auto is_error =
        StatusIs(error.code(), MatchesRegex(std::string(error.message()) + kRequest));
    EXPECT_THAT(Select(*store, 0, 1).status(), is_error);
    EXPECT_THAT(store->Fetch(kContext, 0, blocks).status(), is_error);
    EXPECT_THAT(store->Append(kContext, 0, 0, {}), is_error);
  }
}

TEST_F(RemoteStoreTest, ServerThatStopsMidWayIsUnavailableAtOnce) {
  std::latch running(1), finish(1);
  puppet_.select = [&](auto&&...) -> absl::StatusOr<std::vector<memstore::Selection>> {
    running.count_down();
    finish.wait();  // beyond the point where the client has given up
    return std::vector<memstore::Selection>(1);
  };
  const auto store = Connect();
  ASSERT_OK(store->Create(kContext, {.geometry = kGeometry}));
  auto selection = std::async(std::launch::async, [&] { return Select(*store, 0, 1).status(); });
  running.wait();
  std::thread stop([&] { server_->Shutdown(absl::ZeroDuration()); });
  EXPECT_THAT(selection.get(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr(target())));
  finish.count_down();
  stop.join();
  EXPECT_THAT(store->Stats(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr(target())));
}

TEST_F(RemoteStoreTest, ShutdownLetsRunningCallsFinish) {
  const auto stub =
      pb::MemoryStore::NewStub(grpc::CreateChannel(target(), grpc::InsecureChannelCredentials()));
  std::latch running(1);
  // Runs on while the server shuts down: until it has refused many other calls, itself, for as long
  // as it serves this one its connections stay.
  puppet_.select = [&](auto&&...) -> absl::StatusOr<std::vector<memstore::Selection>> {
    running.count_down();
    const absl::Time give_up = absl::Now() + absl::Seconds(30);
    for (int refused = 0; refused < 300;) {
      if (absl::Now() > give_up) return absl::InternalError("the server takes calls for ever");
      grpc::ClientContext context;
      pb::StatsResponse response;
      const grpc::Status status = stub->Stats(&context, pb::StatsRequest(), &response);
      if (status.ok()) continue;
      if (status.error_message() != "the server is stopping") {
        return absl::InternalError("the server did not wait: " + status.error_message());
      }
      ++refused;
    }
    return std::vector<memstore::Selection>(1);
  };
  const auto store = Connect();
  ASSERT_OK(store->Create(kContext, {.geometry = kGeometry}));
  auto selection = std::async(std::launch::async, [&] { return Select(*store, 0, 1).status(); });
  running.wait();
  server_->Shutdown(absl::Seconds(60));
  EXPECT_OK(selection.get());
}

TEST_F(RemoteStoreTest, RestartedServerIsFoundAgain) {
  const auto store = Connect();
  server_->Shutdown(absl::ZeroDuration());
  EXPECT_THAT(store->Stats(), StatusIs(absl::StatusCode::kUnavailable));
  auto server = MemstoreServer::Start({.path = dir_.file("s")}, puppet_);
  ASSERT_OK(server);
  // The client tries again by itself, within a second; until then it says so.
  absl::Status status;
  for (const absl::Time give_up = absl::Now() + absl::Seconds(30); absl::Now() < give_up;) {
    status = store->Stats().status();
    if (status.ok()) break;
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnavailable));
  }
  EXPECT_OK(status);
  EXPECT_THAT(store->Fetch(kContext, 0, {}), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(RemoteStoreTest, SlowCallEndsAtItsTimeout) {
  std::latch finish(1);
  puppet_.fetch = [&](auto&&...) -> absl::StatusOr<PuppetStore::Blocks> {
    finish.wait();
    return absl::InternalError("too late");
  };
  const auto store = Connect(absl::Milliseconds(100));
  ASSERT_OK(store->Create(kContext, {.geometry = kGeometry}));
  const std::vector<int64_t> blocks = {0};
  EXPECT_THAT(store->Fetch(kContext, 0, blocks),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("Fetch within 0.1 s")));
  finish.count_down();
  Stop();
}

TEST_F(RemoteStoreTest, LargeBatchesTravelInBoundedMessages) {
  // 20 MiB in all, so five messages each way.
  constexpr int64_t kBlocks = 40;
  const size_t block_bytes = kGeometry.payload_bytes();
  std::vector<std::byte> payloads(kBlocks * block_bytes);
  for (size_t i = 0; i < payloads.size(); ++i) payloads[i] = std::byte((i * 2654435761u) >> 24);
  std::mutex mutex;
  std::vector<std::byte> stored;
  size_t largest = 0;
  puppet_.append = [&](const ContextId&, int32_t, int64_t first, PuppetStore::Payloads part) {
    const std::lock_guard lock(mutex);
    EXPECT_EQ(static_cast<size_t>(first) * block_bytes, stored.size());
    for (const auto payload : part) stored.insert(stored.end(), payload.begin(), payload.end());
    largest = std::max(largest, part.size() * block_bytes);
    return absl::OkStatus();
  };
  const auto block = [&](int64_t index) {
    return std::span<const std::byte>(stored).subspan(static_cast<size_t>(index) * block_bytes,
                                                      block_bytes);
  };
  puppet_.fetch = [&](const ContextId&, int32_t, std::span<const int64_t> blocks) {
    PuppetStore::Blocks handles;
    for (const int64_t index : blocks) handles.emplace_back(block(index), nullptr);
    return handles;
  };
  puppet_.select = [&](const memstore::SelectRequest& request) {
    std::vector<memstore::Selection> selections(1);
    const std::span<const int64_t> have = request.queries[0].have;
    for (int64_t i = 0; i < kBlocks; ++i) {
      selections[0].blocks.push_back({.index = i, .score = 1});
      if (!std::binary_search(have.begin(), have.end(), i)) {
        selections[0].blocks.back().block = memstore::BlockHandle(block(i), nullptr);
      }
    }
    return selections;
  };
  const auto store = Connect();
  ASSERT_OK(store->Create(kContext, {.geometry = kGeometry}));
  std::vector<std::span<const std::byte>> parts;
  for (int64_t i = 0; i < kBlocks; ++i) {
    parts.push_back(std::span(payloads).subspan(static_cast<size_t>(i) * block_bytes, block_bytes));
  }
  ASSERT_OK(store->Append(kContext, 1, 0, parts));
  {
    const std::lock_guard lock(mutex);
    EXPECT_EQ(stored, payloads);
    EXPECT_LE(largest, wire::kTargetMessageBytes);
  }

  std::vector<int64_t> all(kBlocks);
  std::iota(all.rbegin(), all.rend(), 0);  // in an order of the caller's
  ASSERT_OK_AND_ASSIGN(const PuppetStore::Blocks fetched, store->Fetch(kContext, 1, all));
  ASSERT_EQ(fetched.size(), all.size());
  for (int64_t i = 0; i < kBlocks; ++i) {
    EXPECT_TRUE(std::ranges::equal(fetched[static_cast<size_t>(i)].payload(), block(all[i])));
  }
  const std::vector<int64_t> have = {0, 7, 39};
  ASSERT_OK_AND_ASSIGN(const memstore::Selection selection, Select(*store, 1, kBlocks, have));
  ASSERT_EQ(selection.blocks.size(), all.size());
  for (const memstore::SelectedBlock& selected : selection.blocks) {
    const bool had = std::ranges::binary_search(have, selected.index);
    EXPECT_EQ(static_cast<bool>(selected.block), !had);
    EXPECT_TRUE(had || std::ranges::equal(selected.block.payload(), block(selected.index)));
  }
  Stop();
}

// A daemon of another version, say. Its checksum is right.
TEST_F(RemoteStoreTest, AGeometryOutsideItsLimitsIsRefused) {
  struct Describer final : pb::MemoryStore::Service {
    grpc::Status Describe(grpc::ServerContext*, const pb::DescribeRequest*,
                          pb::DescribeResponse* response) override {
      const std::lock_guard lock(mutex_);
      *response->mutable_geometry() = geometry_;
      response->set_crc32c(wire::DescribeChecksum(kContext, *response));
      return grpc::Status::OK;
    }
    grpc::Status Stats(grpc::ServerContext*, const pb::StatsRequest*, pb::StatsResponse*) override {
      return grpc::Status::OK;
    }
    void set_geometry(const pb::Geometry& geometry) {
      const std::lock_guard lock(mutex_);
      geometry_ = geometry;
    }

   private:
    std::mutex mutex_;
    pb::Geometry geometry_;
  };
  Describer describer;
  grpc::ServerBuilder builder;
  const std::string address = "unix:" + dir_.file("describer");
  builder.AddListeningPort(address, grpc::InsecureServerCredentials());
  builder.RegisterService(&describer);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  auto store = ConnectRemoteStore(address, RemoteStoreOptions());
  ASSERT_OK(store);
  const auto refused = [&](auto change, std::string_view text) {
    pb::Geometry geometry = wire::ToProto(kGeometry);
    change(geometry);
    describer.set_geometry(geometry);
    EXPECT_THAT((*store)->Publish(kContext, 0, 0, query_),
                StatusIs(absl::StatusCode::kInternal, HasSubstr(std::string(text))));
  };
  refused([](auto& g) { g.set_dtype(pb::DType(3)); }, "geometry.dtype is 3");
  refused([](auto& g) { g.set_representative(pb::RepresentativeKind(4)); },
          "geometry.representative is 4");
  refused([](auto& g) { g.set_kv_heads(0); }, "kv_heads is 0");
  refused(
      [](auto& g) {
        g.set_q_heads(std::numeric_limits<int32_t>::max());
        g.set_kv_heads(1);
        g.set_head_dim(std::numeric_limits<int32_t>::max());
      },
      "q_heads");
  describer.set_geometry(wire::ToProto(kGeometry));
  EXPECT_THAT((*store)->Publish(kContext, 0, 0, query_),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("not an infllm-memstore")))
      << "the geometry was taken; Publish itself is not there";
}

TEST_F(RemoteStoreTest, AMessageAboveTheLimitIsRefusedWithBothSizes) {
  puppet_.append = [](auto&&...) { return absl::OkStatus(); };
  ASSERT_OK(Connect()->Create(kContext, {.geometry = kGeometry}));
  const auto stub =
      pb::MemoryStore::NewStub(grpc::CreateChannel(target(), grpc::InsecureChannelCredentials()));
  pb::AppendRequest request;
  request.set_context(wire::ToProto(kContext));
  request.mutable_payloads()->resize(wire::kMaxMessageBytes + 1);
  pb::AppendResponse response;
  grpc::ClientContext context;
  const grpc::Status status = stub->Append(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr(std::to_string(wire::kMaxMessageBytes)));
}

TEST_F(RemoteStoreTest, FetchStopsReadingWhenTheCallerGoes) {
  constexpr int kBlocks = 4096;  // 2 GiB if nobody stopped
  const std::vector<std::byte> payload(kGeometry.payload_bytes());
  std::atomic<int> fetched = 0;
  std::latch done(1);
  puppet_.fetch = [&](const ContextId&, int32_t, std::span<const int64_t> blocks) {
    fetched += static_cast<int>(blocks.size());
    return PuppetStore::Blocks(blocks.size(), memstore::BlockHandle(payload, nullptr));
  };
  ASSERT_OK(Connect()->Create(kContext, {.geometry = kGeometry}));
  {
    const auto channel = grpc::CreateChannel(target(), grpc::InsecureChannelCredentials());
    const auto stub = pb::MemoryStore::NewStub(channel);
    pb::FetchRequest request;
    request.set_context(wire::ToProto(kContext));
    for (int i = 0; i < kBlocks; ++i) request.add_blocks(i);
    grpc::ClientContext context;
    const auto reader = stub->Fetch(&context, request);
    pb::FetchResponse response;
    ASSERT_FALSE(reader->Read(&response)) << "one message is above the default limit of 4 MiB";
    context.TryCancel();
    reader->Finish();
  }
  Stop();
  EXPECT_LT(fetched, kBlocks);
}

// Payloads that are on their way keep their room in the RAM tier: whoever needs it waits.
TEST_F(RemoteStoreTest, CallWaitsForRoomThatTransfersTake) {
  constexpr int kSlowLayer = 0, kOtherLayer = 1;
  const std::vector<std::byte> payload(kGeometry.payload_bytes(), std::byte{3});
  // Shared with the pins: gRPC may drop the last one after the test.
  const auto pinned = std::make_shared<std::atomic<int>>(0);
  std::latch sending(1), refused(1);
  std::once_flag sending_once, refused_once;
  puppet_.fetch = [&](const ContextId&, int32_t layer,
                      std::span<const int64_t> blocks) -> absl::StatusOr<PuppetStore::Blocks> {
    if (layer == kOtherLayer && *pinned > 0) {
      std::call_once(refused_once, [&] { refused.count_down(); });
      return absl::ResourceExhaustedError("no room");
    }
    PuppetStore::Blocks handles;
    for (size_t i = 0; i < blocks.size(); ++i) {
      ++*pinned;
      handles.emplace_back(
          payload, std::shared_ptr<const void>(&payload, [pinned](const void*) { --*pinned; }));
    }
    std::call_once(sending_once, [&] { sending.count_down(); });
    return handles;
  };
  const auto store = Connect();
  ASSERT_OK(store->Create(kContext, {.geometry = kGeometry}));

  // 128 MiB to a client that does not read: far more than any window of the transport.
  const auto stub =
      pb::MemoryStore::NewStub(grpc::CreateChannel(target(), grpc::InsecureChannelCredentials()));
  pb::FetchRequest request;
  request.set_context(wire::ToProto(kContext));
  request.set_layer(kSlowLayer);
  for (int i = 0; i < 256; ++i) request.add_blocks(i);
  grpc::ClientContext context;
  const auto slow = stub->Fetch(&context, request);
  sending.wait();
  auto other = std::async(std::launch::async, [&] {
    return store->Fetch(kContext, kOtherLayer, std::vector<int64_t>{1}).status();
  });
  refused.wait();
  context.TryCancel();
  slow->Finish();
  EXPECT_OK(other.get());
  Stop();
}

TEST_F(RemoteStoreTest, ContextsMadeByAnotherClientAreKnown) {
  const auto first = Connect();
  ASSERT_OK(first->Create(kContext, {.geometry = kGeometry}));
  const std::vector<std::byte> payload(kGeometry.payload_bytes(), std::byte{5});
  puppet_.fetch = [&](const ContextId&, int32_t, std::span<const int64_t> blocks) {
    return PuppetStore::Blocks(blocks.size(), OwnedBlock(payload));
  };
  const auto second = Connect();
  const std::vector<int64_t> blocks = {3};
  ASSERT_OK_AND_ASSIGN(const PuppetStore::Blocks fetched, second->Fetch(kContext, 0, blocks));
  EXPECT_TRUE(std::ranges::equal(fetched[0].payload(), payload));
  EXPECT_THAT(second->Fetch(ContextId{.hi = 1, .lo = 2}, 0, blocks),
              StatusIs(absl::StatusCode::kNotFound,
                       HasSubstr("context 00000000000000010000000000000002 ")));
  Stop();
}

TEST_F(RemoteStoreTest, BlockOutlivesTheConnection) {
  const std::vector<std::byte> payload(kGeometry.payload_bytes(), std::byte{5});
  puppet_.fetch = [&](auto&&...) { return PuppetStore::Blocks(1, OwnedBlock(payload)); };
  auto store = Connect();
  ASSERT_OK(store->Create(kContext, {.geometry = kGeometry}));
  const std::vector<int64_t> blocks = {3};
  ASSERT_OK_AND_ASSIGN(const PuppetStore::Blocks fetched, store->Fetch(kContext, 0, blocks));
  store.reset();
  server_.reset();
  EXPECT_TRUE(std::ranges::equal(fetched[0].payload(), payload));
}

}  // namespace
}  // namespace infllm::services
