// Flips bits in messages between a client and a server, in both directions: no flip that changes
// what a message says may end as OK.
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/support/server_interceptor.h>

#include <algorithm>
#include <functional>
#include <map>
#include <mutex>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "infllm/v1/memory_store.grpc.pb.h"
#include "services/memstore/memory_store_service.h"
#include "services/memstore/remote_store.h"
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
constexpr ContextId kContext{41};

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
  // Flips the bit if `bytes` has it.
  void Apply(std::string* bytes) {
    const std::lock_guard lock(mutex_);
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
};

class Tamperer final : public grpc::experimental::Interceptor {
 public:
  explicit Tamperer(Tampering& tampering) : tampering_(tampering) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    using grpc::experimental::InterceptionHookPoints;
    if (tampering_.Applies(Direction::kResponse) &&
        methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_MESSAGE)) {
      grpc::ByteBuffer* message = methods->GetSerializedSendMessage();
      std::vector<grpc::Slice> slices;
      EXPECT_TRUE(message->Dump(&slices).ok());
      std::string bytes;
      for (const grpc::Slice& slice : slices) bytes.append(slice.begin(), slice.end());
      tampering_.Apply(&bytes);
      const grpc::Slice tampered(bytes);
      *message = grpc::ByteBuffer(&tampered, 1);
    }
    if (tampering_.Applies(Direction::kRequest) &&
        methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_MESSAGE) &&
        methods->GetRecvMessage() != nullptr) {
      auto* message = static_cast<google::protobuf::Message*>(methods->GetRecvMessage());
      const std::string sent = message->SerializeAsString();
      std::string bytes = sent;
      tampering_.Apply(&bytes);
      // gRPC refuses by itself what does not parse.
      if (!message->ParseFromString(bytes)) message->Clear();
      tampering_.SetHarmless(message->SerializeAsString() == sent);
    }
    methods->Proceed();
  }

 private:
  Tampering& tampering_;
};

class TampererFactory final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit TampererFactory(Tampering& tampering) : tampering_(tampering) {}
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo*) override {
    return new Tamperer(tampering_);
  }

 private:
  Tampering& tampering_;
};

class TamperingTest : public ::testing::Test {
 protected:
  void SetUp() override {
    puppet_.create = [](const memstore::ContextOptions&) { return kContext; };
    puppet_.fork = [](ContextId parent) { return ContextId{static_cast<uint64_t>(parent) + 1}; };
    puppet_.append = [this](auto...) { return Wrote(); };
    puppet_.publish = [this](auto...) { return Wrote(); };
    puppet_.fetch = [this](ContextId, int32_t, std::span<const int64_t> blocks) {
      PuppetStore::Blocks handles;
      for (const int64_t index : blocks) handles.push_back(Block(index));
      return handles;
    };
    puppet_.select = [this](ContextId, int32_t, const memstore::SelectRequest& request) {
      memstore::Selection selection;
      for (int64_t i = 0; i < request.k; ++i) {
        selection.blocks.push_back({.index = 3 * i, .score = 0.25f * static_cast<float>(i)});
        if (!std::binary_search(request.have.begin(), request.have.end(), 3 * i)) {
          selection.blocks.back().block = Block(3 * i);
        }
      }
      return selection;
    };

    service_ = NewMemoryStoreService(puppet_, gate_);
    grpc::ServerBuilder builder;
    const std::string address = "unix:" + dir_.file("s");
    builder.AddListeningPort(address, grpc::InsecureServerCredentials());
    builder.RegisterService(service_.get());
    std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> factories;
    factories.push_back(std::make_unique<TampererFactory>(tampering_));
    builder.experimental().SetInterceptorCreators(std::move(factories));
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
    auto store = ConnectRemoteStore(address, RemoteStoreOptions());
    ASSERT_OK(store);
    store_ = *std::move(store);
    ASSERT_OK(store_->Create({.model = {.hi = 1, .lo = 2}, .geometry = kGeometry}));
  }
  void TearDown() override { server_->Shutdown(); }

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
  PuppetStore puppet_;
  CallGate gate_;
  std::atomic<int> writes_ = 0;
  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<memstore::MemoryStore> store_;

  const std::vector<float> query_ = {1, 2, 3, 4};
  const std::vector<int64_t> have_ = {3, 100};
  const std::function<absl::Status()> select_ = [this] {
    return store_->Select(kContext, 1, {.query = query_, .k = 3, .have = have_}).status();
  };
  const std::vector<int64_t> wanted_ = {5, 2};
  const std::function<absl::Status()> fetch_ = [this] {
    return store_->Fetch(kContext, 1, wanted_).status();
  };
};

using ::testing::ElementsAre;
using ::testing::Key;

TEST_F(TamperingTest, SelectedBlocks) {
  // Also the indices and scores of the blocks that travel without payload.
  EXPECT_THAT(FlipEveryBit(Direction::kResponse, select_),
              ElementsAre(Key(absl::StatusCode::kDataLoss)));
  EXPECT_OK(select_());
}

TEST_F(TamperingTest, FetchedBlocks) {
  EXPECT_THAT(FlipEveryBit(Direction::kResponse, fetch_),
              ElementsAre(Key(absl::StatusCode::kDataLoss)));
}

TEST_F(TamperingTest, QueriesAndFetchRequests) {
  FlipEveryBit(Direction::kRequest, select_);
  FlipEveryBit(Direction::kRequest, fetch_);
}

TEST_F(TamperingTest, AppendedBlocksAreNotStored) {
  const std::vector<std::byte> payloads(3 * kGeometry.payload_bytes(), std::byte{9});
  const auto codes =
      FlipEveryBit(Direction::kRequest, [&] { return store_->Append(kContext, 1, 7, payloads); });
  EXPECT_EQ(writes_, 0);
  // Every flip in a payload; others make the message invalid in another way first.
  EXPECT_GE(codes.at(absl::StatusCode::kDataLoss), static_cast<int>(payloads.size()) * 8);
}

TEST_F(TamperingTest, RepresentativesAreNotPublished) {
  const std::vector<float> representatives(2 * kGeometry.representative_floats(), 0.5f);
  const auto codes = FlipEveryBit(Direction::kRequest,
                                  [&] { return store_->Publish(kContext, 1, 7, representatives); });
  EXPECT_EQ(writes_, 0);
  EXPECT_GE(codes.at(absl::StatusCode::kDataLoss),
            static_cast<int>(representatives.size() * sizeof(float)) * 8);
}

TEST_F(TamperingTest, NewContexts) {
  memstore::Geometry bounds = kGeometry;
  bounds.representative = kernels::RepresentativeKind::kBounds;
  const auto create = [&] {
    return store_->Create({.model = {.hi = 1, .lo = 2}, .geometry = bounds}).status();
  };
  const auto fork = [this] { return store_->Fork(kContext).status(); };
  FlipEveryBit(Direction::kRequest, create);
  FlipEveryBit(Direction::kResponse, create);
  FlipEveryBit(Direction::kResponse, fork);
  FlipEveryBit(Direction::kRequest, fork);
}

TEST_F(TamperingTest, IsCounted) {
  ASSERT_OK_AND_ASSIGN(const memstore::StoreStats before, store_->Stats());
  tampering_.Set(Direction::kResponse, 80);
  EXPECT_THAT(fetch_(), StatusIs(absl::StatusCode::kDataLoss));
  tampering_.Set(Direction::kRequest, 80);
  const std::vector<std::byte> payloads(3 * kGeometry.payload_bytes(), std::byte{9});
  EXPECT_THAT(store_->Append(kContext, 1, 7, payloads), StatusIs(absl::StatusCode::kDataLoss));
  tampering_.Set(Direction::kNone, 0);
  ASSERT_OK_AND_ASSIGN(const memstore::StoreStats after, store_->Stats());
  EXPECT_EQ(after.corrupt_blocks - before.corrupt_blocks, 2);
}

}  // namespace
}  // namespace infllm::services
