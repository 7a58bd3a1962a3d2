#include "services/memstore/block_stream.h"

#include <grpcpp/support/proto_buffer_reader.h>

#include <atomic>
#include <functional>
#include <random>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/memstore/wire.h"
#include "tests/services/puppet_store.h"
#include "tests/support/status_matchers.h"

namespace infllm::services {
namespace {

namespace pb = infllm::v1;
using ::infllm::testing::OwnedBlock;
using ::infllm::testing::StatusIs;

constexpr memstore::ContextId kContext{7};
constexpr int32_t kLayer = 2;

std::vector<std::byte> RandomBytes(size_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = std::byte(random());
  return bytes;
}

std::string Text(const std::vector<std::byte>& bytes) {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

std::shared_ptr<PinsInFlight> NewPins() { return std::make_shared<PinsInFlight>(); }

// What protobuf makes of the messages that are sent.
template <typename Message>
struct Collector {
  bool Take(const grpc::ByteBuffer& bytes, bool last) {
    EXPECT_FALSE(finished) << "a message after the last one";
    finished = last;
    grpc::ByteBuffer copy = bytes;
    grpc::ProtoBufferReader reader(&copy);
    Message& message = messages.emplace_back();
    EXPECT_TRUE(message.ParseFromZeroCopyStream(&reader));
    EXPECT_TRUE(message.GetReflection()->GetUnknownFields(message).empty());
    // Byte for byte what protobuf writes itself: a cross-check of lengths and tags.
    EXPECT_EQ(message.ByteSizeLong(), bytes.Length());
    return true;
  }
  std::vector<Message> messages;
  bool finished = false;
  const std::function<bool(const grpc::ByteBuffer&, bool)> sink =
      [this](const grpc::ByteBuffer& bytes, bool last) { return Take(bytes, last); };
};

TEST(SendSelectionTest, IsTheProtobufMessage) {
  // Payload sizes around the steps of the length's varint, and a block without payload.
  memstore::Selection selection;
  std::vector<std::vector<std::byte>> payloads;
  for (const size_t size : {1, 127, 128, 0, 16383, 16384, 70000}) {
    const auto i = static_cast<int64_t>(payloads.size());
    payloads.push_back(RandomBytes(size, static_cast<uint32_t>(size)));
    selection.blocks.push_back({.index = i * 1000, .score = 0.5f * static_cast<float>(i)});
    if (size > 0) selection.blocks.back().block = OwnedBlock(payloads.back());
  }
  Collector<pb::SelectResponse> sent;
  ASSERT_OK(SendSelection(kContext, kLayer, std::move(selection), NewPins(), sent.sink));
  ASSERT_EQ(sent.messages.size(), 1u);
  EXPECT_TRUE(sent.finished);
  const pb::SelectResponse& message = sent.messages[0];
  EXPECT_EQ(message.total_blocks(), 7);
  ASSERT_EQ(message.blocks_size(), 7);
  for (int i = 0; i < 7; ++i) {
    SCOPED_TRACE(i);
    const pb::SelectResponse::Block& block = message.blocks(i);
    EXPECT_EQ(block.index(), i * 1000);
    EXPECT_EQ(block.score(), 0.5f * static_cast<float>(i));
    EXPECT_EQ(block.has_payload(), !payloads[i].empty());
    EXPECT_EQ(block.payload(), Text(payloads[i]));
    EXPECT_EQ(block.crc32c(),
              wire::SelectedChecksum({kContext, kLayer, i * 1000}, block.score(), payloads[i]));
  }
}

TEST(SendSelectionTest, AnEmptySelectionIsOneMessage) {
  Collector<pb::SelectResponse> sent;
  ASSERT_OK(SendSelection(kContext, kLayer, memstore::Selection(), NewPins(), sent.sink));
  ASSERT_EQ(sent.messages.size(), 1u);
  EXPECT_TRUE(sent.finished);
  EXPECT_EQ(sent.messages[0].total_blocks(), 0);
}

TEST(SendSelectionTest, SplitsAtTheTargetSizeAndSendsLargerBlocksAlone) {
  const size_t half = wire::kTargetMessageBytes / 2;
  memstore::Selection selection;
  for (const size_t size : {half, half, half, 3 * half, half}) {
    selection.blocks.push_back({.index = static_cast<int64_t>(selection.blocks.size()),
                                .block = OwnedBlock(RandomBytes(size, 1))});
  }
  Collector<pb::SelectResponse> sent;
  ASSERT_OK(SendSelection(kContext, kLayer, std::move(selection), NewPins(), sent.sink));
  std::vector<int> sizes;
  for (const pb::SelectResponse& message : sent.messages) {
    EXPECT_EQ(message.total_blocks(), 5);
    sizes.push_back(message.blocks_size());
  }
  EXPECT_THAT(sizes, ::testing::ElementsAre(2, 1, 1, 1));
  EXPECT_TRUE(sent.finished);
}

TEST(SendSelectionTest, StopsWhenTheCallerHasGoneAndReleasesItsPins) {
  std::vector<std::byte> bytes = RandomBytes(wire::kTargetMessageBytes, 1);
  std::atomic<int> released = 0;
  memstore::Selection selection;
  for (int64_t i = 0; i < 3; ++i) {
    const std::shared_ptr<const void> pin(bytes.data(), [&](const void*) { ++released; });
    selection.blocks.push_back({.index = i, .block = memstore::BlockHandle(bytes, pin)});
  }
  const auto pins = NewPins();
  int messages = 0;
  EXPECT_THAT(SendSelection(kContext, kLayer, std::move(selection), pins,
                            [&](const grpc::ByteBuffer&, bool) { return ++messages < 2; }),
              StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(messages, 2);
  EXPECT_EQ(released, 3);
  EXPECT_EQ(pins->released(), 2);  // the third was never on its way
}

TEST(SendFetchedTest, IsTheProtobufMessageAndPinsUntilItIsSent) {
  std::vector<std::byte> payload = RandomBytes(5000, 3);
  std::atomic<int> released = 0;
  std::vector<memstore::BlockHandle> blocks;
  for (int i = 0; i < 2; ++i) {
    blocks.emplace_back(
        payload, std::shared_ptr<const void>(payload.data(), [&](const void*) { ++released; }));
  }
  const std::vector<int64_t> indices = {9, 4};
  Collector<pb::FetchResponse> sent;
  grpc::ByteBuffer kept;
  const auto pins = NewPins();
  ASSERT_OK(SendFetched(kContext, kLayer, indices, std::move(blocks), pins, true,
                        [&](const grpc::ByteBuffer& message, bool last) {
                          kept = message;
                          return sent.Take(message, last);
                        }));
  EXPECT_EQ(released, 0);
  EXPECT_EQ(pins->released(), 0);
  kept.Clear();
  EXPECT_EQ(released, 2);
  EXPECT_EQ(pins->released(), 2);
  ASSERT_EQ(sent.messages.size(), 1u);
  ASSERT_EQ(sent.messages[0].blocks_size(), 2);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(sent.messages[0].blocks(i).payload(), Text(payload));
    EXPECT_EQ(sent.messages[0].blocks(i).crc32c(),
              wire::BlockChecksum({kContext, kLayer, indices[i]}, payload));
  }
}

TEST(PinsInFlightTest, WaitsOnlyForWhatCanFreeRoom) {
  const auto now = std::chrono::steady_clock::now();
  const auto later = now + std::chrono::hours(1);
  PinsInFlight pins;
  EXPECT_FALSE(pins.AwaitRelease(0, later)) << "nothing in flight";
  pins.Add();
  EXPECT_FALSE(pins.AwaitRelease(0, now)) << "too late";
  pins.Release();
  EXPECT_TRUE(pins.AwaitRelease(0, later)) << "released already";
  EXPECT_FALSE(pins.AwaitRelease(1, later));
  {
    PinsInFlight::Hold hold(pins);
    hold.Take();
    std::thread waiter([&] { EXPECT_FALSE(pins.AwaitRelease(1, later)) << "it pinned nothing"; });
    hold.Withdraw();
    waiter.join();
  }
  EXPECT_EQ(pins.released(), 1);
  std::thread waiter;
  {
    PinsInFlight::Hold hold(pins);
    hold.Take();
    waiter = std::thread([&] { EXPECT_TRUE(pins.AwaitRelease(1, later)); });
  }
  waiter.join();
}

}  // namespace
}  // namespace infllm::services
