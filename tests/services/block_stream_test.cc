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

constexpr memstore::ContextId kContext{.hi = 7, .lo = 8}, kFork{.hi = 9, .lo = 10};
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

memstore::Selection SelectionOf(std::vector<memstore::SelectedBlock> blocks) {
  memstore::Selection selection;
  selection.blocks = std::move(blocks);
  return selection;
}

TEST(SendSelectionsTest, IsTheProtobufMessage) {
  // Payload sizes around the steps of the length's varint, and a block without payload.
  std::vector<memstore::SelectedBlock> blocks;
  std::vector<std::vector<std::byte>> payloads;
  for (const size_t size : {1, 127, 128, 0, 16383, 16384, 70000}) {
    const auto i = static_cast<int64_t>(payloads.size());
    payloads.push_back(RandomBytes(size, static_cast<uint32_t>(size)));
    blocks.push_back({.index = i * 1000, .score = 0.5f * static_cast<float>(i)});
    if (size > 0) blocks.back().block = OwnedBlock(payloads.back());
  }
  std::vector<memstore::Selection> selections;
  selections.push_back(SelectionOf(std::move(blocks)));
  selections.push_back({.status = absl::DataLossError("gone")});
  Collector<pb::SelectResponse> sent;
  ASSERT_OK(SendSelections(std::vector{kContext, kFork}, kLayer, std::move(selections), NewPins(),
                           sent.sink));
  ASSERT_EQ(sent.messages.size(), 1u);
  EXPECT_TRUE(sent.finished);
  const pb::SelectResponse& message = sent.messages[0];
  ASSERT_EQ(message.answers_size(), 2);
  EXPECT_EQ(message.answers(1).code(), static_cast<int>(absl::StatusCode::kDataLoss));
  EXPECT_EQ(message.answers(1).message(), "gone");
  EXPECT_EQ(message.answers(1).crc32c(),
            wire::AnswerChecksum(kFork, kLayer, 1, message.answers(1)));
  const pb::SelectResponse::Answer& answer = message.answers(0);
  EXPECT_EQ(answer.crc32c(), wire::AnswerChecksum(kContext, kLayer, 0, answer));
  ASSERT_EQ(answer.blocks_size(), 7);
  ASSERT_EQ(message.payloads_size(), 6);
  for (int i = 0, payload = 0; i < 7; ++i) {
    SCOPED_TRACE(i);
    const pb::SelectResponse::Block& block = answer.blocks(i);
    EXPECT_EQ(block.index(), i * 1000);
    EXPECT_EQ(block.score(), 0.5f * static_cast<float>(i));
    EXPECT_EQ(block.has_payload(), !payloads[i].empty());
    if (!block.has_payload()) continue;
    EXPECT_EQ(block.payload(), payload);
    EXPECT_EQ(message.payloads(payload).payload(), Text(payloads[i]));
    EXPECT_EQ(message.payloads(payload).crc32c(),
              wire::BlockChecksum({kContext, kLayer, i * 1000}, payloads[i]));
    ++payload;
  }
}

TEST(SendSelectionsTest, APayloadThatSeveralQueriesNeedIsSentOnce) {
  const memstore::BlockHandle shared = OwnedBlock(RandomBytes(100, 1));
  const memstore::BlockHandle own = OwnedBlock(RandomBytes(100, 2));
  std::vector<memstore::Selection> selections;
  selections.push_back(SelectionOf({{.index = 3, .block = shared}}));
  selections.push_back(SelectionOf({{.index = 1, .block = own}, {.index = 3, .block = shared}}));
  selections.push_back(SelectionOf({{.index = 3, .block = shared}}));
  Collector<pb::SelectResponse> sent;
  ASSERT_OK(SendSelections(std::vector{kContext, kFork, kContext}, kLayer, std::move(selections),
                           NewPins(), sent.sink));
  ASSERT_EQ(sent.messages.size(), 1u);
  const pb::SelectResponse& message = sent.messages[0];
  ASSERT_EQ(message.payloads_size(), 2);
  EXPECT_EQ(message.payloads(0).crc32c(),
            wire::BlockChecksum({kContext, kLayer, 3}, shared.payload()));
  EXPECT_EQ(message.answers(0).blocks(0).payload(), 0);
  EXPECT_EQ(message.answers(1).blocks(0).payload(), 1);
  EXPECT_EQ(message.answers(1).blocks(1).payload(), 0);
  EXPECT_EQ(message.answers(2).blocks(0).payload(), 0);
}

TEST(SendSelectionsTest, AnEmptySelectionIsOneMessage) {
  Collector<pb::SelectResponse> sent;
  ASSERT_OK(SendSelections(std::vector{kContext}, kLayer, std::vector<memstore::Selection>(1),
                           NewPins(), sent.sink));
  ASSERT_EQ(sent.messages.size(), 1u);
  EXPECT_TRUE(sent.finished);
  ASSERT_EQ(sent.messages[0].answers_size(), 1);
  EXPECT_EQ(sent.messages[0].answers(0).blocks_size(), 0);
}

TEST(SendSelectionsTest, SplitsAtTheTargetSizeAndSendsLargerBlocksAlone) {
  const size_t half = wire::kTargetMessageBytes / 2;
  std::vector<memstore::SelectedBlock> blocks;
  for (const size_t size : {half - 4096, half, half, half, 3 * half, half}) {
    blocks.push_back({.index = static_cast<int64_t>(blocks.size()),
                      .block = OwnedBlock(RandomBytes(size - 64, 1))});
  }
  std::vector<memstore::Selection> selections;
  selections.push_back(SelectionOf(std::move(blocks)));
  Collector<pb::SelectResponse> sent;
  ASSERT_OK(
      SendSelections(std::vector{kContext}, kLayer, std::move(selections), NewPins(), sent.sink));
  std::vector<int> sizes;
  for (const pb::SelectResponse& message : sent.messages) sizes.push_back(message.payloads_size());
  EXPECT_THAT(sizes, ::testing::ElementsAre(2, 2, 1, 1));
  EXPECT_TRUE(sent.finished);
}

// No bound on what is asked in one call may be one on a message.
TEST(SendSelectionsTest, ManyAnswersTravelInSeveralMessages) {
  constexpr int kQueries = 40, kEach = 20000;
  std::vector<memstore::SelectedBlock> blocks(kEach);
  for (int i = 0; i < kEach; ++i) blocks[i] = {.index = i + (int64_t{1} << 40), .score = 1};
  std::vector<memstore::Selection> selections(kQueries);
  for (memstore::Selection& selection : selections) selection.blocks = blocks;
  Collector<pb::SelectResponse> sent;
  ASSERT_OK(SendSelections(std::vector(kQueries, kContext), kLayer, std::move(selections),
                           NewPins(), sent.sink));
  EXPECT_GT(sent.messages.size(), 2u);
  int answers = 0;
  for (const pb::SelectResponse& message : sent.messages) {
    EXPECT_LE(message.ByteSizeLong(), wire::kTargetMessageBytes);
    answers += message.answers_size();
  }
  EXPECT_EQ(answers, kQueries);
}

TEST(SendSelectionsTest, StopsWhenTheCallerHasGoneAndReleasesItsPins) {
  std::vector<std::byte> bytes = RandomBytes(wire::kTargetMessageBytes, 1);
  std::atomic<int> released = 0;
  std::vector<memstore::SelectedBlock> blocks;
  for (int64_t i = 0; i < 3; ++i) {
    const std::shared_ptr<const void> pin(bytes.data(), [&](const void*) { ++released; });
    // Each another payload, though they overlap.
    blocks.push_back({.index = i, .block = memstore::BlockHandle(bytes, pin)});
  }
  std::vector<memstore::Selection> selections;
  selections.push_back(SelectionOf(std::move(blocks)));
  const auto pins = NewPins();
  int messages = 0;
  EXPECT_THAT(SendSelections(std::vector{kContext}, kLayer, std::move(selections), pins,
                             [&](const grpc::ByteBuffer&, bool) { return ++messages < 3; }),
              StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(messages, 3) << "the answer, then two payloads";
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
