// The part of the contract about contexts: how they come, fork and go.
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "memstore/limits.h"
#include "tests/memstore/memory_store_contract.h"
#include "tests/support/status_matchers.h"

namespace infllm::memstore {
namespace {

using ::infllm::testing::IsOk;
using ::infllm::testing::StatusIs;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// ---- Create

TEST_P(MemoryStoreContract, CreateNamesTheFieldThatIsWrong) {
  const auto refused = [&](auto change, std::string_view name) {
    ContextOptions options = Options();
    change(options);
    EXPECT_THAT(store_->Create(NewContextId(), options),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(std::string(name))));
  };
  EXPECT_THAT(store_->Create(ContextId{}, Options()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("id is zero")));
  refused([](auto& o) { o.recipe = std::string(limits::kMaxRecipeBytes + 1, 'x'); }, "recipe");
  refused([](auto& o) { o.tenant = std::string(limits::kMaxTenantBytes + 1, 'x'); }, "tenant");
  for (const int32_t bad : {0, -1, std::numeric_limits<int32_t>::min(), 1 << 20}) {
    refused([&](auto& o) { o.geometry.layers = bad; }, "layers");
    refused([&](auto& o) { o.geometry.q_heads = bad; }, "q_heads");
    refused([&](auto& o) { o.geometry.kv_heads = bad; }, "kv_heads");
    refused([&](auto& o) { o.geometry.head_dim = bad; }, "head_dim");
    refused([&](auto& o) { o.geometry.block_tokens = bad; }, "block_tokens");
  }
  refused([](auto& o) { o.geometry.kv_heads = 3; }, "multiple of kv_heads");
  refused(
      [](auto& o) {
        o.geometry.q_heads = o.geometry.kv_heads = limits::kMaxHeads;
        o.geometry.head_dim = limits::kMaxHeadDim;
        o.geometry.block_tokens = limits::kMaxBlockTokens;
      },
      "bytes of a block");
  refused([](auto& o) { o.geometry.dtype = static_cast<kernels::DType>(7); }, "dtype");
  EXPECT_EQ(Stats().contexts, 0);
}

TEST_P(MemoryStoreContract, TheLongestNamesAreTaken) {
  ContextOptions options = Options();
  options.tenant = std::string(limits::kMaxTenantBytes, '\xff');
  options.recipe = std::string(limits::kMaxRecipeBytes, 'r');
  EXPECT_OK(store_->Create(NewContextId(), options));
}

TEST_P(MemoryStoreContract, CreateCanBeRepeated) {
  const ContextId id = NewContextId();
  ASSERT_OK(store_->Create(id, Options()));
  EXPECT_OK(store_->Create(id, Options()));
  ASSERT_OK_AND_ASSIGN(const ContextOptions options, store_->Describe(id));
  EXPECT_EQ(options, Options());
  ASSERT_OK(Append(id, 0, 0, 2));
  EXPECT_OK(store_->Create(id, Options()));
  EXPECT_OK(FetchAndCompare(id, 0, {0, 1})) << "it is not made anew";
  EXPECT_EQ(Stats().contexts, 1);
  ASSERT_OK(store_->Drop(id));
  ASSERT_OK(store_->Create(id, Options()));
  EXPECT_OK(Append(id, 0, 0, 1, /*flavour=*/1)) << "after a drop it is";
}

TEST_P(MemoryStoreContract, AnIdIsOfOneContext) {
  const ContextId id = NewContext();
  const auto exists = StatusIs(absl::StatusCode::kAlreadyExists,
                               AllOf(HasSubstr(ToString(id)), HasSubstr("other")));
  const auto refused = [&](auto change) {
    ContextOptions options = Options();
    change(options);
    EXPECT_THAT(store_->Create(id, options), exists);
  };
  refused([](auto& o) { o.model.lo = 43; });
  refused([](auto& o) { o.recipe = "n_local=128"; });
  refused([](auto& o) { o.geometry.layers = 3; });
  refused([](auto& o) { o.geometry.dtype = kernels::DType::kBF16; });
  refused([](auto& o) { o.geometry.representative = kernels::RepresentativeKind::kBounds; });
  const ContextId fork = Forked(id);
  EXPECT_THAT(store_->Create(fork, Options()),
              StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("fork")));
  EXPECT_EQ(Stats().contexts, 2);
}

TEST_P(MemoryStoreContract, ABlockLargerThanRamIsRefusedAtOnce) {
  Remake(/*ram_blocks=*/1, nullptr);
  EXPECT_OK(store_->Create(NewContextId(), Options()));
  ContextOptions options = Options();
  options.geometry.block_tokens *= 2;
  EXPECT_THAT(store_->Create(NewContextId(), options),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("--ram-bytes")));
}

// ---- Fork, Drop

TEST_P(MemoryStoreContract, AForkSharesThePastAndGrowsApart) {
  const ContextId parent = NewContext();
  ASSERT_OK(Append(parent, 0, 0, 300));
  ASSERT_OK(Publish(parent, 0, 0, 290));
  const ContextId child = Forked(parent);
  EXPECT_NE(parent, child);
  EXPECT_EQ(Stats().blocks, 300);
  ASSERT_OK(Append(parent, 0, 300, 10, /*flavour=*/1));
  ASSERT_OK(Append(child, 0, 300, 10, /*flavour=*/2));
  // Blocks stored but not published when the fork was made get representatives on either side.
  ASSERT_OK(Publish(parent, 0, 290, 10, /*flavour=*/1));
  ASSERT_OK(Publish(child, 0, 290, 10, /*flavour=*/2));
  EXPECT_EQ(Stats().blocks, 320);
  EXPECT_EQ(Stats().contexts, 2);

  for (const auto& [id, flavour] : {std::pair{parent, 1}, std::pair{child, 2}}) {
    EXPECT_OK(FetchAndCompare(id, 0, {0, 255, 256, 299}));
    EXPECT_OK(FetchAndCompare(id, 0, {300, 309}, flavour));
    std::vector<float> of_last = Representatives(0, 295, 1, flavour);
    ASSERT_OK_AND_ASSIGN(const Selection best,
                         Select(0, {.context = id, .query = of_last, .k = 1}));
    EXPECT_EQ(best.blocks[0].score,
              std::inner_product(of_last.begin(), of_last.end(), of_last.begin(), 0.0f));
  }
  EXPECT_THAT(Append(child, 0, 300, 1, /*flavour=*/1), StatusIs(absl::StatusCode::kAlreadyExists));
}

TEST_P(MemoryStoreContract, ForkCanBeRepeatedUntilEitherGrows) {
  const ContextId parent = NewContext();
  ASSERT_OK(Append(parent, 1, 0, 3));
  ASSERT_OK(Publish(parent, 1, 0, 2));
  const ContextId first = Forked(parent), second = Forked(parent), third = Forked(parent);
  for (const ContextId& child : {first, second, third}) EXPECT_OK(store_->Fork(parent, child));
  EXPECT_EQ(Stats().contexts, 4);
  const auto grown = StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("grown"));
  ASSERT_OK(Append(first, 0, 0, 1));
  EXPECT_THAT(store_->Fork(parent, first), grown);
  ASSERT_OK(Publish(second, 1, 2, 1));
  EXPECT_THAT(store_->Fork(parent, second), grown);
  EXPECT_OK(store_->Fork(parent, third)) << "what its sisters do is their own";
  EXPECT_OK(FetchAndCompare(third, 1, {0, 1, 2}));

  const ContextId root = NewContext(), child = Forked(root);
  ASSERT_OK(Append(root, 0, 0, 1));
  EXPECT_THAT(store_->Fork(root, child), grown) << "the parent, too";
}

TEST_P(MemoryStoreContract, AForkTakesNoIdThatIsTaken) {
  const ContextId parent = NewContext(), other = NewContext();
  const ContextId child = Forked(parent);
  const auto exists = StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("exists already"));
  EXPECT_THAT(store_->Fork(parent, other), exists);
  EXPECT_THAT(store_->Fork(parent, parent), exists);
  EXPECT_THAT(store_->Fork(other, child), exists) << "it has another parent";
  EXPECT_THAT(store_->Fork(parent, ContextId{}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(Stats().contexts, 3);
}

TEST_P(MemoryStoreContract, AForkMayBeginWithSeveralParts) {
  const auto made = [&](int64_t flavour, int64_t blocks, int64_t published) {
    const ContextId id = NewContext();
    for (int32_t layer = 0; layer < kGeometry.layers; ++layer) {
      EXPECT_OK(Append(id, layer, 0, blocks, flavour));
      EXPECT_OK(Publish(id, layer, 0, published));
    }
    return id;
  };
  // 300: more than a segment of a table.
  const ContextId a = made(1, 300, 300), b = made(2, 7, 7), c = made(3, 4, 2);
  const ForkPart parts[] = {{.context = a}, {.context = b, .blocks = 5}, {.context = c}};
  const ContextId fork = NewContextId();
  ASSERT_OK(store_->Fork(parts, fork));
  EXPECT_OK(store_->Fork(parts, fork)) << "it can be repeated";
  const auto exists = StatusIs(absl::StatusCode::kAlreadyExists);
  const ForkPart of_the_same_size[] = {
      {.context = a, .blocks = 299}, {.context = b, .blocks = 6}, {.context = c}};
  EXPECT_THAT(store_->Fork(of_the_same_size, fork), exists);
  EXPECT_THAT(store_->Fork(a, fork), exists);
  const ForkPart of_joined[] = {{.context = b}, {.context = fork}};
  EXPECT_THAT(store_->Fork(of_joined, NewContextId()),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("several")));
  const auto whose = [&](int64_t index) -> std::pair<int64_t, int64_t> {
    if (index < 300) return {1, index};
    return index < 305 ? std::pair<int64_t, int64_t>{2, index - 300}
                       : std::pair<int64_t, int64_t>{3, index - 305};
  };
  for (const int64_t index : {0, 255, 256, 299, 300, 304, 305, 308}) {
    const auto [flavour, block] = whose(index);
    ASSERT_OK_AND_ASSIGN(const std::vector<BlockHandle> handles,
                         store_->Fetch(fork, 1, std::vector<int64_t>{index}));
    EXPECT_TRUE(std::ranges::equal(handles[0].payload(), Payloads(1, block, 1, flavour))) << index;
  }
  EXPECT_THAT(store_->Fetch(fork, 0, std::vector<int64_t>{309}),
              StatusIs(absl::StatusCode::kOutOfRange));
  // Selected as if it were one: each score is that of the part alone.
  ASSERT_OK_AND_ASSIGN(const Selection all,
                       Select(0, {.context = fork, .query = Query(0), .k = 400}));
  ASSERT_EQ(all.blocks.size(), 307u) << "two of the last are not published";
  ASSERT_OK_AND_ASSIGN(const Selection of_b,
                       Select(0, {.context = b, .query = Query(0), .k = 400}));
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(all.blocks[300 + i].score, of_b.blocks[i].score) << i;

  // Then it grows apart.
  ASSERT_OK(Publish(fork, 0, 307, 2, 3));
  ASSERT_OK(Append(fork, 0, 309, 1));
  ASSERT_OK(Append(b, 0, 7, 1));
  ASSERT_OK_AND_ASSIGN(const Selection grown,
                       Select(0, {.context = fork, .query = Query(0), .k = 400}));
  EXPECT_EQ(grown.blocks.size(), 309u);
  for (const ContextId& id : {a, b, c}) ASSERT_OK(store_->Drop(id));
  EXPECT_OK(store_->Fetch(fork, 0, std::vector<int64_t>{0, 300, 308, 309}).status());
}

TEST_P(MemoryStoreContract, PartsThatDoNotFitAreRefused) {
  const ContextId a = WithBlocks(3, 2), b = WithBlocks(2, 2);
  const auto forked = [&](const std::vector<ForkPart>& parts) {
    return store_->Fork(parts, NewContextId());
  };
  EXPECT_OK(forked({{.context = b}, {.context = a}}));
  EXPECT_THAT(forked({{.context = a}, {.context = b}}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("not published")));
  EXPECT_OK(forked({{.context = a, .blocks = 2}, {.context = b}}));
  EXPECT_THAT(forked({}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("parts")));
  EXPECT_THAT(forked(std::vector<ForkPart>(limits::kMaxForkParts + 1, ForkPart{.context = b})),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("parts")));
  EXPECT_THAT(forked({{.context = b}, {.context = b, .blocks = 1}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("twice")));
  EXPECT_THAT(forked({{.context = b}, {.context = NewContextId()}}),
              StatusIs(absl::StatusCode::kNotFound));
  ContextOptions other = Options();
  other.recipe += "x";
  const ContextId c = NewContextId();
  ASSERT_OK(store_->Create(c, other));
  EXPECT_THAT(forked({{.context = b}, {.context = c}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("other options")));
  ASSERT_OK(Append(b, 0, 2, 1));
  ASSERT_OK(Publish(b, 0, 2, 1));
  EXPECT_THAT(forked({{.context = b}, {.context = a}}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("layer 1")))
      << "its layers have not the same number";
}

TEST_P(MemoryStoreContract, WhatForksShareGoesWithTheLastOfThem) {
  const ContextId parent = NewContext();
  ASSERT_OK(Append(parent, 0, 0, 10));
  const ContextId child = Forked(parent);
  const ContextId grandchild = Forked(child);
  ASSERT_OK(Append(child, 0, 10, 5, 1));
  ASSERT_OK(store_->Drop(parent));
  EXPECT_OK(FetchAndCompare(child, 0, {0, 9}));
  EXPECT_EQ(Stats().blocks, 15);
  ASSERT_OK(store_->Drop(child));
  EXPECT_OK(FetchAndCompare(grandchild, 0, {0, 9}));
  EXPECT_EQ(Stats().blocks, 10);
  ASSERT_OK(store_->Drop(grandchild));
  const StoreStats stats = Stats();
  EXPECT_EQ(stats.blocks, 0);
  EXPECT_EQ(stats.blocks_ram, 0);
  EXPECT_EQ(stats.ram_bytes, 0);
  EXPECT_EQ(stats.contexts, 0);
  EXPECT_EQ(stats.representative_bytes, 0);
}

TEST_P(MemoryStoreContract, AHandleOutlivesItsContext) {
  const ContextId id = NewContext();
  ASSERT_OK(Append(id, 0, 0, 2));
  ASSERT_OK_AND_ASSIGN(const auto handles, store_->Fetch(id, 0, std::vector<int64_t>{1}));
  const BlockHandle copy = handles[0];
  ASSERT_OK(store_->Drop(id));
  const ContextId other = NewContext();
  ASSERT_OK(Append(other, 0, 0, 50, /*flavour=*/3));
  EXPECT_EQ(Bytes(copy), Payloads(0, 1));
}

TEST_P(MemoryStoreContract, AHandleOutlivesTheStore) {
  const ContextId id = NewContext();
  ASSERT_OK(Append(id, 0, 0, 1));
  ASSERT_OK_AND_ASSIGN(const auto handles, store_->Fetch(id, 0, std::vector<int64_t>{0}));
  store_.reset();
  EXPECT_EQ(Bytes(handles[0]), Payloads(0, 0));
}

}  // namespace
}  // namespace infllm::memstore
