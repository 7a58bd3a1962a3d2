// What is the RocksDB store's own: its directory.
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "memstore/cold_key.h"
#include "memstore/cold_store.h"
#include "tests/memstore/test_blocks.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::memstore {
namespace {

using ::infllm::testing::IsOk;
using ::infllm::testing::StatusIs;
using ::infllm::testing::TempDir;
using ::testing::AllOf;
using ::testing::HasSubstr;

absl::Status PutOne(ColdStore& store, uint64_t number, size_t size) {
  const ColdKey key(number);
  std::vector<std::byte> value =
      Payloads(0, static_cast<int64_t>(number), 1 + size / kPayloadBytes);
  value.resize(size);
  const ColdStore::Entry entry{.key = key.view(), .body = value};
  return store.Put({&entry, 1});
}

absl::Status GetOne(ColdStore& store, uint64_t number, size_t size) {
  const ColdKey key(number);
  const std::string_view view = key.view();
  std::vector<std::byte> out(size);
  const std::span<std::byte> span(out);
  return store.Get({&view, 1}, {&span, 1})[0];
}

TEST(RocksDbColdStore, CreatesItsDirectory) {
  const TempDir dir;
  ASSERT_OK_AND_ASSIGN(const auto store, OpenRocksDb({.directory = dir.file("a/b/c")}));
  EXPECT_OK(PutOne(*store, 1, 4096));
}

TEST(RocksDbColdStore, AnEmptyNameIsRefused) {
  EXPECT_THAT(OpenRocksDb({}), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(RocksDbColdStore, ADirectoryInUseIsRefusedByName) {
  const TempDir dir;
  auto store = OpenRocksDb({.directory = dir.path()});
  ASSERT_OK(store);
  EXPECT_THAT(OpenRocksDb({.directory = dir.path()}),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr(dir.path()), HasSubstr("in use"))));
  ASSERT_OK(PutOne(**store, 1, 4096));
  EXPECT_OK(GetOne(**store, 1, 4096)) << "the first is not disturbed";
  store->reset();
  EXPECT_OK(OpenRocksDb({.directory = dir.path()}));
}

// What is damaged is refused, not taken for new.
TEST(RocksDbColdStore, ADamagedDirectoryIsRefusedAndLeftAlone) {
  const TempDir dir;
  const std::string data = dir.file("data"), copy = dir.file("copy");
  {
    const auto store = OpenRocksDb({.directory = data});
    ASSERT_OK(store);
    ASSERT_OK(PutOne(**store, 1, 4096));
    const ColdStore::RecordChange change{.key = "a", .value = "record"};
    ASSERT_OK((*store)->ChangeRecords({&change, 1}));
    // As a kill leaves it.
    std::filesystem::copy(data, copy, std::filesystem::copy_options::recursive);
  }
  const auto has_all = [](const std::string& directory) {
    const auto store = OpenRocksDb({.directory = directory});
    ASSERT_OK(store);
    EXPECT_OK(GetOne(**store, 1, 4096));
    EXPECT_EQ((*store)->ReadRecords()->at("a"), "record");
  };
  // No byte of any log matters.
  for (const auto& file : std::filesystem::directory_iterator(copy + "/blocks")) {
    if (file.path().extension() == ".log") std::filesystem::resize_file(file.path(), 0);
  }
  has_all(copy);
  for (const char* lost : {"/blocks/CURRENT", "/blocks"}) {
    SCOPED_TRACE(lost);
    std::filesystem::rename(data + lost, dir.file("lost"));
    for (int i = 0; i < 2; ++i) EXPECT_FALSE(OpenRocksDb({.directory = data}).ok());
    std::filesystem::remove_all(data + lost);
    std::filesystem::rename(dir.file("lost"), data + lost);
    has_all(data);
  }
}

TEST(RocksDbColdStore, FilesOfOthersAreNotTouched) {
  const TempDir dir;
  dir.Write("precious", "bytes");
  EXPECT_THAT(OpenRocksDb({.directory = dir.path()}),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr(dir.path()), HasSubstr("holds other files"))));
  EXPECT_TRUE(std::filesystem::exists(dir.file("precious")));
}

TEST(RocksDbColdStore, AFileInPlaceOfTheDirectoryIsRefused) {
  const TempDir dir;
  const std::string file = dir.Write("file", "bytes");
  EXPECT_THAT(OpenRocksDb({.directory = file + "/below"}).status().message(), HasSubstr("below"));
}

TEST(RocksDbColdStore, ClosingLeavesNoValuesBehind) {
  const TempDir dir;
  {
    ASSERT_OK_AND_ASSIGN(const auto store, OpenRocksDb({.directory = dir.path(), .scratch = true}));
    for (uint64_t i = 0; i < 100; ++i) ASSERT_OK(PutOne(*store, i, 1 << 20));
  }
  uintmax_t bytes = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(dir.path())) {
    if (entry.is_regular_file()) bytes += entry.file_size();
  }
  EXPECT_LT(bytes, 4096u);
}

// As a killed process leaves it.
TEST(RocksDbColdStore, ValuesOfAnEarlierProcessAreDropped) {
  const TempDir dir;
  const TempDir copy;
  ASSERT_OK_AND_ASSIGN(const auto first, OpenRocksDb({.directory = dir.path(), .scratch = true}));
  for (uint64_t i = 0; i < 100; ++i) ASSERT_OK(PutOne(*first, i, 1 << 20));
  std::filesystem::copy(dir.path(), copy.path(), std::filesystem::copy_options::recursive);
  ASSERT_OK_AND_ASSIGN(const auto second, OpenRocksDb({.directory = copy.path(), .scratch = true}));
  for (uint64_t i = 0; i < 100; ++i) {
    ASSERT_THAT(GetOne(*second, i, 1 << 20), StatusIs(absl::StatusCode::kNotFound));
  }
}

TEST(RocksDbColdStore, AForkedChildLeavesTheParentsStoreAlone) {
  const TempDir dir;
  auto store = OpenRocksDb({.directory = dir.path()});
  ASSERT_OK(store);
  ASSERT_OK(PutOne(**store, 1, 4096));
  const pid_t child = ::fork();
  if (child == 0) {
    store->reset();
    ::_exit(7);
  }
  int exit_status = 0;
  ASSERT_EQ(::waitpid(child, &exit_status, 0), child);
  ASSERT_TRUE(WIFEXITED(exit_status));
  EXPECT_EQ(WEXITSTATUS(exit_status), 7);
  EXPECT_OK(GetOne(**store, 1, 4096));
  for (uint64_t i = 2; i < 100; ++i) ASSERT_OK(PutOne(**store, i, 1 << 20));
  EXPECT_OK(GetOne(**store, 50, 1 << 20));
  EXPECT_THAT(OpenRocksDb({.directory = dir.path()}),
              StatusIs(absl::StatusCode::kFailedPrecondition));
}

// A file system of 64 MB, while it lives.
class SmallDisk {
 public:
  SmallDisk() : error_(::mount("none", dir_.path().c_str(), "tmpfs", 0, "size=64m") ? errno : 0) {}
  ~SmallDisk() {
    if (error_ == 0) ::umount(dir_.path().c_str());
  }
  int error() const { return error_; }
  const std::string& path() const { return dir_.path(); }

 private:
  const TempDir dir_;
  const int error_;
};

TEST(RocksDbColdStore, AFullDiskIsResourceExhaustedAndReadsGoOn) {
  const SmallDisk disk;
  if (disk.error() != 0) {
    GTEST_SKIP() << "cannot mount a small file system: " << std::strerror(disk.error());
  }
  ASSERT_OK_AND_ASSIGN(const auto store, OpenRocksDb({.directory = disk.path()}));
  absl::Status status;
  uint64_t stored = 0;
  while (status.ok() && stored < 1000) status = PutOne(*store, stored++, 1 << 20);
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted,
                               AllOf(HasSubstr(disk.path()), HasSubstr("--data-dir"))));
  EXPECT_GT(stored, 10u);  // of 64 MB
  for (uint64_t i = 0; i + 1 < stored; ++i) EXPECT_OK(GetOne(*store, i, 1 << 20)) << i;
}

}  // namespace
}  // namespace infllm::memstore
