#include "memstore/block_codec.h"

#include <algorithm>
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
  return {.key = {.context = {.hi = 77, .lo = 88}, .layer = 2, .index = 9},
          .tenant = "some tenant",
          .model = {.hi = 1, .lo = 2},
          .recipe = "some recipe",
          .geometry = kTiny};
}

std::vector<std::byte> Encode(const BlockIdentity& identity, const std::vector<std::byte>& payload,
                              uint32_t payload_crc) {
  const BlockHeader header = EncodeHeader(identity, payload_crc);
  std::vector<std::byte> encoded(header.begin(), header.end());
  encoded.insert(encoded.end(), payload.begin(), payload.end());
  EXPECT_EQ(encoded.size(), EncodedBlockBytes(payload.size()));
  return encoded;
}

std::vector<std::byte> Encode(const BlockIdentity& identity) {
  const std::vector<std::byte> payload = Payloads(0, 0, 1, 0, identity.geometry);
  return Encode(identity, payload, Crc32c(payload));
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
  const auto u64 = [&](size_t at) {
    uint64_t value;
    std::memcpy(&value, &encoded[at], sizeof(value));
    return value;
  };
  EXPECT_EQ(u32(8), 2u);
  EXPECT_EQ(u32(12), 384u);
  EXPECT_EQ(u64(16), 1u);
  EXPECT_EQ(u64(24), 2u);
  // xxhsum -H2 of "some recipe".
  EXPECT_EQ(u64(32), 0xd759fab4f8a883c8u);
  EXPECT_EQ(u64(40), 0xdccb4a51958a7ba7u);
  EXPECT_EQ(u64(48), 77u);
  EXPECT_EQ(u64(56), 88u);
  EXPECT_EQ(u64(64), 9u);
  EXPECT_EQ(u32(72), 2u);
  EXPECT_EQ(u32(76), 3u);
  EXPECT_EQ(u32(80), 2u);
  EXPECT_EQ(u32(84), 1u);
  EXPECT_EQ(u32(88), 4u);
  EXPECT_EQ(u32(92), 2u);
  EXPECT_EQ(u32(96), 0u);
  EXPECT_EQ(u32(100), 1u);
  EXPECT_EQ(u64(104), 64u);
  EXPECT_EQ(u32(116), 11u);
  EXPECT_EQ(text(120, 11), "some tenant");
  const auto payload = std::span(encoded).subspan(384);
  std::vector<std::byte> header(encoded.begin(), encoded.begin() + 384);
  std::fill_n(header.begin() + 112, 4, std::byte{0});
  EXPECT_EQ(u32(112), ExtendCrc32c(Crc32c(payload), header));
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
      {"owning context is 000000000000004d0000000000000058, expected "
       "000000000000004e0000000000000058",
       [](auto& i) { i.key.context.hi = 78; }},
      {"owning context is", [](auto& i) { i.key.context.lo = 78; }},
      {"layer is 2, expected 1", [](auto& i) { i.key.layer = 1; }},
      {"block index is 9, expected 10", [](auto& i) { i.key.index = 10; }},
      {"recipe is d759fab4f8a883c8dccb4a51958a7ba7, expected ",
       [](auto& i) { i.recipe = "some recipf"; }},
      {"recipe is", [](auto& i) { i.recipe = ""; }},
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
  other.geometry.representative = kernels::RepresentativeKind::kMeanKey;
  EXPECT_EQ(Encode(other), Encode(Identity()));
  EXPECT_OK(VerifyBlock(Encode(Identity()), other));
}

TEST(BlockCodec, BytesThatRottedBeforeEncodingAreFound) {
  std::vector<std::byte> payload = Payloads(0, 0, 1, 0, kTiny);
  const uint32_t crc = Crc32c(payload);
  payload[5] ^= std::byte{1};
  EXPECT_THAT(VerifyBlock(Encode(Identity(), payload, crc), Identity()),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("crc32c")));
}

}  // namespace
}  // namespace infllm::memstore
