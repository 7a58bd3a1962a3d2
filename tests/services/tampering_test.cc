// Flips bits in messages between a client and a server, in both directions: no flip that changes
// what a message says may end as OK.
#include <google/protobuf/message.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/support/server_interceptor.h>

#include <algorithm>
#include <functional>
#include <map>
#include <mutex>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "infllm/v1/memory_store.grpc.pb.h"
#include "services/memstore/memory_store_service.h"
#include "services/memstore/remote_store.h"
#include "tests/services/fake_retry_clock.h"
#include "tests/services/puppet_store.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::services {
namespace {

using ::infllm::testing::OwnedBlock;
using ::infllm::testing::PuppetStore;
using ::infllm::testing::StatusIs;
using ::infllm::testing::TempDir;
using memstore::ContextId;

// Small, so that every bit of every message can be tried.
constexpr memstore::Geometry kGeometry = {.layers = 2,
                                          .q_heads = 2,
                                          .kv_heads = 1,
                                          .head_dim = 2,
                                          .block_tokens = 2,
                                          .dtype = kernels::DType::kF32};
constexpr ContextId kContext{.hi = 41, .lo = 42}, kFork{.hi = 43, .lo = 44};

enum class Direction { kNone, kRequest, kResponse };

// Which bit to flip, set between calls by the test; one call runs at a time.
class Tampering {
 public:
  void Set(Direction direction, size_t bit) {
    const std::lock_guard lock(mutex_);
    direction_ = direction;
    bit_ = bit;
  }
  bool Applies(Direction direction) const {
    const std::lock_guard lock(mutex_);
    return direction == direction_;
  }
  // Of the next message only.
  void SetOnce(Direction direction, size_t bit) {
    Set(direction, bit);
    const std::lock_guard lock(mutex_);
    once_ = true;
  }
  // Flips the bit if `bytes` has it.
  void Apply(std::string* bytes) {
    const std::lock_guard lock(mutex_);
    if (std::exchange(once_, false)) direction_ = Direction::kNone;
    bits_seen_ = bytes->size() * 8;
    if (bit_ < bits_seen_) (*bytes)[bit_ / 8] ^= static_cast<char>(1 << (bit_ % 8));
  }
  // In the last message of that direction.
  size_t bits_seen() const {
    const std::lock_guard lock(mutex_);
    return bits_seen_;
  }
  // The last flip left the meaning of its message as it was: any varint but 0 is a true.
  void SetHarmless(bool harmless) {
    const std::lock_guard lock(mutex_);
    harmless_ = harmless;
  }
  bool harmless() const {
    const std::lock_guard lock(mutex_);
    return harmless_;
  }

 private:
  mutable std::mutex mutex_;
  Direction direction_ = Direction::kNone;
  size_t bit_ = 0;
  size_t bits_seen_ = 0;
  bool harmless_ = false;
  bool once_ = false;
};

class Tamperer final : public grpc::experimental::Interceptor {
 public:
  // `request` is the type of the call's.
  Tamperer(Tampering& tampering, const google::protobuf::Descriptor& request)
      : tampering_(tampering), request_(request) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    using grpc::experimental::InterceptionHookPoints;
    if (tampering_.Applies(Direction::kResponse) &&
        methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_MESSAGE)) {
      grpc::ByteBuffer* message = methods->GetSerializedSendMessage();
      std::string bytes = Bytes(*message);
      tampering_.Apply(&bytes);
      const grpc::Slice tampered(bytes);
      *message = grpc::ByteBuffer(&tampered, 1);
    }
    if (tampering_.Applies(Direction::kRequest) &&
        methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_MESSAGE) &&
        methods->GetRecvMessage() != nullptr) {
      auto* message = static_cast<grpc::ByteBuffer*>(methods->GetRecvMessage());
      const std::string sent = Bytes(*message);
      std::string bytes = sent;
      tampering_.Apply(&bytes);
      const grpc::Slice tampered(bytes);
      *message = grpc::ByteBuffer(&tampered, 1);
      tampering_.SetHarmless(Meaning(bytes) == Meaning(sent));
    }
    methods->Proceed();
  }

 private:
  static std::string Bytes(const grpc::ByteBuffer& message) {
    std::vector<grpc::Slice> slices;
    EXPECT_TRUE(message.Dump(&slices).ok());
    std::string bytes;
    for (const grpc::Slice& slice : slices) bytes.append(slice.begin(), slice.end());
    return bytes;
  }
  // The same for all ways to write the same request.
  std::string Meaning(const std::string& bytes) const {
    const std::unique_ptr<google::protobuf::Message> message(
        google::protobuf::MessageFactory::generated_factory()->GetPrototype(&request_)->New());
    return message->ParseFromString(bytes) ? message->SerializeAsString() : "";
  }

  Tampering& tampering_;
  const google::protobuf::Descriptor& request_;
};

class TampererFactory final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit TampererFactory(Tampering& tampering) : tampering_(tampering) {}
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override {
    // A client holds its lease whenever it likes.
    const std::string_view path = info->method();
    if (path.ends_with("/Lease")) return nullptr;
    const google::protobuf::ServiceDescriptor& service =
        *infllm::v1::SelectRequest::descriptor()->file()->FindServiceByName("MemoryStore");
    const std::string method(path.substr(path.rfind('/') + 1));
    return new Tamperer(tampering_, *service.FindMethodByName(method)->input_type());
  }

 private:
  Tampering& tampering_;
};

class TamperingTest : public ::testing::Test {
 protected:
  void SetUp() override {
    puppet_.create = [this](auto&&...) { return Wrote(); };
    puppet_.fork = [this](auto&&...) { return Wrote(); };
    puppet_.append = [this](auto&&...) { return Wrote(); };
    puppet_.publish = [this](auto&&...) { return Wrote(); };
    puppet_.fetch = [this](const ContextId&, int32_t, std::span<const int64_t> blocks) {
      PuppetStore::Blocks handles;
      for (const int64_t index : blocks) handles.push_back(Block(index));
      return handles;
    };
    puppet_.select = [this](const memstore::SelectRequest& request) {
      std::vector<memstore::Selection> selections;
      for (const memstore::SelectQuery& query : request.queries) {
        memstore::Selection& selection = selections.emplace_back();
        if (query.k == 0) selection.status = absl::OutOfRangeError("x");
        for (int64_t i = 0; i < query.k; ++i) {
          selection.blocks.push_back({.index = 3 * i, .score = 0.25f * static_cast<float>(i)});
          if (!std::binary_search(query.have.begin(), query.have.end(), 3 * i)) {
            selection.blocks.back().block = Block(3 * i);
          }
        }
      }
      return selections;
    };

    service_ = NewMemoryStoreService(puppet_, gate_, absl::Seconds(10));
    grpc::ServerBuilder builder;
    const std::string address = "unix:" + dir_.file("s");
    builder.AddListeningPort(address, grpc::InsecureServerCredentials());
    builder.RegisterService(&service_->service());
    std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> factories;
    factories.push_back(std::make_unique<TampererFactory>(tampering_));
    builder.experimental().SetInterceptorCreators(std::move(factories));
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
    auto store =
        ConnectRemoteStore(address, {.retry = {.unavailable_patience = absl::ZeroDuration(),
                                               .exhausted_patience = absl::ZeroDuration(),
                                               .damaged_patience = absl::ZeroDuration()}});
    ASSERT_OK(store);
    store_ = *std::move(store);
    ASSERT_OK(store_->Create(kFork, {.geometry = kGeometry}));
    ASSERT_OK(store_->Create(kContext, {.model = {.hi = 1, .lo = 2}, .geometry = kGeometry}));
  }
  void TearDown() override {
    service_->EndLeases();
    server_->Shutdown();
  }

  absl::Status Wrote() {
    ++writes_;
    return absl::OkStatus();
  }

  memstore::BlockHandle Block(int64_t index) const {
    return OwnedBlock(std::vector<std::byte>(kGeometry.payload_bytes(), std::byte(index + 1)));
  }

  // Makes the call once as it is, then once per bit of its message in `direction`, flipped.
  // Returns how often each code came.
  std::map<absl::StatusCode, int> FlipEveryBit(Direction direction,
                                               const std::function<absl::Status()>& call) {
    std::map<absl::StatusCode, int> codes;
    tampering_.Set(direction, std::string::npos);
    EXPECT_OK(call());
    const size_t bits = tampering_.bits_seen();
    EXPECT_GT(bits, 0u);
    writes_ = 0;
    for (size_t bit = 0; bit < bits; ++bit) {
      tampering_.Set(direction, bit);
      tampering_.SetHarmless(false);
      const absl::Status status = call();
      EXPECT_EQ(status.ok(), tampering_.harmless())
          << "bit " << bit % 8 << " of byte " << bit / 8 << " of " << bits / 8;
      ++codes[status.code()];
    }
    tampering_.Set(Direction::kNone, 0);
    return codes;
  }

  const TempDir dir_;
  Tampering tampering_;
  ::infllm::testing::FakeRetryClock clock_;
  PuppetStore puppet_;
  CallGate gate_;
  std::atomic<int> writes_ = 0;
  std::unique_ptr<LeasingService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<RemoteStore> store_;

  const std::vector<float> query_ = {1, 2, 3, 4};
  const std::vector<int64_t> have_ = {3, 100};
  // One with blocks that the caller has, one of a fork, and one that fails.
  const std::vector<memstore::SelectQuery> queries_ = {
      {.context = kContext, .query = query_, .k = 3, .end_block = 100, .have = have_},
      {.context = kFork, .query = query_, .k = 2},
      {.context = kContext, .query = query_, .k = 0}};
  const std::function<absl::Status()> select_ = [this] {
    return store_->Select({.layer = 1, .queries = queries_}).status();
  };
  const std::vector<int64_t> wanted_ = {5, 2};
  const std::function<absl::Status()> fetch_ = [this] {
    return store_->Fetch(kContext, 1, wanted_).status();
  };
};

using ::testing::ElementsAre;
using ::testing::Key;
using ::testing::UnorderedElementsAre;

TEST_F(TamperingTest, SelectedBlocks) {
  // Also indices and scores of the blocks that travel without payload, and errors of queries. A
  // flipped tag makes an answer that lacks something.
  const auto codes = FlipEveryBit(Direction::kResponse, select_);
  EXPECT_THAT(codes, UnorderedElementsAre(Key(absl::StatusCode::kDataLoss),
                                          Key(absl::StatusCode::kInternal)));
  EXPECT_GT(codes.at(absl::StatusCode::kDataLoss), 20 * codes.at(absl::StatusCode::kInternal));
  EXPECT_THAT(select_(), ::infllm::testing::IsOk());
}

TEST_F(TamperingTest, FetchedBlocks) {
  EXPECT_THAT(
      FlipEveryBit(Direction::kResponse, fetch_),
      UnorderedElementsAre(Key(absl::StatusCode::kDataLoss), Key(absl::StatusCode::kInternal)));
}

TEST_F(TamperingTest, QueriesAndFetchRequests) {
  FlipEveryBit(Direction::kRequest, select_);
  FlipEveryBit(Direction::kRequest, fetch_);
}

TEST_F(TamperingTest, AppendedBlocksAreNotStored) {
  const std::vector<std::byte> payload(kGeometry.payload_bytes(), std::byte{9});
  const std::vector<std::span<const std::byte>> payloads(3, payload);
  const auto codes =
      FlipEveryBit(Direction::kRequest, [&] { return store_->Append(kContext, 1, 7, payloads); });
  EXPECT_EQ(writes_, 0);
  // Every flip in a payload; others make the message invalid in another way first.
  EXPECT_GE(codes.at(absl::StatusCode::kDataLoss),
            static_cast<int>(payloads.size() * payload.size()) * 8);
}

TEST_F(TamperingTest, RepresentativesAreNotPublished) {
  const std::vector<float> representatives(2 * kGeometry.representative_floats(), 0.5f);
  const auto codes = FlipEveryBit(Direction::kRequest,
                                  [&] { return store_->Publish(kContext, 1, 7, representatives); });
  EXPECT_EQ(writes_, 0);
  EXPECT_GE(codes.at(absl::StatusCode::kDataLoss),
            static_cast<int>(representatives.size() * sizeof(float)) * 8);
}

TEST_F(TamperingTest, NothingIsMadeOfADamagedRequest) {
  const ContextId made = {.hi = 5, .lo = 6};
  const auto create = [&] {
    return store_->Create(made,
                          {.model = {.hi = 1, .lo = 2}, .recipe = "r", .geometry = kGeometry});
  };
  EXPECT_THAT(FlipEveryBit(Direction::kRequest, create),
              ElementsAre(Key(absl::StatusCode::kDataLoss)));
  EXPECT_EQ(writes_, 0);
  const auto codes =
      FlipEveryBit(Direction::kRequest, [&] { return store_->Fork(kContext, {.hi = 7, .lo = 8}); });
  EXPECT_GE(codes.at(absl::StatusCode::kDataLoss), 2 * 16 * 8) << "any bit of either context";
  EXPECT_EQ(writes_, 0);
}

TEST_F(TamperingTest, DamageOnceIsHealedByARetry) {
  auto store = ConnectRemoteStore("unix:" + dir_.file("s"), {.clock = &clock_});
  ASSERT_OK(store);
  store_ = *std::move(store);
  ASSERT_OK(select_());  // the contexts are known then
  for (const Direction direction : {Direction::kRequest, Direction::kResponse}) {
    tampering_.SetOnce(direction, 200);
    EXPECT_OK(select_());
    tampering_.SetOnce(direction, 176);  // of a request: in an index
    EXPECT_OK(fetch_());
  }
  EXPECT_EQ(store_->Retries().damaged, 4);
  EXPECT_EQ(store_->Retries().retries, 4);
}

TEST_F(TamperingTest, IsCounted) {
  ASSERT_OK_AND_ASSIGN(const memstore::StoreStats before, store_->Stats());
  tampering_.Set(Direction::kResponse, 80);
  EXPECT_THAT(fetch_(), StatusIs(absl::StatusCode::kDataLoss));
  tampering_.Set(Direction::kRequest, 400);  // in a payload
  const std::vector<std::byte> payload(kGeometry.payload_bytes(), std::byte{9});
  const std::vector<std::span<const std::byte>> payloads(3, payload);
  EXPECT_THAT(store_->Append(kContext, 1, 7, payloads), StatusIs(absl::StatusCode::kDataLoss));
  tampering_.Set(Direction::kNone, 0);
  ASSERT_OK_AND_ASSIGN(const memstore::StoreStats after, store_->Stats());
  EXPECT_EQ(after.corrupt_blocks - before.corrupt_blocks, 2);
}

}  // namespace
}  // namespace infllm::services
