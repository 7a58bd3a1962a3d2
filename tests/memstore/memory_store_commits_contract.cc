// The contract about commits. What survives the end of a process: catalog_test.cc.
#include <algorithm>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
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
using ::testing::IsEmpty;

const std::vector<int32_t> kTokens = {5, 7, -1, 1 << 30};
const std::vector<std::byte> kState = {std::byte{1}, std::byte{0}, std::byte{255}};

std::vector<std::string> Names(MemoryStore& store) {
  std::vector<std::string> names;
  const auto all = store.ListCommitted("tenant");
  EXPECT_OK(all);
  for (const CommittedContext& context : *all) names.push_back(context.name);
  return names;
}

CommitRequest RequestOf(const ContextId& context, int64_t blocks, std::string name) {
  return {.context = context,
          .id = NewContextId(),
          .name = std::move(name),
          .blocks = blocks,
          .tokens = kTokens,
          .state = kState};
}

}  // namespace

ContextId MemoryStoreContract::WithBlocks(int64_t blocks, int64_t published) {
  const ContextId id = NewContext();
  for (int32_t layer = 0; layer < kGeometry.layers; ++layer) {
    EXPECT_OK(Append(id, layer, 0, blocks));
    EXPECT_OK(Publish(id, layer, 0, published));
  }
  return id;
}

namespace {

TEST_P(MemoryStoreContract, ACommitNeedsADisk) {
  Remake(/*ram_blocks=*/1000, nullptr);
  const ContextId id = WithBlocks(1, 1);
  const auto none = StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("--data-dir"));
  EXPECT_THAT(store_->Commit(RequestOf(id, 1, "a")), none);
  EXPECT_THAT(store_->FindCommitted("tenant", "a"), none);
  EXPECT_THAT(store_->ListCommitted("tenant"), none);
  EXPECT_THAT(store_->ReadCheckpoint(id), none);
}

TEST_P(MemoryStoreContract, ACommitIsFoundByItsNameAndToldWhole) {
  Remake(/*ram_blocks=*/1000, NewFakeColdStore());
  const ContextId id = WithBlocks(5, 3);
  const CommitRequest request = RequestOf(id, 5, "a name");
  ASSERT_OK(store_->Commit(request));
  ASSERT_OK_AND_ASSIGN(const CommittedContext found, store_->FindCommitted("tenant", "a name"));
  EXPECT_EQ(found.id, request.id);
  EXPECT_EQ(found.name, "a name");
  EXPECT_EQ(found.options, Options());
  EXPECT_EQ(found.tokens, 4);
  EXPECT_EQ(found.blocks, 5);
  EXPECT_EQ(found.published, 3);
  EXPECT_EQ(found.base, ContextId{});
  EXPECT_GT(found.created_ms, 1'700'000'000'000);
  EXPECT_GE(found.stored_bytes, 10 * kPayloadBytes);
  ASSERT_OK_AND_ASSIGN(const Checkpoint checkpoint, store_->ReadCheckpoint(request.id));
  EXPECT_EQ(checkpoint.tokens, kTokens);
  EXPECT_EQ(checkpoint.state, kState);
  EXPECT_EQ(Stats().committed, 1);
  EXPECT_THAT(store_->FindCommitted("tenant", "another"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("another")));
  EXPECT_THAT(store_->FindCommitted("other", "a name"), StatusIs(absl::StatusCode::kNotFound));
}

TEST_P(MemoryStoreContract, ACommitIsReadLikeAnyOtherAndNeverChanges) {
  Remake(/*ram_blocks=*/1000, NewFakeColdStore());
  const ContextId id = WithBlocks(5, 3);
  const CommitRequest request = RequestOf(id, 5, "a");
  ASSERT_OK(store_->Commit(request));
  // Neither what its origin does nor its end changes it.
  ASSERT_OK(Append(id, 0, 5, 3));
  ASSERT_OK(Publish(id, 0, 3, 2));
  ASSERT_OK(store_->Drop(id));
  EXPECT_OK(FetchAndCompare(request.id, 0, {0, 1, 2, 3, 4}));
  EXPECT_OK(FetchAndCompare(request.id, 1, {4, 0}));
  EXPECT_THAT(FetchAndCompare(request.id, 0, {5}), StatusIs(absl::StatusCode::kOutOfRange));
  ASSERT_OK_AND_ASSIGN(const ContextOptions options, store_->Describe(request.id));
  EXPECT_EQ(options, Options());
  ASSERT_OK_AND_ASSIGN(const Selection all,
                       Select(0, {.context = request.id, .query = Query(0), .k = 9}));
  EXPECT_THAT(Indices(all), ElementsAre(0, 1, 2));
  const auto committed = StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("is committed"));
  EXPECT_THAT(Append(request.id, 0, 5, 1), committed);
  EXPECT_THAT(Publish(request.id, 0, 3, 1), committed);
  const ContextId fork = Forked(request.id);
  EXPECT_OK(Append(fork, 0, 5, 1));
  EXPECT_OK(Publish(fork, 0, 3, 3));
}

TEST_P(MemoryStoreContract, ACommitReplacesTheOneThatHadTheName) {
  Remake(/*ram_blocks=*/1000, NewFakeColdStore());
  const ContextId id = WithBlocks(2, 2);
  const CommitRequest first = RequestOf(id, 2, "a");
  ASSERT_OK(store_->Commit(first));
  ASSERT_OK(Append(id, 0, 2, 2));
  ASSERT_OK(Append(id, 1, 2, 2));
  CommitRequest second = RequestOf(id, 4, "a");
  const auto taken = StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("\"a\""));
  EXPECT_THAT(store_->Commit(second), taken) << "as if the name were free";
  second.replaces = NewContextId();
  EXPECT_THAT(store_->Commit(second), taken) << "it belongs to another";
  second.replaces = first.id;
  ASSERT_OK(store_->Commit(second));
  EXPECT_THAT(Names(*store_), ElementsAre("a"));
  EXPECT_EQ(Stats().committed, 1);
  EXPECT_OK(FetchAndCompare(second.id, 1, {0, 1, 2, 3}));
  EXPECT_THAT(FetchAndCompare(first.id, 0, {0}), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(store_->ReadCheckpoint(first.id), StatusIs(absl::StatusCode::kNotFound));
  CommitRequest third = RequestOf(id, 4, "b");
  third.replaces = second.id;
  EXPECT_THAT(store_->Commit(third), StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("\"b\"")))
      << "it has another name";
}

TEST_P(MemoryStoreContract, WhatBeginsWithSeveralContextsIsNotCommitted) {
  Remake(/*ram_blocks=*/1000, NewFakeColdStore());
  const ForkPart parts[] = {{.context = WithBlocks(2, 2)}, {.context = WithBlocks(2, 2)}};
  const ContextId joined = NewContextId();
  ASSERT_OK(store_->Fork(parts, joined));
  for (const ContextId& id : {joined, Forked(joined)}) {
    EXPECT_THAT(store_->Commit(RequestOf(id, 4, "a")),
                StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("several")));
  }
}

// Of a context with `tokens`, which can be gone on from at multiples of 4 up to `reusable`.
CommitRequest Begins(const ContextId& context, std::string name, std::span<const int32_t> tokens,
                     int64_t reusable) {
  CommitRequest request = RequestOf(context, 1, std::move(name));
  request.tokens = tokens;
  request.reusable = {.exec_block = 4, .tokens = reusable};
  return request;
}

TEST_P(MemoryStoreContract, ThePrefixFoundIsTheLongest) {
  Remake(/*ram_blocks=*/1000, NewFakeColdStore());
  std::vector<int32_t> tokens(40);
  std::iota(tokens.begin(), tokens.end(), 100);
  std::vector<int32_t> forked = tokens;  // differs from token 17 on
  std::iota(forked.begin() + 17, forked.end(), 500);
  const auto find = [&](std::span<const int32_t> wanted) {
    return store_->FindPrefix(Options(), 4, wanted);
  };
  const auto expect = [&](std::span<const int32_t> wanted, const char* name, int64_t shared) {
    const auto found = find(wanted);
    ASSERT_OK(found);
    EXPECT_EQ(found->context.name, name);
    EXPECT_EQ(found->tokens, shared);
    EXPECT_EQ(*store_->FindCommitted("tenant", name), found->context);
  };
  const auto none = StatusIs(absl::StatusCode::kNotFound);
  EXPECT_THAT(find(tokens), none) << "nothing is committed";
  const ContextId id = WithBlocks(1, 1);
  const std::span<const int32_t> all = tokens;
  ASSERT_OK(store_->Commit(Begins(id, "whole", tokens, 40)));
  ASSERT_OK(store_->Commit(Begins(id, "half", all.first(20), 20)));
  ASSERT_OK(store_->Commit(Begins(id, "fork", forked, 36)));
  ASSERT_OK(store_->Commit(Begins(id, "aside", tokens, 0)));
  expect(tokens, "whole", 40);
  expect(all.first(39), "whole", 36);
  expect(forked, "fork", 36);
  std::vector<int32_t> other = tokens;
  other[21] = 0;
  expect(other, "half", 20);
  EXPECT_THAT(find(all.first(3)), none) << "less than an exec block";
  EXPECT_THAT(find(all.subspan(4)), none) << "its end alone";
  EXPECT_THAT(find({}), none);
  other = tokens;
  other[0] = 0;
  EXPECT_THAT(find(other), none);

  ASSERT_OK_AND_ASSIGN(const CommittedContext whole, store_->FindCommitted("tenant", "whole"));
  EXPECT_EQ(whole.reusable, (Reusable{.exec_block = 4, .tokens = 40}));
  ASSERT_OK(store_->Drop(whole.id));
  expect(tokens, "half", 20);
  expect(all.first(16), "fork", 16);
}

TEST_P(MemoryStoreContract, APrefixIsFoundOnlyAmongItsLike) {
  Remake(/*ram_blocks=*/1000, NewFakeColdStore());
  const std::vector<int32_t> tokens(8, 3);
  ASSERT_OK(store_->Commit(Begins(WithBlocks(1, 1), "a", tokens, 8)));
  const auto none = StatusIs(absl::StatusCode::kNotFound);
  ASSERT_OK(store_->FindPrefix(Options(), 4, tokens));
  EXPECT_THAT(store_->FindPrefix(Options(), 2, tokens), none);
  EXPECT_THAT(store_->FindPrefix(Options(), 8, tokens), none);
  ContextOptions other = Options();
  other.tenant = "other";
  EXPECT_THAT(store_->FindPrefix(other, 4, tokens), none);
  other = Options();
  other.model.lo ^= 1;
  EXPECT_THAT(store_->FindPrefix(other, 4, tokens), none);
  other = Options();
  other.recipe += "x";
  EXPECT_THAT(store_->FindPrefix(other, 4, tokens), none);
  other = Options();
  other.geometry.head_dim *= 2;
  EXPECT_THAT(store_->FindPrefix(other, 4, tokens), none);
}

TEST_P(MemoryStoreContract, WhatCannotBeGoneOnFromIsRefused) {
  Remake(/*ram_blocks=*/1000, NewFakeColdStore());
  const ContextId id = WithBlocks(1, 1);
  const std::vector<int32_t> tokens(8, 3);
  const auto refused = [&](Reusable reusable, const char* text) {
    CommitRequest request = Begins(id, "a", tokens, 0);
    request.reusable = reusable;
    EXPECT_THAT(store_->Commit(request),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(text)));
  };
  refused({.exec_block = 4, .tokens = 12}, "12");
  refused({.exec_block = 4, .tokens = -4}, "-4");
  refused({.exec_block = 4, .tokens = 6}, "multiple of exec_block = 4");
  refused({.exec_block = 0, .tokens = 8}, "exec_block");
  refused({.exec_block = -4, .tokens = 8}, "exec_block");
  const std::vector<int32_t> many(limits::kMaxReusableExecBlocks + 1);
  CommitRequest request = Begins(id, "a", many, 0);
  request.reusable = {.exec_block = 1, .tokens = static_cast<int64_t>(many.size())};
  EXPECT_THAT(store_->Commit(request),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("65537")));
  for (const int32_t exec_block : {0, -1, limits::kMaxExecBlock + 1}) {
    EXPECT_THAT(store_->FindPrefix(Options(), exec_block, tokens),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("exec_block")));
  }
}

TEST_P(MemoryStoreContract, ACommitCanBeRepeated) {
  Remake(/*ram_blocks=*/1000, NewFakeColdStore());
  const ContextId id = WithBlocks(2, 2);
  const CommitRequest request = RequestOf(id, 2, "a");
  ASSERT_OK(store_->Commit(request));
  EXPECT_OK(store_->Commit(request));
  EXPECT_EQ(Stats().committed, 1);
  CommitRequest other = RequestOf(id, 2, "b");
  other.id = request.id;
  EXPECT_THAT(store_->Commit(other), StatusIs(absl::StatusCode::kAlreadyExists));
}

TEST_P(MemoryStoreContract, ACommitRefusesWhatIsNotWhole) {
  Remake(/*ram_blocks=*/1000, NewFakeColdStore());
  const ContextId id = WithBlocks(2, 1);
  const auto refused = [&](CommitRequest request, absl::StatusCode code, const char* text) {
    EXPECT_THAT(store_->Commit(request), StatusIs(code, HasSubstr(text)));
  };
  using enum absl::StatusCode;
  refused(RequestOf(id, 3, "a"), kFailedPrecondition, "has 2 blocks");
  refused(RequestOf(NewContextId(), 2, "a"), kNotFound, "does not exist");
  refused(RequestOf(id, 2, ""), kInvalidArgument, "0 bytes");
  refused(RequestOf(id, 2, std::string(257, 'x')), kInvalidArgument, "257 bytes");
  refused(RequestOf(id, 2, "a\nb"), kInvalidArgument, "a\\nb");
  refused(RequestOf(id, -1, "a"), kInvalidArgument, "blocks is -1");
  CommitRequest zero = RequestOf(id, 2, "a");
  zero.id = {};
  refused(zero, kInvalidArgument, "zero");
  const std::vector<std::byte> large(limits::kMaxCheckpointBytes - 15);
  CommitRequest too_large = RequestOf(id, 2, "a");
  too_large.state = large;
  refused(too_large, kInvalidArgument, "67108865 bytes");
  ASSERT_OK(Publish(id, 1, 1, 1));
  refused(RequestOf(id, 2, "a"), kFailedPrecondition, "layer 1");
  EXPECT_THAT(Names(*store_), IsEmpty());
}

TEST_P(MemoryStoreContract, AnIdOfACommitIsTaken) {
  Remake(/*ram_blocks=*/1000, NewFakeColdStore());
  const ContextId id = WithBlocks(1, 1);
  const CommitRequest request = RequestOf(id, 1, "a");
  ASSERT_OK(store_->Commit(request));
  const auto exists = StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("committed"));
  EXPECT_THAT(store_->Create(request.id, Options()), exists);
  EXPECT_THAT(store_->Fork(id, request.id), exists);
  CommitRequest own = RequestOf(id, 1, "b");
  own.id = id;
  EXPECT_THAT(store_->Commit(own), StatusIs(absl::StatusCode::kAlreadyExists));
}

TEST_P(MemoryStoreContract, ForksCommitApartAndShare) {
  Remake(/*ram_blocks=*/1000, NewFakeColdStore());
  const ContextId id = WithBlocks(3, 3);
  const CommitRequest base = RequestOf(id, 3, "base");
  ASSERT_OK(store_->Commit(base));
  const ContextId left = Forked(base.id), right = Forked(base.id);
  for (int32_t layer = 0; layer < kGeometry.layers; ++layer) {
    ASSERT_OK(Append(left, layer, 3, 2, /*flavour=*/1));
    ASSERT_OK(Append(right, layer, 3, 4, /*flavour=*/2));
    ASSERT_OK(Publish(left, layer, 3, 2, /*flavour=*/1));
    ASSERT_OK(Publish(right, layer, 3, 4, /*flavour=*/2));
  }
  const CommitRequest l = RequestOf(left, 5, "left"), r = RequestOf(right, 7, "right");
  ASSERT_OK(store_->Commit(l));
  ASSERT_OK(store_->Commit(r));
  EXPECT_EQ(Stats().blocks, 2 * (3 + 2 + 4));
  ASSERT_OK_AND_ASSIGN(const CommittedContext found, store_->FindCommitted("tenant", "left"));
  EXPECT_EQ(found.base, base.id);
  ASSERT_OK(store_->Drop(base.id));
  ASSERT_OK(store_->Drop(left));
  EXPECT_THAT(Names(*store_), ElementsAre("left", "right"));
  EXPECT_OK(FetchAndCompare(l.id, 0, {0, 1, 2}));
  EXPECT_OK(FetchAndCompare(l.id, 1, {3, 4}, 1));
  EXPECT_OK(FetchAndCompare(r.id, 1, {3, 6}, 2));
  for (const ContextId& gone : {l.id, r.id, id, right}) ASSERT_OK(store_->Drop(gone));
  EXPECT_EQ(Stats().blocks, 0);
  EXPECT_EQ(Stats().cold_bytes, 0);
  EXPECT_EQ(Stats().representative_bytes, 0);
}

TEST_P(MemoryStoreContract, AForkOfTheFirstBlocks) {
  Remake(/*ram_blocks=*/1000, NewFakeColdStore());
  const ContextId id = WithBlocks(300, 290);
  const CommitRequest request = RequestOf(id, 300, "a");
  ASSERT_OK(store_->Commit(request));
  for (const ContextId& parent : {id, request.id}) {
    for (const int64_t blocks : {0, 1, 8, 255, 256, 257, 290, 295, 300, 1000}) {
      const ContextId child = NewContextId();
      ASSERT_OK(store_->Fork(parent, child, blocks));
      EXPECT_OK(store_->Fork(parent, child, blocks)) << "it can be repeated";
      const int64_t stored = std::min<int64_t>(blocks, 300);
      ASSERT_OK_AND_ASSIGN(const Selection all,
                           Select(0, {.context = child, .query = Query(0), .k = 1000}));
      EXPECT_EQ(static_cast<int64_t>(all.blocks.size()), std::min<int64_t>(stored, 290));
      EXPECT_THAT(FetchAndCompare(child, 0, {stored}), StatusIs(absl::StatusCode::kOutOfRange));
      EXPECT_OK(Append(child, 0, stored, 2, /*flavour=*/9));
      EXPECT_OK(FetchAndCompare(child, 0, {stored, stored + 1}, 9));
      if (stored > 0) {
        EXPECT_OK(FetchAndCompare(child, 0, {0, stored - 1}));
      }
      ASSERT_OK(store_->Drop(child));
    }
    EXPECT_THAT(store_->Fork(parent, NewContextId(), -1),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("-1")));
  }
}

TEST_P(MemoryStoreContract, ACommitWritesWhatRamHolds) {
  Remake(/*ram_blocks=*/8, NewFakeColdStore());
  const ContextId id = WithBlocks(40, 40);
  const CommitRequest request = RequestOf(id, 40, "a");
  ASSERT_OK(store_->Commit(request));
  for (int64_t block = 0; block < 40; ++block) {
    EXPECT_OK(FetchAndCompare(request.id, static_cast<int32_t>(block % 2), {block}));
  }
}

}  // namespace
}  // namespace infllm::memstore
