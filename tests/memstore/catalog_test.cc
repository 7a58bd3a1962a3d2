// What committed contexts survive: the end of a process at every write, and damage of every entry.
#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/core/status_macros.h"
#include "memstore/commit_record.h"
#include "memstore/in_process_store.h"
#include "tests/memstore/fake_disk.h"
#include "tests/memstore/memory_store_contract.h"
#include "tests/memstore/test_blocks.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::memstore {
namespace {

using ::infllm::testing::IsOk;
using ::infllm::testing::StatusIs;
using ::infllm::testing::TempDir;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// RAM for so few blocks that most are written before they are committed.
constexpr int64_t kRamBlocks = 6;

std::unique_ptr<MemoryStore> OpenOn(std::unique_ptr<ColdStore> cold) {
  auto store = NewInProcessStore({.ram_capacity_bytes = kRamBlocks * kPayloadBytes}, TestBackend(),
                                 std::move(cold));
  EXPECT_OK(store);
  return *std::move(store);
}

// What a context holds: blocks of flavour 0 below `fork`, of `flavour` from there on.
struct Content {
  int64_t blocks = 0;
  int64_t published = 0;
  int64_t fork = 0;
  int64_t flavour = 0;
  int64_t FlavourOf(int64_t block) const { return block < fork ? 0 : flavour; }
  std::vector<int32_t> tokens() const {
    return {static_cast<int32_t>(blocks), static_cast<int32_t>(flavour), 12345};
  }
  std::vector<std::byte> state() const { return std::vector<std::byte>(blocks, std::byte{7}); }
  friend bool operator==(const Content&, const Content&) = default;
};
using Contents = std::map<std::string, Content>;  // of committed contexts, by name

absl::Status Grow(MemoryStore& store, const ContextId& id, const Content& from, const Content& to) {
  for (int32_t layer = 0; layer < kGeometry.layers; ++layer) {
    for (int64_t block = from.blocks; block < to.blocks; ++block) {
      INFLLM_RETURN_IF_ERROR(
          store.Append(id, layer, block, Spans(Payloads(layer, block, 1, to.FlavourOf(block)))));
    }
    for (int64_t block = from.published; block < to.published; ++block) {
      INFLLM_RETURN_IF_ERROR(
          store.Publish(id, layer, block, Representatives(layer, block, 1, to.FlavourOf(block))));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ContextId> CommitAs(MemoryStore& store, const ContextId& id, const Content& content,
                                   const std::string& name, const ContextId& replaces = {},
                                   const ContextId& committed = NewContextId()) {
  INFLLM_RETURN_IF_ERROR(store.Commit({.context = id,
                                       .id = committed,
                                       .name = name,
                                       .replaces = replaces,
                                       .blocks = content.blocks,
                                       .tokens = content.tokens(),
                                       .state = content.state()}));
  return committed;
}

// Every byte of a context.
void ExpectHolds(MemoryStore& store, const ContextId& id, const Content& content) {
  for (int32_t layer = 0; layer < kGeometry.layers; ++layer) {
    for (int64_t block = 0; block < content.blocks; ++block) {
      ASSERT_OK_AND_ASSIGN(const auto handles, store.Fetch(id, layer, {&block, 1}));
      ASSERT_EQ(Bytes(handles[0]), Payloads(layer, block, 1, content.FlavourOf(block)))
          << "layer " << layer << ", block " << block;
    }
    const SelectQuery query{.context = id, .query = Query(layer), .k = 2};
    const std::vector<float> values = Query(layer);
    SelectQuery asked = query;
    asked.query = values;
    ASSERT_OK_AND_ASSIGN(const auto selections,
                         store.Select({.layer = layer, .queries = {&asked, 1}}));
    ASSERT_OK(selections[0].status);
    ASSERT_THAT(selections[0].blocks, SizeIs(std::min<int64_t>(2, content.published)));
    for (const SelectedBlock& block : selections[0].blocks) {
      const std::vector<float> key =
          Representatives(layer, block.index, 1, content.FlavourOf(block.index));
      float score = 0;
      for (size_t i = 0; i < key.size(); ++i) score += key[i] * values[i];
      EXPECT_EQ(block.score, score);
    }
  }
}

void ExpectCommitted(MemoryStore& store, const Contents& contents) {
  ASSERT_OK_AND_ASSIGN(const auto all, store.ListCommitted("tenant"));
  ASSERT_EQ(all.size(), contents.size());
  for (const CommittedContext& one : all) {
    SCOPED_TRACE(one.name);
    ASSERT_TRUE(contents.contains(one.name));
    const Content& content = contents.at(one.name);
    EXPECT_EQ(one.blocks, content.blocks);
    EXPECT_EQ(one.published, content.published);
    ASSERT_OK_AND_ASSIGN(const Checkpoint checkpoint, store.ReadCheckpoint(one.id));
    EXPECT_EQ(checkpoint.tokens, content.tokens());
    EXPECT_EQ(checkpoint.state, content.state());
    ExpectHolds(store, one.id, content);
  }
}

// Whether the call that was not answered has been carried out.
bool GotThrough(MemoryStore& store, const Contents& next) {
  const std::vector<CommittedContext> all = store.ListCommitted("tenant").value();
  return all.size() == next.size() && std::ranges::all_of(all, [&](const CommittedContext& one) {
           return next.contains(one.name) && next.at(one.name).blocks == one.blocks;
         });
}

void DropAll(MemoryStore& store) {
  ASSERT_OK_AND_ASSIGN(const auto all, store.ListCommitted("tenant"));
  for (const CommittedContext& one : all) ASSERT_OK(store.Drop(one.id));
}

// Every entry of the disk belongs to a record.
void ExpectNoOrphans(const FakeDisk& disk) {
  std::map<uint64_t, bool> owned;
  for (const auto& [key, value] : disk.records()) {
    ASSERT_OK_AND_ASSIGN(const CommitRecord record, DecodeRecord(key, value));
    for (const auto* uses : {&record.payloads, &record.representatives}) {
      for (const CommitRecord::Use& use : *uses) {
        for (const EntryRun& run : use.part.entries) {
          for (uint64_t i = 0; i < run.count; ++i) owned[run.first + i] = true;
        }
      }
    }
    for (const uint64_t number : record.checkpoint) owned[number] = true;
  }
  EXPECT_EQ(disk.entries().size(), owned.size());
}

// A life of contexts. Stops at the first error. `now` is what is committed after what has been
// answered, `next` what would be after the call that was not.
void Live(MemoryStore& store, Contents& now, Contents& next) {
  const auto step = [&](const absl::Status& status) {
    if (status.ok()) now = next;
    return status.ok();
  };
  const ContextId a = NewContextId(), b = NewContextId(), c = NewContextId();
  const Content a1{.blocks = 4, .published = 3}, a2{.blocks = 7, .published = 7};
  const Content b1{.blocks = 9, .published = 8, .fork = 7, .flavour = 2};
  const Content b2{.blocks = 11, .published = 11, .fork = 7, .flavour = 2};
  const Content c1{.blocks = 8, .published = 8, .fork = 5, .flavour = 3};
  ContextId committed_a, committed_b, committed_c;
  const auto commit = [&](const ContextId& id, const Content& content, const char* name,
                          ContextId& replaces) {
    next[name] = content;
    const auto committed = CommitAs(store, id, content, name, replaces);
    if (committed.ok()) replaces = *committed;
    return step(committed.status());
  };
  const auto drop = [&](const ContextId& id, const char* name) {
    if (name != nullptr) next.erase(name);
    return step(store.Drop(id));
  };
  if (!step(store.Create(a, Options())) || !step(Grow(store, a, {}, a1))) return;
  if (!commit(a, a1, "a", committed_a)) return;
  if (!step(Grow(store, a, a1, a2)) || !commit(a, a2, "a", committed_a)) return;
  if (!step(store.Fork(a, b)) || !step(Grow(store, b, a2, b1))) return;
  if (!commit(b, b1, "b", committed_b)) return;
  if (!step(store.Fork(committed_a, c, 5))) return;
  if (!step(Grow(store, c, {.blocks = 5, .published = 5}, c1))) return;
  if (!commit(c, c1, "c", committed_c)) return;
  if (!drop(a, nullptr) || !drop(committed_a, "a")) return;
  if (!step(Grow(store, b, b1, b2)) || !commit(b, b2, "b", committed_b)) return;
  if (!drop(committed_c, "c") || !drop(c, nullptr) || !drop(b, nullptr)) return;
}

TEST(CatalogTest, TheNextProcessHasWhatWasCommitted) {
  const auto disk = std::make_shared<FakeDisk>();
  Contents now, next;
  Live(*OpenOn(FakeDisk::Open(disk)), now, next);
  ASSERT_THAT(now, SizeIs(1));
  disk->Restart(1);
  const auto store = OpenOn(FakeDisk::Open(disk));
  ExpectCommitted(*store, now);
  ExpectNoOrphans(*disk);
}

TEST(CatalogTest, AProcessThatDiesAtAnyWriteLosesNothing) {
  int64_t deaths = 0;
  for (const bool whole : {false, true}) {
    for (int64_t write = 0;; ++write) {
      SCOPED_TRACE(::testing::Message() << "write " << write << (whole ? ", whole" : ", half"));
      const auto disk = std::make_shared<FakeDisk>();
      Contents now, next;
      {
        const auto store = OpenOn(FakeDisk::Open(disk));
        disk->DieAt(write, whole);
        Live(*store, now, next);
      }
      const bool died = disk->died();
      disk->Restart(static_cast<uint64_t>(write));
      {
        const auto store = OpenOn(FakeDisk::Open(disk));
        ExpectCommitted(*store, GotThrough(*store, next) ? next : now);
        ExpectNoOrphans(*disk);
        // And life goes on.
        const ContextId id = NewContextId();
        ASSERT_OK(store->Create(id, Options()));
        const Content more{.blocks = 3, .published = 3, .flavour = 5};
        ASSERT_OK(Grow(*store, id, {}, more));
        ASSERT_OK(CommitAs(*store, id, more, "more"));
        ASSERT_OK(store->Drop(id));
        DropAll(*store);
        EXPECT_THAT(disk->records(), IsEmpty());
        EXPECT_THAT(disk->entries(), IsEmpty());
      }
      if (::testing::Test::HasFatalFailure() || ::testing::Test::HasNonfatalFailure()) return;
      if (!died) break;
      ++deaths;
    }
  }
  EXPECT_GT(deaths, 60);
}

// Also the process that cleans up after another.
TEST(CatalogTest, AProcessThatDiesWhileItCleansUpLosesNothing) {
  for (int64_t write = 0; write < 12; ++write) {
    const auto disk = std::make_shared<FakeDisk>();
    Contents now, next;
    {
      const auto store = OpenOn(FakeDisk::Open(disk));
      disk->DieAt(25 + write, true);
      Live(*store, now, next);
    }
    ASSERT_TRUE(disk->died());
    disk->Restart(7);
    disk->DieAt(write % 4, write % 2 == 0);
    NewInProcessStore({.ram_capacity_bytes = kRamBlocks * kPayloadBytes}, TestBackend(),
                      FakeDisk::Open(disk))
        .status()
        .IgnoreError();
    disk->Restart(8);
    const auto store = OpenOn(FakeDisk::Open(disk));
    ExpectCommitted(*store, GotThrough(*store, next) ? next : now);
    ExpectNoOrphans(*disk);
  }
}

// A change that fails may be on the disk nonetheless. Whatever becomes of the process and of the
// context that was to be committed, one of the two is there, whole.
TEST(CatalogTest, AChangeInDoubtLosesNeither) {
  const Content first{.blocks = 4, .published = 3}, second{.blocks = 7, .published = 7};
  for (const bool whole : {false, true}) {
    for (const auto& [again, same] : {std::pair{false, false}, {true, false}, {true, true}}) {
      SCOPED_TRACE(::testing::Message() << whole << again << same);
      const auto disk = std::make_shared<FakeDisk>();
      Contents one_of[2] = {{{"a", first}}, {{"a", second}}};
      {
        const auto store = OpenOn(FakeDisk::Open(disk));
        const ContextId id = NewContextId();
        ASSERT_OK(store->Create(id, Options()));
        ASSERT_OK(Grow(*store, id, {}, first));
        ASSERT_OK_AND_ASSIGN(const ContextId committed, CommitAs(*store, id, first, "a"));
        ASSERT_OK(Grow(*store, id, first, second));
        const ContextId next = NewContextId();
        disk->FailNextChange(whole);
        EXPECT_THAT(CommitAs(*store, id, second, "a", committed, next),
                    StatusIs(absl::StatusCode::kUnavailable));
        ExpectCommitted(*store, one_of[0]);
        if (again) {  // the same, or as another
          ASSERT_OK(CommitAs(*store, id, second, "a", committed, same ? next : NewContextId()));
          ExpectCommitted(*store, one_of[1]);
        }
        ASSERT_OK(store->Drop(id));
        EXPECT_THAT(disk->records(), SizeIs(1));
      }
      disk->Restart(5);
      const auto store = OpenOn(FakeDisk::Open(disk));
      ExpectCommitted(*store, one_of[whole || again ? 1 : 0]);
      ExpectNoOrphans(*disk);
    }
  }
}

TEST(CatalogTest, AContextForkedWithUnevenLayersIsRefused) {
  const auto disk = std::make_shared<FakeDisk>();
  const auto store = OpenOn(FakeDisk::Open(disk));
  const ContextId id = NewContextId(), fork = NewContextId();
  ASSERT_OK(store->Create(id, Options()));
  ASSERT_OK(store->Append(id, 0, 0, Spans(Payloads(0, 0))));
  ASSERT_OK(store->Fork(id, fork));
  ASSERT_OK(store->Append(fork, 1, 0, Spans(Payloads(1, 0))));
  EXPECT_THAT(CommitAs(*store, fork, {.blocks = 1}, "a"),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("forked")));
  ASSERT_OK(store->Drop(fork));
  ASSERT_OK(store->Drop(id));
  EXPECT_THAT(disk->entries(), IsEmpty()) << "nothing was left of the attempt";
}

// Right bytes or an error, whichever entry is damaged.
TEST(CatalogTest, DamageIsNeverServed) {
  const auto disk = std::make_shared<FakeDisk>();
  const Content content{.blocks = 5, .published = 4};
  {
    const auto store = OpenOn(FakeDisk::Open(disk));
    const ContextId id = NewContextId();
    ASSERT_OK(store->Create(id, Options()));
    ASSERT_OK(Grow(*store, id, {}, content));
    ASSERT_OK(CommitAs(*store, id, content, "a"));
  }
  const FakeDisk::Map entries = disk->entries();
  ASSERT_THAT(entries, SizeIs(10 + 2 + 2 + 1)) << "payloads, numbers, representatives, checkpoint";
  for (const auto& [key, value] : entries) {
    for (const size_t at : {size_t{0}, value.size() / 2, value.size() - 1}) {
      disk->FlipEntryByte(key, at);
      const auto store = OpenOn(FakeDisk::Open(disk));
      ASSERT_OK_AND_ASSIGN(const CommittedContext found, store->FindCommitted("tenant", "a"));
      const auto lost = StatusIs(absl::StatusCode::kDataLoss);
      int losses = absl::IsDataLoss(store->ReadCheckpoint(found.id).status()) ? 1 : 0;
      for (int32_t layer = 0; layer < 2; ++layer) {
        const std::vector<float> query = Query(0);
        const SelectQuery asked{.context = found.id, .query = query, .k = 4};
        const auto selections = store->Select({.layer = layer, .queries = {&asked, 1}});
        ASSERT_OK(selections.status());
        if (absl::IsDataLoss((*selections)[0].status)) ++losses;
        for (int64_t block = 0; block < content.blocks; ++block) {
          const auto handles = store->Fetch(found.id, layer, {&block, 1});
          if (!handles.ok()) {
            EXPECT_THAT(handles, lost);
            ++losses;
            continue;
          }
          EXPECT_EQ(Bytes((*handles)[0]), Payloads(layer, block));
        }
      }
      EXPECT_GT(losses, 0) << "byte " << at << " of entry " << ::testing::PrintToString(key);
      disk->FlipEntryByte(key, at);
    }
  }
}

TEST(CatalogTest, ADamagedRecordIsRefusedWithItsEntriesLeftAlone) {
  const auto disk = std::make_shared<FakeDisk>();
  {
    const auto store = OpenOn(FakeDisk::Open(disk));
    const ContextId id = NewContextId();
    ASSERT_OK(store->Create(id, Options()));
    ASSERT_OK(CommitAs(*store, id, {}, "a"));
  }
  const auto [key, value] = *disk->records().begin();
  std::string damaged = value;
  damaged[damaged.size() / 2] ^= 1;
  disk->SetRecord(key, damaged);
  const size_t entries = disk->entries().size();
  EXPECT_THAT(NewInProcessStore({}, TestBackend(), FakeDisk::Open(disk)),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("checksum")));
  EXPECT_THAT(disk->entries(), SizeIs(entries));
}

// Contexts that share blocks and representatives share them in RAM, too.
TEST(CatalogTest, WhatIsSharedIsLoadedOnce) {
  const auto disk = std::make_shared<FakeDisk>();
  const Content base{.blocks = 100, .published = 100};
  {
    const auto store = OpenOn(FakeDisk::Open(disk));
    const ContextId id = NewContextId();
    ASSERT_OK(store->Create(id, Options()));
    ASSERT_OK(Grow(*store, id, {}, base));
    ASSERT_OK(CommitAs(*store, id, base, "a"));
    const ContextId fork = NewContextId();
    ASSERT_OK(store->Fork(id, fork));
    Content more = base;
    more.blocks = more.published = 101;
    ASSERT_OK(Grow(*store, fork, base, more));
    ASSERT_OK(CommitAs(*store, fork, more, "b"));
  }
  auto store = NewInProcessStore({}, TestBackend(), FakeDisk::Open(disk)).value();
  EXPECT_EQ(store->Stats()->representative_bytes, 0) << "nobody has asked";
  EXPECT_EQ(store->Stats()->blocks, 0);
  ContextId forks[2] = {NewContextId(), NewContextId()};
  ASSERT_OK(store->Fork(store->FindCommitted("tenant", "a")->id, forks[0]));
  const StoreStats one = *store->Stats();
  EXPECT_EQ(one.blocks, 200);
  ASSERT_OK(store->Fork(store->FindCommitted("tenant", "b")->id, forks[1]));
  const StoreStats both = *store->Stats();
  EXPECT_EQ(both.blocks, 202);
  EXPECT_LT(both.representative_bytes, one.representative_bytes * 11 / 10);
}

TEST(CatalogTest, IdleRepresentativesLeaveRam) {
  const auto disk = std::make_shared<FakeDisk>();
  const Content content{.blocks = 300, .published = 300};
  {
    const auto store = OpenOn(FakeDisk::Open(disk));
    for (const char* name : {"a", "b", "c"}) {
      const ContextId id = NewContextId();
      ASSERT_OK(store->Create(id, Options()));
      ASSERT_OK(Grow(*store, id, {}, content));
      ASSERT_OK(CommitAs(*store, id, content, name));
      ASSERT_OK(store->Drop(id));
    }
  }
  const auto store = OpenOn(FakeDisk::Open(disk));
  for (const char* name : {"a", "b", "c", "a"}) {
    ExpectHolds(*store, store->FindCommitted("tenant", name)->id, content);
  }
  // Those of one context are more than may be idle.
  EXPECT_LT(store->Stats()->representative_bytes, 2 * 2 * 300 * 32 * 4 * 3 / 2);
  EXPECT_EQ(store->Stats()->blocks, 600);
}

// The same over RocksDB, whose directory is as a killed process leaves it: nothing is flushed when
// it is closed.
TEST(CatalogTest, RocksDbKeepsWhatWasCommitted) {
  const TempDir dir;
  Contents now, next;
  for (int i = 0; i < 3; ++i) {
    auto cold = OpenRocksDb({.directory = dir.file("data")});
    ASSERT_OK(cold);
    const auto store = OpenOn(*std::move(cold));
    ExpectCommitted(*store, now);
    DropAll(*store);
    now.clear();
    next.clear();
    Live(*store, now, next);
    ASSERT_THAT(now, SizeIs(1));
    // Not committed: gone next time.
    const ContextId id = NewContextId();
    ASSERT_OK(store->Create(id, Options()));
    ASSERT_OK(Grow(*store, id, {}, {.blocks = 50, .published = 50, .flavour = 9}));
  }
}

}  // namespace
}  // namespace infllm::memstore
