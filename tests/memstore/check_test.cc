#include "memstore/check.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/core/status_macros.h"
#include "memstore/cold_key.h"
#include "memstore/commit_record.h"
#include "memstore/in_process_store.h"
#include "tests/memstore/fake_disk.h"
#include "tests/memstore/test_blocks.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::memstore {
namespace {

using ::infllm::testing::StatusIs;
using ::infllm::testing::TempDir;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr int64_t kBlocks = 5;
constexpr int64_t kPublished = 4;

// Commits "a", and "b" from a fork of it that has one block more of every layer.
void Fill(MemoryStore& store) {
  const ContextId a = NewContextId(), b = NewContextId();
  ASSERT_OK(store.Create(a, Options()));
  const auto grow = [&](const ContextId& id, int64_t first, int64_t blocks, int64_t published) {
    for (int32_t layer = 0; layer < kGeometry.layers; ++layer) {
      ASSERT_OK(store.Append(id, layer, first, Spans(Payloads(layer, first, blocks))));
      ASSERT_OK(store.Publish(id, layer, first, Representatives(layer, first, published)));
    }
  };
  const std::vector<int32_t> tokens(100, 7);
  const std::vector<std::byte> state(1000, std::byte{3});
  grow(a, 0, kBlocks, kPublished);
  ASSERT_OK(store.Commit({.context = a,
                          .id = NewContextId(),
                          .name = "a",
                          .blocks = kBlocks,
                          .tokens = tokens,
                          .state = state}));
  ASSERT_OK(store.Fork(a, b));
  for (int32_t layer = 0; layer < kGeometry.layers; ++layer) {
    ASSERT_OK(store.Append(b, layer, kBlocks, Spans(Payloads(layer, kBlocks))));
  }
  ASSERT_OK(store.Commit({.context = b,
                          .id = NewContextId(),
                          .name = "b",
                          .blocks = kBlocks + 1,
                          .tokens = tokens,
                          .state = state}));
}

class CheckTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto store =
        NewInProcessStore({.ram_capacity_bytes = 1 << 20}, TestBackend(), FakeDisk::Open(disk_));
    ASSERT_OK(store);
    ASSERT_NO_FATAL_FAILURE(Fill(**store));
    // Nothing is dropped: the process ends.
    disk_->DieAt(0, false);
    store->reset();
    disk_->Restart(0);
  }
  CheckReport Check() {
    damage_.clear();
    int64_t last = 0;
    const auto cold = FakeDisk::Open(disk_);
    const auto report =
        CheckCommitted(*cold, {.damage = [&](const std::string& what) { damage_.push_back(what); },
                               .progress =
                                   [&](int64_t bytes, int64_t total) {
                                     EXPECT_GE(bytes, last);
                                     EXPECT_LE(bytes, total);
                                     last = bytes;
                                   }});
    EXPECT_OK(report);
    return report.value_or(CheckReport{});
  }
  CommitRecord Record(const std::string& name) const {
    for (const auto& [key, value] : disk_->records()) {
      const auto record = DecodeRecord(key, value);
      if (record.ok() && record->info.name == name) return *record;
    }
    ADD_FAILURE() << "no record of " << name;
    return {};
  }
  void SetRecord(const CommitRecord& record) {
    disk_->SetRecord(RecordKey(record.info.id), EncodeRecord(record));
  }
  static std::string Key(uint64_t number) { return std::string(ColdKey(number).view()); }
  // The entry of a block of "a".
  uint64_t EntryOf(int32_t layer, int64_t block) const {
    const uint64_t chunk = Record("a").payloads[0].part.chunks[static_cast<size_t>(layer)];
    const std::string value = disk_->entries().at(Key(chunk));
    uint64_t number = 0;
    std::memcpy(&number, value.data() + kChunkHeaderBytes + block * sizeof(number), sizeof(number));
    return number;
  }

  const std::shared_ptr<FakeDisk> disk_ = std::make_shared<FakeDisk>();
  std::vector<std::string> damage_;
};

TEST_F(CheckTest, WhatIsWholeIsCounted) {
  const FakeDisk::Map entries = disk_->entries(), records = disk_->records();
  const CheckReport report = Check();
  EXPECT_THAT(damage_, IsEmpty());
  EXPECT_EQ(report.contexts, 2);
  EXPECT_EQ(report.blocks, 2 * (kBlocks + 1)) << "what they share is read once";
  EXPECT_EQ(report.damaged, 0);
  EXPECT_EQ(report.damaged_contexts, 0);
  EXPECT_EQ(report.orphans, 0);
  int64_t bytes = 0;
  for (const FakeDisk::Map& map : {entries, records}) {
    for (const auto& [key, value] : map) bytes += static_cast<int64_t>(value.size());
  }
  EXPECT_EQ(report.bytes, bytes) << "every byte has been read, once";
  EXPECT_EQ(disk_->entries(), entries);
  EXPECT_EQ(disk_->records(), records);
}

TEST_F(CheckTest, EveryByteOfEveryEntryCounts) {
  for (const auto& [key, value] : disk_->entries()) {
    for (const size_t at : {size_t{0}, size_t{70}, value.size() / 2, value.size() - 1}) {
      disk_->FlipEntryByte(key, std::min(at, value.size() - 1));
      EXPECT_EQ(Check().damaged, 1) << ::testing::PrintToString(key) << ", byte " << at;
      EXPECT_THAT(damage_, SizeIs(1));
      disk_->FlipEntryByte(key, std::min(at, value.size() - 1));
    }
  }
}

TEST_F(CheckTest, ADamagedBlockIsNamed) {
  const uint64_t entry = EntryOf(1, 3);
  disk_->FlipEntryByte(Key(entry), 2000);
  EXPECT_EQ(Check().damaged_contexts, 2);
  EXPECT_THAT(damage_, ElementsAre(AllOf(
                           HasSubstr("contexts \"a\" of tenant \"tenant\", \"b\""),
                           HasSubstr(", layer 1, block 3 (entry " + std::to_string(entry) + "): "),
                           HasSubstr("crc"))));
}

TEST_F(CheckTest, ALostBlockIsNamed) {
  disk_->RemoveEntry(Key(EntryOf(0, 4)));
  EXPECT_EQ(Check().damaged, 1);
  EXPECT_THAT(damage_, ElementsAre(AllOf(HasSubstr("layer 0, block 4"), HasSubstr("lost"))));
}

TEST_F(CheckTest, ABlockInPlaceOfAnotherIsNamed) {
  const auto entries = disk_->entries();
  disk_->SetEntry(Key(EntryOf(0, 1)), entries.at(Key(EntryOf(0, 2))));
  EXPECT_EQ(Check().damaged, 1);
  EXPECT_THAT(damage_, ElementsAre(HasSubstr("layer 0, block 1")));
}

TEST_F(CheckTest, DamageOfAllElseIsNamed) {
  const CommitRecord b = Record("b");
  const auto damage_of = [&](uint64_t entry) {
    disk_->FlipEntryByte(Key(entry), kChunkHeaderBytes + 4);
    const CheckReport report = Check();
    disk_->FlipEntryByte(Key(entry), kChunkHeaderBytes + 4);
    EXPECT_EQ(report.damaged, 1);
    return damage_.empty() ? "" : damage_[0];
  };
  EXPECT_THAT(damage_of(b.checkpoint[0]),
              AllOf(HasSubstr("context \"b\""), HasSubstr("checkpoint from byte 0")));
  EXPECT_THAT(damage_of(b.representatives[0].part.chunks[1]),
              AllOf(HasSubstr("contexts \"a\""), HasSubstr("layer 1, representatives")));
  EXPECT_THAT(damage_of(b.payloads[1].part.chunks[0]),
              AllOf(HasSubstr("context \"b\""), HasSubstr("layer 0, entry numbers of the blocks "
                                                          "from 5")));
}

TEST_F(CheckTest, ADamagedRecordIsNamedAndTheOthersAreChecked) {
  const std::string key = RecordKey(Record("a").info.id);
  std::string value = disk_->records().at(key);
  value[value.size() / 2] ^= 1;
  disk_->SetRecord(key, value);
  disk_->FlipEntryByte(Key(Record("b").checkpoint[0]), 100);
  const CheckReport report = Check();
  EXPECT_EQ(report.contexts, 2);
  EXPECT_EQ(report.damaged, 2);
  EXPECT_EQ(report.orphans, 1) << "the checkpoint of the context whose record it was";
  EXPECT_THAT(damage_, ::testing::UnorderedElementsAre(
                           AllOf(HasSubstr("record context/"), HasSubstr("checksum")),
                           HasSubstr("context \"b\"")));
}

TEST_F(CheckTest, RecordsThatContradictEachOtherAreNamed) {
  CommitRecord b = Record("b");
  b.payloads[0].part.owners[0].owner.lo ^= 1;
  SetRecord(b);
  EXPECT_GE(Check().damaged, 1);
  EXPECT_THAT(damage_, ::testing::Contains(HasSubstr("contradict each other")));
  b = Record("b");
  b.payloads[0].part.owners[0].owner.lo ^= 1;
  b.info.name = "a";
  SetRecord(b);
  EXPECT_GE(Check().damaged, 1);
  EXPECT_THAT(damage_, ::testing::Contains(HasSubstr("the same name")));
}

TEST_F(CheckTest, AnEntryThatTwoClaimIsNamed) {
  CommitRecord b = Record("b");
  b.checkpoint = Record("a").checkpoint;
  SetRecord(b);
  Check();
  EXPECT_THAT(damage_,
              ::testing::Contains(AllOf(HasSubstr("entry"), HasSubstr("two parts claim"))));
}

TEST_F(CheckTest, OrphansAreCountedAndLeftAlone) {
  disk_->SetEntry(Key(1'000'000), "x");
  disk_->SetEntry(Key(2'000'000), "y");
  const CheckReport report = Check();
  EXPECT_EQ(report.orphans, 2);
  EXPECT_EQ(report.damaged, 0);
  EXPECT_TRUE(disk_->entries().contains(Key(1'000'000)));
}

// ---- The directory of a real store.

std::map<std::string, std::pair<std::string, std::filesystem::file_time_type>> Snapshot(
    const std::string& directory) {
  std::map<std::string, std::pair<std::string, std::filesystem::file_time_type>> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) {
    std::string content;
    if (entry.is_regular_file()) {
      std::ifstream file(entry.path(), std::ios::binary);
      content.assign(std::istreambuf_iterator<char>(file), {});
    }
    files[entry.path().string()] = {content, entry.last_write_time()};
  }
  return files;
}

class ReadOnlyRocksDbTest : public ::testing::Test {
 protected:
  void Make() {
    auto cold = OpenRocksDb({.directory = data_});
    ASSERT_OK(cold);
    auto store =
        NewInProcessStore({.ram_capacity_bytes = 1 << 20}, TestBackend(), *std::move(cold));
    ASSERT_OK(store);
    ASSERT_NO_FATAL_FAILURE(Fill(**store));
  }
  absl::StatusOr<CheckReport> Check() {
    INFLLM_ASSIGN_OR_RETURN(const auto cold, OpenRocksDb({.directory = data_, .read_only = true}));
    return CheckCommitted(
        *cold, {.damage = [](const std::string&) {}, .progress = [](int64_t, int64_t) {}});
  }
  const TempDir dir_;
  const std::string data_ = dir_.file("data");
};

TEST_F(ReadOnlyRocksDbTest, NotAByteChanges) {
  ASSERT_NO_FATAL_FAILURE(Make());
  const auto before = Snapshot(data_);
  for (int i = 0; i < 2; ++i) {
    ASSERT_OK_AND_ASSIGN(const CheckReport report, Check());
    EXPECT_EQ(report.contexts, 2);
    EXPECT_EQ(report.blocks, 2 * (kBlocks + 1));
    EXPECT_EQ(report.damaged, 0);
  }
  EXPECT_EQ(Snapshot(data_), before);
}

TEST_F(ReadOnlyRocksDbTest, AStoreInUseIsRefusedAndWritersWaitForReaders) {
  ASSERT_NO_FATAL_FAILURE(Make());
  const auto in_use =
      StatusIs(absl::StatusCode::kFailedPrecondition, AllOf(HasSubstr(data_), HasSubstr("in use")));
  {
    ASSERT_OK_AND_ASSIGN(const auto writer, OpenRocksDb({.directory = data_}));
    EXPECT_THAT(Check(), in_use);
  }
  ASSERT_OK_AND_ASSIGN(const auto reader, OpenRocksDb({.directory = data_, .read_only = true}));
  EXPECT_OK(Check());
  EXPECT_THAT(OpenRocksDb({.directory = data_}), in_use);
}

TEST_F(ReadOnlyRocksDbTest, WhatIsNoStoreIsRefusedAndLeftAlone) {
  const auto none = StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr(data_));
  EXPECT_THAT(Check(), none);
  EXPECT_FALSE(std::filesystem::exists(data_));
  std::filesystem::create_directory(data_);
  EXPECT_THAT(Check(), none);
  EXPECT_TRUE(std::filesystem::is_empty(data_));
}

// Wherever a bit has flipped: what is committed is all there, or the store says that it is damaged.
TEST_F(ReadOnlyRocksDbTest, NoFlippedBitLosesAContextUnsaid) {
  ASSERT_NO_FATAL_FAILURE(Make());
  constexpr size_t kContexts = 8;  // 2, and forks of the first
  {
    ASSERT_OK_AND_ASSIGN(auto cold, OpenRocksDb({.directory = data_}));
    ASSERT_OK_AND_ASSIGN(const auto store, NewInProcessStore({.ram_capacity_bytes = 1 << 20},
                                                             TestBackend(), std::move(cold)));
    ASSERT_OK_AND_ASSIGN(const CommittedContext a, store->FindCommitted("tenant", "a"));
    for (size_t i = 2; i < kContexts; ++i) {
      ASSERT_OK(store->Commit(
          {.context = a.id, .id = NewContextId(), .name = std::to_string(i), .blocks = kBlocks}));
    }
  }
  const std::string copy = dir_.file("copy");
  int opened = 0, refused = 0;
  for (const auto& entry : std::filesystem::directory_iterator(data_ + "/blocks")) {
    if (entry.path().extension() != ".sst") continue;
    const auto size = static_cast<int64_t>(std::filesystem::file_size(entry.path()));
    for (const int64_t at : {int64_t{10}, size / 4, size / 2, size - 1000}) {
      if (at < 0) continue;
      SCOPED_TRACE(entry.path().filename().string() + ", byte " + std::to_string(at));
      std::filesystem::remove_all(copy);
      std::filesystem::copy(data_, copy, std::filesystem::copy_options::recursive);
      {
        std::fstream file(copy + "/blocks/" + entry.path().filename().string(),
                          std::ios::in | std::ios::out | std::ios::binary);
        file.seekg(at);
        const char byte = static_cast<char>(file.get() ^ 4);
        file.seekp(at);
        file.put(byte);
      }
      absl::Status status;
      {
        auto cold = OpenRocksDb({.directory = copy, .read_only = true});
        if (cold.ok()) {
          const auto report = CheckCommitted(
              **cold, {.damage = [](const std::string&) {}, .progress = [](int64_t, int64_t) {}});
          if (report.ok() && report->damaged == 0) {
            EXPECT_EQ(report->contexts, kContexts);
          }
        }
      }
      auto cold = OpenRocksDb({.directory = copy});
      status = cold.status();
      if (cold.ok()) {
        auto store =
            NewInProcessStore({.ram_capacity_bytes = 1 << 20}, TestBackend(), *std::move(cold));
        status = store.status();
        if (store.ok()) {
          EXPECT_THAT((*store)->ListCommitted("tenant").value(), SizeIs(kContexts));
          ++opened;
          continue;
        }
      }
      EXPECT_THAT(status, StatusIs(absl::StatusCode::kDataLoss));
      ++refused;
    }
  }
  EXPECT_GE(opened, 3) << "where entries are damaged, at its end, too";
  EXPECT_GE(refused, 3) << "where records are";
}

TEST_F(ReadOnlyRocksDbTest, AFlippedBitOfATableIsFound) {
  ASSERT_NO_FATAL_FAILURE(Make());
  int found = 0;
  for (const auto& entry : std::filesystem::directory_iterator(data_ + "/blocks")) {
    if (entry.path().extension() != ".sst") continue;
    const auto flip = [&] {
      std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
      file.seekg(10);
      const char byte = static_cast<char>(file.get() ^ 4);
      file.seekp(10);
      file.put(byte);
    };
    flip();
    const auto report = Check();
    found += report.ok() ? report->damaged > 0 : absl::IsDataLoss(report.status());
    flip();
  }
  EXPECT_GE(found, 2) << "of entries and of records; those that a compaction replaced do not count";
}

}  // namespace
}  // namespace infllm::memstore
