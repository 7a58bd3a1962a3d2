#include "services/common/cold_directory.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::services {
namespace {

namespace fs = std::filesystem;
using ::infllm::testing::StatusIs;
using ::infllm::testing::TempDir;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

absl::Status PutOne(memstore::ColdStore& store, std::string_view key, std::string_view value) {
  const memstore::ColdStore::Entry entry{.key = key, .body = std::as_bytes(std::span(value))};
  return store.Put({&entry, 1});
}

absl::Status GetOne(memstore::ColdStore& store, std::string_view key, size_t size) {
  std::vector<std::byte> bytes(size);
  const std::span<std::byte> out(bytes);
  return store.Get({&key, 1}, {&out, 1})[0];
}

std::set<std::string> Entries(const std::string& directory) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) {
    names.insert(entry.path().filename());
  }
  return names;
}

TEST(ColdDirectoryTest, StartsEmptyEndsEmptyAndTouchesNothingElse) {
  const TempDir dir;
  const std::string precious = dir.Write("precious", "bytes");
  {
    ASSERT_OK_AND_ASSIGN(const auto store, OpenColdDirectory(dir.path()));
    EXPECT_OK(PutOne(*store, "key", "value"));
    EXPECT_OK(GetOne(*store, "key", 5));
  }
  EXPECT_THAT(Entries(dir.path()), ::testing::ElementsAre("precious"));
}

TEST(ColdDirectoryTest, BlocksOfAKilledProcessAreGone) {
  const TempDir dir;
  // As a kill leaves it: blocks and a lock file that nobody holds.
  const std::string copy = dir.file("copy");
  {
    ASSERT_OK_AND_ASSIGN(const auto store, OpenColdDirectory(dir.path()));
    ASSERT_OK(PutOne(*store, "key", "value"));
    fs::copy(dir.file("infllm-cold"), copy, fs::copy_options::recursive);
  }
  fs::rename(copy, dir.file("infllm-cold"));
  dir.Write("infllm-cold.lock", "");
  ASSERT_OK_AND_ASSIGN(const auto store, OpenColdDirectory(dir.path()));
  EXPECT_THAT(GetOne(*store, "key", 5), StatusIs(absl::StatusCode::kNotFound));
}

TEST(ColdDirectoryTest, OneProcessAtATime) {
  const TempDir dir;
  ASSERT_OK_AND_ASSIGN(const auto store, OpenColdDirectory(dir.path()));
  ASSERT_OK(PutOne(*store, "key", "value"));
  EXPECT_THAT(OpenColdDirectory(dir.path()),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr(dir.path())));
  EXPECT_OK(GetOne(*store, "key", 5));
}

TEST(ColdDirectoryTest, MakesTheDirectoryOrSaysWhyNot) {
  const TempDir dir;
  ASSERT_OK(OpenColdDirectory(dir.file("a/b")));
  const std::string file = dir.Write("file", "");
  EXPECT_THAT(OpenColdDirectory(file + "/x"),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr(file)));
}

fs::perms Permissions(const std::string& path) { return fs::status(path).permissions(); }

TEST(ColdDirectoryTest, OnlyItsUserCanReadIt) {
  const TempDir dir;
  const mode_t before = ::umask(0);
  const auto store = OpenColdDirectory(dir.path());
  ::umask(before);
  ASSERT_OK(store);
  EXPECT_EQ(Permissions(dir.file("infllm-cold")), fs::perms::owner_all);
  EXPECT_EQ(Permissions(dir.file("infllm-cold.lock")),
            fs::perms::owner_read | fs::perms::owner_write);
}

TEST(ColdDirectoryTest, FollowsNoLinkAndTouchesNoFile) {
  const TempDir dir;
  fs::create_directories(dir.file("elsewhere"));
  dir.Write("elsewhere/precious", "bytes");
  const auto refused = [&](const char* why) {
    return StatusIs(absl::StatusCode::kFailedPrecondition,
                    AllOf(HasSubstr(dir.file("infllm-cold")), HasSubstr(why)));
  };
  fs::create_symlink(dir.file("elsewhere"), dir.file("infllm-cold"));
  EXPECT_THAT(OpenColdDirectory(dir.path()), refused("symbolic link"));
  EXPECT_TRUE(fs::exists(dir.file("elsewhere/precious")));
  EXPECT_TRUE(fs::is_symlink(dir.file("infllm-cold")));
  fs::remove(dir.file("infllm-cold"));
  dir.Write("infllm-cold", "bytes");
  EXPECT_THAT(OpenColdDirectory(dir.path()), refused("is a file"));
  EXPECT_TRUE(fs::exists(dir.file("infllm-cold")));
}

TEST(ColdDirectoryTest, RefusesWhatBelongsToAnother) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can give files to another user";
  const TempDir dir;
  for (const char* name : {"infllm-cold", "infllm-cold.lock"}) {
    const std::string path = dir.file(name);
    if (path.ends_with(".lock")) {
      dir.Write(name, "");
    } else {
      fs::create_directories(path + "/theirs");
    }
    ASSERT_EQ(::chown(path.c_str(), 12345, 12345), 0);
    EXPECT_THAT(OpenColdDirectory(dir.path()),
                StatusIs(absl::StatusCode::kPermissionDenied,
                         HasSubstr(path + " belongs to user 12345, not to user 0")));
    EXPECT_TRUE(fs::exists(path));
    fs::remove_all(path);
  }
  EXPECT_OK(OpenColdDirectory(dir.path()));
}

class ScratchColdStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* before = ::getenv("TMPDIR");
    if (before != nullptr) before_ = before;
    ::setenv("TMPDIR", dir_.path().c_str(), 1);
  }
  void TearDown() override {
    if (before_.empty()) {
      ::unsetenv("TMPDIR");
    } else {
      ::setenv("TMPDIR", before_.c_str(), 1);
    }
  }
  const TempDir dir_;
  std::string before_;
};

TEST_F(ScratchColdStoreTest, MakesItsDirectoryWhenABlockIsWrittenAndRemovesIt) {
  auto store = NewScratchColdStore();
  EXPECT_THAT(Entries(dir_.path()), IsEmpty());
  ASSERT_OK(PutOne(*store, "key", "value"));
  EXPECT_THAT(Entries(dir_.path()), SizeIs(2));  // and its lock
  for (const std::string& name : Entries(dir_.path())) {
    EXPECT_EQ(Permissions(dir_.file(name)) & ~fs::perms::owner_all, fs::perms::none) << name;
  }
  EXPECT_OK(GetOne(*store, "key", 5));
  store.reset();
  EXPECT_THAT(Entries(dir_.path()), IsEmpty());
}

TEST_F(ScratchColdStoreTest, RemovesWhatKilledProcessesLeftAndNothingThatIsInUse) {
  fs::create_directories(dir_.file("infllm-cold-killed/sub"));
  dir_.Write("infllm-cold-killed.lock", "");
  fs::create_directories(dir_.file("infllm-cold-foreign"));  // no lock: not made by us
  const auto other = NewScratchColdStore();
  ASSERT_OK(PutOne(*other, "key", "value"));
  const auto store = NewScratchColdStore();
  ASSERT_OK(PutOne(*store, "key", "value"));
  const std::set<std::string> entries = Entries(dir_.path());
  EXPECT_FALSE(entries.contains("infllm-cold-killed"));
  EXPECT_FALSE(entries.contains("infllm-cold-killed.lock"));
  EXPECT_TRUE(entries.contains("infllm-cold-foreign"));
  EXPECT_OK(GetOne(*other, "key", 5));
}

TEST_F(ScratchColdStoreTest, SaysWhatToSetWhereNothingCanBeWritten) {
  ::setenv("TMPDIR", dir_.file("missing").c_str(), 1);
  const auto store = NewScratchColdStore();
  EXPECT_THAT(PutOne(*store, "key", "value"),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("--cold-dir")));
}

}  // namespace
}  // namespace infllm::services
