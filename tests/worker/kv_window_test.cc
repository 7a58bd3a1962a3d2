#include "worker/attention/kv_window.h"

#include <cstdint>
#include <memory>
#include <set>
#include <vector>

#include "kernels/backend.h"
#include "tests/support/status_matchers.h"
#include "worker/attention/page_arena.h"

namespace infllm::worker {
namespace {

using ::infllm::testing::StatusIs;
using ::testing::HasSubstr;

constexpr kernels::Stream kStream = kernels::Backend::kMainStream;

class KvWindowTest : public ::testing::Test {
 protected:
  PageArena Arena(int64_t pages, int64_t layers = 2) {
    auto arena = PageArena::New(*backend_, 64, layers, pages * 64 * layers);
    EXPECT_OK(arena);
    return *std::move(arena);
  }
  // (position, first, tokens) of each entry.
  static std::vector<std::vector<int64_t>> Entries(const KvWindow& window, int64_t begin,
                                                   int64_t end) {
    std::vector<kernels::PageEntry> entries;
    window.AddEntries(begin, end, entries);
    std::vector<std::vector<int64_t>> result;
    for (const auto& e : entries) result.push_back({e.position, e.first, e.tokens});
    return result;
  }

  std::unique_ptr<kernels::Backend> backend_ = kernels::NewReferenceBackend();
};

using Rows = std::vector<std::vector<int64_t>>;

TEST_F(KvWindowTest, PagesAreTakenAsTokensComeAndGivenBackAsTheyGo) {
  PageArena arena = Arena(10);
  {
    KvWindow window(arena, /*sink_tokens=*/6, /*page_tokens=*/4);
    EXPECT_EQ(window.PagesFor(5), 2);
    window.Append(5);
    EXPECT_EQ(window.PagesFor(1), 0);
    EXPECT_EQ(window.PagesFor(2), 1);
    window.Append(12);  // 6 sinks, pages of 4, 4 and 3 tokens
    EXPECT_EQ(arena.free_pages(), 5);
    EXPECT_EQ(window.full_pages(), 2);
    EXPECT_EQ(Entries(window, 0, 17),
              (Rows{{0, 0, 4}, {4, 0, 2}, {6, 0, 4}, {10, 0, 4}, {14, 0, 3}}));
    EXPECT_EQ(Entries(window, 5, 11), (Rows{{4, 1, 1}, {6, 0, 4}, {10, 0, 1}}));
    EXPECT_EQ(window.Find(5).slot, 1);
    EXPECT_EQ(window.Find(15).page, arena.address(window.page_number(2)));
    EXPECT_EQ(window.Find(15).slot, 1);
    window.DropPagesBefore(2);
    EXPECT_EQ(arena.free_pages(), 7);
    EXPECT_EQ(Entries(window, 0, 17), (Rows{{0, 0, 4}, {4, 0, 2}, {14, 0, 3}}));
    EXPECT_EQ(window.PagesFor(2), 1);
  }
  EXPECT_EQ(arena.free_pages(), 10);
}

TEST_F(KvWindowTest, ForksShareFullPagesAndCopyTheOneThatGrows) {
  PageArena arena = Arena(10);
  KvWindow window(arena, 0, 4);
  window.Append(10);
  for (int64_t layer = 0; layer < 2; ++layer) {
    *window.Find(9).page = std::byte(1);
    *(window.Find(9).page + arena.layer_offset(layer)) = std::byte(1 + layer);
  }
  EXPECT_EQ(window.PagesForFork(), 1);
  ASSERT_OK_AND_ASSIGN(KvWindow fork, window.Fork(*backend_, kStream));
  EXPECT_EQ(arena.free_pages(), 6);
  EXPECT_EQ(fork.page_number(0), window.page_number(0));
  EXPECT_EQ(fork.page_number(1), window.page_number(1));
  EXPECT_NE(fork.page_number(2), window.page_number(2));
  for (int64_t layer = 0; layer < 2; ++layer) {
    EXPECT_EQ(*(fork.Find(9).page + arena.layer_offset(layer)), std::byte(1 + layer));
  }
  window.DropPagesBefore(2);
  EXPECT_EQ(arena.free_pages(), 6);  // the fork has them still
  fork.DropPagesBefore(2);
  EXPECT_EQ(arena.free_pages(), 8);
}

TEST_F(KvWindowTest, AForkWithinTheSinksCopiesThePageThatGrows) {
  PageArena arena = Arena(10);
  KvWindow window(arena, 10, 4);
  window.Append(6);
  ASSERT_OK_AND_ASSIGN(const KvWindow fork, window.Fork(*backend_, kStream));
  EXPECT_EQ(fork.Find(0).page, window.Find(0).page);
  EXPECT_NE(fork.Find(5).page, window.Find(5).page);
}

TEST_F(KvWindowTest, PartsOfAPageAreApartInEveryLayer) {
  PageArena arena = Arena(3, /*layers=*/4);
  std::set<std::byte*> parts;
  for (int i = 0; i < 3; ++i) {
    const PageNumber page = arena.Take();
    for (int64_t layer = 0; layer < 4; ++layer) {
      parts.insert(arena.address(page) + arena.layer_offset(layer));
    }
  }
  EXPECT_EQ(parts.size(), 12u);
  EXPECT_EQ(arena.free_pages(), 0);
}

TEST_F(KvWindowTest, AnArenaWithoutRoomForAPageSaysWhatItNeeds) {
  EXPECT_THAT(
      PageArena::New(*backend_, 100, 3, 383),
      StatusIs(absl::StatusCode::kResourceExhausted,
               ::testing::AllOf(HasSubstr("384"), HasSubstr("383"), HasSubstr("--kv-bytes"))));
}

}  // namespace
}  // namespace infllm::worker
