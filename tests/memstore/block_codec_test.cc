#include "memstore/block_codec.h"

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "memstore/crc32c.h"
#include "tests/memstore/test_blocks.h"
#include "tests/support/status_matchers.h"

namespace infllm::memstore {
namespace {

using ::infllm::testing::IsOk;
using ::infllm::testing::StatusIs;
using ::testing::AllOf;
using ::testing::HasSubstr;

// The smallest block: every byte can be tried.
constexpr Geometry kTiny = {
    .layers = 3, .q_heads = 2, .kv_heads = 1, .head_dim = 4, .block_tokens = 2};

BlockIdentity Identity() {
  return {.context = ContextId{77},
          .layer = 2,
          .index = 9,
          .tenant = "some tenant",
          .model = {.hi = 1, .lo = 2},
          .geometry = kTiny};
}

std::vector<std::byte> Encode(const BlockIdentity& identity) {
  const std::vector<std::byte> payload = Payloads(0, 0, 1, 0, identity.geometry);
  std::vector<std::byte> encoded(EncodedBlockBytes(payload.size()));
  EncodeBlock(identity, payload, Crc32c(payload), encoded);
  return encoded;
}

TEST(BlockCodec, RoundTrips) {
  const std::vector<std::byte> encoded = Encode(Identity());
  EXPECT_OK(VerifyBlock(encoded, Identity()));
  const std::vector<std::byte> payload(encoded.begin() + kBlockHeaderBytes, encoded.end());
  EXPECT_EQ(payload, Payloads(0, 0, 1, 0, kTiny));
}

// What is on disks and wires already: a change here needs a new kBlockFormatVersion.
TEST(BlockCodec, LayoutIsPinned) {
  const std::vector<std::byte> encoded = Encode(Identity());
  const auto text = [&](size_t at, size_t size) {
    return std::string(reinterpret_cast<const char*>(&encoded[at]), size);
  };
  const auto u32 = [&](size_t at) {
    uint32_t value;
    std::memcpy(&value, &encoded[at], sizeof(value));
    return value;
  };
  EXPECT_EQ(text(0, 8), "INFLLMKV");
  EXPECT_EQ(u32(8), 1u);
  EXPECT_EQ(u32(12), 384u);
  EXPECT_EQ(u32(16), 1u);
  EXPECT_EQ(u32(24), 2u);
  EXPECT_EQ(u32(32), 3u);
  EXPECT_EQ(u32(48), 2u);
  EXPECT_EQ(u32(56), 77u);
  EXPECT_EQ(u32(64), 9u);
  EXPECT_EQ(u32(72), 2u);
  EXPECT_EQ(u32(76), 11u);
  EXPECT_EQ(u32(80), 64u);
  EXPECT_EQ(text(96, 11), "some tenant");
  EXPECT_EQ(encoded.size(), 384u + 64u);
}

TEST(BlockCodec, EveryFlippedBitIsFound) {
  std::vector<std::byte> encoded = Encode(Identity());
  for (size_t i = 0; i < encoded.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      const std::byte mask{static_cast<uint8_t>(1 << bit)};
      encoded[i] ^= mask;
      ASSERT_THAT(VerifyBlock(encoded, Identity()), StatusIs(absl::StatusCode::kDataLoss))
          << "byte " << i << " bit " << bit;
      encoded[i] ^= mask;
    }
  }
  EXPECT_OK(VerifyBlock(encoded, Identity()));
}

TEST(BlockCodec, EveryTruncationIsFound) {
  std::vector<std::byte> encoded = Encode(Identity());
  for (size_t size = 0; size < encoded.size(); ++size) {
    ASSERT_THAT(VerifyBlock(std::span(encoded).first(size), Identity()),
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr("size in bytes")));
  }
  encoded.push_back(std::byte{0});
  EXPECT_THAT(VerifyBlock(encoded, Identity()), StatusIs(absl::StatusCode::kDataLoss));
}

TEST(BlockCodec, ABlockOfAnotherIdentityIsNamed) {
  const std::vector<std::pair<std::string, std::function<void(BlockIdentity&)>>> changes = {
      {"owning context is 77, expected 78", [](auto& i) { i.context = ContextId{78}; }},
      {"layer is 2, expected 1", [](auto& i) { i.layer = 1; }},
      {"block index is 9, expected 10", [](auto& i) { i.index = 10; }},
      {"tenant is another one, expected \"some tenanu\"",
       [](auto& i) { i.tenant = "some tenanu"; }},
      {"tenant length is 11, expected 4", [](auto& i) { i.tenant = "some"; }},
      {"model fingerprint", [](auto& i) { i.model.hi = 5; }},
      {"model fingerprint", [](auto& i) { i.model.lo = 5; }},
      {"layer count is 3, expected 4", [](auto& i) { i.geometry.layers = 4; }},
      {"query heads is 2, expected 4", [](auto& i) { i.geometry.q_heads = 4; }},
      {"KV heads is 1, expected 2",
       [](auto& i) { i.geometry.kv_heads = 2, i.geometry.head_dim = 2; }},
      {"head dim is 4, expected 2",
       [](auto& i) { i.geometry.head_dim = 2, i.geometry.block_tokens = 4; }},
      {"block_tokens is 2, expected 4",
       [](auto& i) { i.geometry.block_tokens = 4, i.geometry.dtype = kernels::DType::kF16; }},
  };
  const std::vector<std::byte> encoded = Encode(Identity());
  for (const auto& [text, change] : changes) {
    BlockIdentity other = Identity();
    change(other);
    EXPECT_THAT(VerifyBlock(encoded, other),
                StatusIs(absl::StatusCode::kDataLoss, AllOf(HasSubstr(text), HasSubstr("block "))));
  }
}

TEST(BlockCodec, DtypesOfOneSizeAreToldApart) {
  BlockIdentity bf16 = Identity();
  bf16.geometry.dtype = kernels::DType::kBF16;
  BlockIdentity f16 = Identity();
  f16.geometry.dtype = kernels::DType::kF16;
  EXPECT_THAT(VerifyBlock(Encode(bf16), f16),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("dtype is 1, expected 2")));
}

// A payload says nothing about how its block is represented.
TEST(BlockCodec, RepresentativesMakeNoDifference) {
  BlockIdentity other = Identity();
  other.geometry.representative = kernels::RepresentativeKind::kBounds;
  EXPECT_EQ(Encode(other), Encode(Identity()));
  EXPECT_OK(VerifyBlock(Encode(Identity()), other));
}

TEST(BlockCodec, BytesThatRottedBeforeEncodingAreFound) {
  std::vector<std::byte> payload = Payloads(0, 0, 1, 0, kTiny);
  const uint32_t crc = Crc32c(payload);
  payload[5] ^= std::byte{1};
  std::vector<std::byte> encoded(EncodedBlockBytes(payload.size()));
  EncodeBlock(Identity(), payload, crc, encoded);
  EXPECT_THAT(VerifyBlock(encoded, Identity()),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("crc32c")));
}

}  // namespace
}  // namespace infllm::memstore
