#include "memstore/commit_record.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/memstore/test_blocks.h"
#include "tests/support/status_matchers.h"

namespace infllm::memstore {
namespace {

using ::infllm::testing::StatusIs;
using ::testing::ElementsAre;

CommitRecord Record() {
  return {.info = {.id = {.hi = 1, .lo = 2},
                   .name = "a name",
                   .options = Options(),
                   .tokens = 3,
                   .blocks = 5,
                   .published = 4,
                   .reusable = {.exec_block = 1, .tokens = 2},
                   .base = {.hi = 7, .lo = 8},
                   .created_ms = 1234567890123,
                   .stored_bytes = 99},
          .payloads = {{.part = {.maker = {.hi = 3, .lo = 4},
                                 .first_block = 0,
                                 .blocks = 4,
                                 .entries = {{.first = 1, .count = 8}, {.first = 20, .count = 2}},
                                 .chunks = {20, 21},
                                 .owners = {{.owner = {.hi = 5, .lo = 5}, .blocks = 1},
                                            {.owner = {.hi = 6, .lo = 6}, .blocks = 3}}},
                        .blocks = 3},
                       {.part = {.maker = {.hi = 1, .lo = 2},
                                 .first_block = 3,
                                 .blocks = 2,
                                 .entries = {{.first = 30, .count = 6}},
                                 .chunks = {34, 35},
                                 .owners = {{.owner = {.hi = 6, .lo = 6}, .blocks = 2}}},
                        .blocks = 2}},
          .representatives = {{.part = {.maker = {.hi = 1, .lo = 2},
                                        .first_block = 0,
                                        .blocks = 4,
                                        .entries = {{.first = 36, .count = 2}},
                                        .chunks = {36, 37}},
                               .blocks = 4}},
          .checkpoint = {38},
          .checkpoint_bytes = 20,
          .prefix = {PrefixHash{1, 2}, PrefixHash{3, 4}}};
}

absl::StatusOr<CommitRecord> RoundTrip(const CommitRecord& record) {
  return DecodeRecord(RecordKey(record.info.id), EncodeRecord(record));
}

TEST(CommitRecordTest, IsReadBackAsItWasWritten) {
  ASSERT_OK_AND_ASSIGN(const CommitRecord read, RoundTrip(Record()));
  EXPECT_EQ(read, Record());
}

TEST(CommitRecordTest, DamageOfAnyByteIsNoticed) {
  const std::string key = RecordKey(Record().info.id), whole = EncodeRecord(Record());
  const auto damaged = StatusIs(absl::StatusCode::kDataLoss);
  for (size_t i = 0; i < whole.size(); ++i) {
    std::string bytes = whole;
    bytes[i] ^= 0x10;
    EXPECT_THAT(DecodeRecord(key, bytes), damaged) << i;
    EXPECT_THAT(DecodeRecord(key, whole.substr(0, i)), damaged) << i;
  }
  EXPECT_THAT(DecodeRecord(key, whole + '\0'), damaged);
  EXPECT_THAT(DecodeRecord(RecordKey({.hi = 1, .lo = 3}), whole), damaged) << "another's key";
}

// Right checksums, but what no commit writes.
TEST(CommitRecordTest, PartsThatAreNotWholeAreRefused) {
  const auto refused = [](auto change) {
    CommitRecord record = Record();
    change(record);
    EXPECT_THAT(RoundTrip(record), StatusIs(absl::StatusCode::kDataLoss));
  };
  refused([](CommitRecord& r) { r.info.blocks = 6; });
  refused([](CommitRecord& r) { r.info.published = 3; });
  refused([](CommitRecord& r) { r.info.tokens = 6; });
  refused([](CommitRecord& r) { r.info.tokens = INT64_MAX; });
  refused([](CommitRecord& r) { r.info.tokens = -1; });
  refused([](CommitRecord& r) { r.info.name = ""; });
  refused([](CommitRecord& r) { r.info.options.geometry.layers = 3; });
  refused([](CommitRecord& r) { r.info.options.geometry.head_dim = 0; });
  refused([](CommitRecord& r) { r.payloads[0].blocks = 5; });
  refused([](CommitRecord& r) { r.payloads[1].part.first_block = 4; });
  refused([](CommitRecord& r) { r.payloads[0].part.chunks.pop_back(); });
  refused([](CommitRecord& r) { r.payloads[0].part.owners.pop_back(); });
  refused([](CommitRecord& r) { r.payloads[0].part.entries[1].first = 5; });
  refused([](CommitRecord& r) { r.payloads[0].part.entries[1].count = UINT64_MAX; });
  refused([](CommitRecord& r) { r.representatives[0].part.blocks = INT64_MAX; });
  refused([](CommitRecord& r) { r.checkpoint.push_back(40); });
  refused([](CommitRecord& r) { r.checkpoint_bytes = int64_t{1} << 40; });
  refused([](CommitRecord& r) { r.prefix.pop_back(); });
  refused([](CommitRecord& r) { r.info.reusable = {}; });
  refused([](CommitRecord& r) { r.info.reusable.exec_block = 0; });
  refused([](CommitRecord& r) { r.info.reusable.tokens = 3; });
  refused([](CommitRecord& r) { r.info.reusable.tokens = -2; });
}

TEST(ChunkTest, IsOfItsPlaceAlone) {
  const ChunkPlace place{ChunkKind::kNumbers, {.hi = 1, .lo = 2}, 3, 4};
  const std::string chunk = EncodeChunk(place, "content");
  ASSERT_OK_AND_ASSIGN(const std::string_view content, DecodeChunk(place, chunk));
  EXPECT_EQ(content, "content");
  const auto damaged = StatusIs(absl::StatusCode::kDataLoss);
  for (size_t i = 0; i < chunk.size(); ++i) {
    std::string bytes = chunk;
    bytes[i] ^= 1;
    EXPECT_THAT(DecodeChunk(place, bytes), damaged) << i;
    EXPECT_THAT(DecodeChunk(place, chunk.substr(0, i)), damaged) << i;
  }
  for (const ChunkPlace& other : {ChunkPlace{ChunkKind::kCheckpoint, place.maker, 3, 4},
                                  ChunkPlace{ChunkKind::kNumbers, {.hi = 1, .lo = 3}, 3, 4},
                                  ChunkPlace{ChunkKind::kNumbers, place.maker, 2, 4},
                                  ChunkPlace{ChunkKind::kNumbers, place.maker, 3, 5}}) {
    EXPECT_THAT(DecodeChunk(other, chunk), damaged);
  }
}

TEST(ToRunsTest, SortsAndMerges) {
  EXPECT_THAT(ToRuns({}), ::testing::IsEmpty());
  EXPECT_THAT(ToRuns({7, 3, 4, 9, 5}), ElementsAre(EntryRun{3, 3}, EntryRun{7, 1}, EntryRun{9, 1}));
}

}  // namespace
}  // namespace infllm::memstore
