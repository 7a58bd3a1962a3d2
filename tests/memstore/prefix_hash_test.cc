#include "memstore/prefix_hash.h"

#include <set>
#include <string>

#include "absl/strings/escaping.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace infllm::memstore {
namespace {

using ::testing::SizeIs;

const std::vector<int32_t> kTokens = {0, 1, -2, 3, 4, 5, 6, 1 << 30, 8};

ContextOptions Some() {
  return {.tenant = "me",
          .model = {.hi = 1, .lo = 2},
          .recipe = "k=1",
          .geometry = {.layers = 2,
                       .q_heads = 4,
                       .kv_heads = 2,
                       .head_dim = 8,
                       .block_tokens = 16,
                       .dtype = kernels::DType::kBF16,
                       .representative = kernels::RepresentativeKind::kBounds}};
}

std::string Hex(const PrefixHash& hash) {
  return absl::BytesToHexString({reinterpret_cast<const char*>(hash.data()), hash.size()});
}

// They are kept on disk: these come from Python's hashlib and struct.
TEST(PrefixHashTest, StaysWhatItIs) {
  const std::vector<PrefixHash> hashes = PrefixHashes(Some(), 4, kTokens);
  ASSERT_THAT(hashes, SizeIs(2)) << "the last token fills no exec block";
  EXPECT_EQ(Hex(hashes[0]), "aed490c736836e84a079a59fbd4355a48ea71b444635501fe6e9463e044b84a1");
  EXPECT_EQ(Hex(hashes[1]), "58ce4a37a08b7a31b9b091a3a049321bb6fb7a78da721391e3ffa46278a3461d");
}

TEST(PrefixHashTest, EveryFieldCounts) {
  std::set<PrefixHash> seen = {PrefixHashes(Some(), 4, kTokens).front()};
  const auto changes = [&](auto change) {
    ContextOptions options = Some();
    change(options);
    EXPECT_TRUE(seen.insert(PrefixHashes(options, 4, kTokens).front()).second);
  };
  changes([](ContextOptions& o) { o.tenant = "you"; });
  // The same bytes, cut elsewhere.
  changes([](ContextOptions& o) { o.tenant = "m"; });
  changes([](ContextOptions& o) { o.recipe = ""; });
  changes([](ContextOptions& o) { o.model.hi = 2; });
  changes([](ContextOptions& o) { o.model.lo = 3; });
  changes([](ContextOptions& o) { o.geometry.layers = 3; });
  changes([](ContextOptions& o) { o.geometry.q_heads = 2; });
  changes([](ContextOptions& o) { o.geometry.kv_heads = 1; });
  changes([](ContextOptions& o) { o.geometry.head_dim = 4; });
  changes([](ContextOptions& o) { o.geometry.block_tokens = 8; });
  changes([](ContextOptions& o) { o.geometry.dtype = kernels::DType::kF32; });
  changes(
      [](ContextOptions& o) { o.geometry.representative = kernels::RepresentativeKind::kMeanKey; });
  EXPECT_TRUE(seen.insert(PrefixHashes(Some(), 2, kTokens).front()).second);
  EXPECT_TRUE(seen.insert(PrefixHashes(Some(), 8, kTokens).front()).second);
}

TEST(PrefixHashTest, StandsForAllTokensBefore) {
  std::vector<int32_t> tokens = kTokens;
  const std::vector<PrefixHash> hashes = PrefixHashes(Some(), 2, tokens);
  tokens[3] ^= 1;
  const std::vector<PrefixHash> changed = PrefixHashes(Some(), 2, tokens);
  ASSERT_THAT(changed, SizeIs(4));
  EXPECT_EQ(changed[0], hashes[0]);
  for (size_t i = 1; i < 4; ++i) EXPECT_NE(changed[i], hashes[i]) << i;
  EXPECT_THAT(PrefixHashes(Some(), 10, tokens), SizeIs(0));
}

}  // namespace
}  // namespace infllm::memstore
