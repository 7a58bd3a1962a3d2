#include "services/common/scratch_cold_store.h"

#include <filesystem>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/scoped_env.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::services {
namespace {

namespace fs = std::filesystem;
using ::infllm::testing::ScopedEnv;
using ::infllm::testing::StatusIs;
using ::infllm::testing::TempDir;
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

fs::perms Permissions(const std::string& path) { return fs::status(path).permissions(); }

class ScratchColdStoreTest : public ::testing::Test {
 protected:
  const TempDir dir_;
  const ScopedEnv tmpdir_{"TMPDIR", dir_.path()};
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
  const ScopedEnv missing("TMPDIR", dir_.file("missing"));
  const auto store = NewScratchColdStore();
  EXPECT_THAT(PutOne(*store, "key", "value"),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("--data-dir")));
}

}  // namespace
}  // namespace infllm::services
