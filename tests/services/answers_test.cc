// Whatever a daemon answers, its client uses only what a store could have answered. Here all
// checksums fit: the daemon is wrong, not the wire (tampering_test.cc).
#include "services/memstore/answers.h"

#include <functional>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/memstore/wire.h"
#include "tests/support/status_matchers.h"

namespace infllm::services {
namespace {

namespace pb = infllm::v1;
using ::infllm::testing::StatusIs;
using memstore::ContextId;
using ::testing::AllOf;
using ::testing::HasSubstr;

const std::string kStore = "unix:/store";
constexpr ContextId kContext{.hi = 1, .lo = 2}, kFork{.hi = 3, .lo = 4}, kOther{.hi = 5, .lo = 6};
constexpr int32_t kLayer = 3;
constexpr size_t kBytes = 32;

class SelectAnswerTest : public ::testing::Test {
 protected:
  // Query 0 of 3 blocks below 9, 1 of a fork that shares block 4, 2 of a context that failed.
  static pb::SelectResponse Good() {
    pb::SelectResponse answer;
    AddBlocks(*answer.add_answers(), {{2, -1}, {4, 0}, {7, 1}});
    AddBlocks(*answer.add_answers(), {{4, 0}, {5, 2}});
    answer.add_answers()->set_code(static_cast<int>(absl::StatusCode::kDataLoss));
    answer.mutable_answers(2)->set_message("block 3 is lost");
    for (int i = 0; i < 3; ++i) {
      answer.add_payloads()->set_payload(std::string(kBytes, static_cast<char>('a' + i)));
    }
    return answer;
  }
  static void AddBlocks(pb::SelectResponse::Answer& answer,
                        std::initializer_list<std::pair<int64_t, int>> blocks) {
    for (const auto& [index, payload] : blocks) {
      pb::SelectResponse::Block& block = *answer.add_blocks();
      block.set_index(index);
      block.set_score(static_cast<float>(index) / 2);
      if (payload >= 0) block.set_payload(payload);
    }
  }

  // Makes the checksums fit whatever `answer` says.
  void Seal(pb::SelectResponse& answer) const {
    std::vector<wire::BlockPlace> places;
    for (int i = 0; i < answer.answers_size(); ++i) {
      const ContextId context = i < 3 ? queries_[static_cast<size_t>(i)].context : kOther;
      pb::SelectResponse::Answer& one = *answer.mutable_answers(i);
      one.set_crc32c(wire::AnswerChecksum(context, kLayer, i, one));
      for (const pb::SelectResponse::Block& block : one.blocks()) {
        if (block.has_payload() && block.payload() == static_cast<int>(places.size())) {
          places.push_back({context, kLayer, block.index()});
        }
      }
    }
    for (int i = 0; i < answer.payloads_size(); ++i) {
      const auto at = static_cast<size_t>(i);
      pb::SelectResponse::Payload& payload = *answer.mutable_payloads(i);
      payload.set_crc32c(wire::BlockChecksum(at < places.size() ? places[at] : wire::BlockPlace{},
                                             std::as_bytes(wire::AsSpan(payload.payload()))));
    }
  }

  absl::StatusOr<std::vector<memstore::Selection>> Read(pb::SelectResponse answer) const {
    SelectAnswer reader(kStore, kLayer, asked_);
    if (absl::Status taken = reader.Take(answer); !taken.ok()) return taken;
    return reader.Finish();
  }

  const std::vector<int64_t> have_ = {1, 2};
  const std::vector<memstore::SelectQuery> queries_ = {
      {.context = kContext, .k = 3, .end_block = 9, .have = have_},
      {.context = kFork, .k = 5},
      {.context = kOther, .k = 1}};
  const std::vector<AskedQuery> asked_ = {
      {.query = &queries_[0], .payload_bytes = kBytes, .published = 20},
      {.query = &queries_[1], .payload_bytes = kBytes, .published = 2},
      {.query = &queries_[2], .payload_bytes = kBytes, .published = 20}};
};

TEST_F(SelectAnswerTest, ARightAnswerIsTakenAndSharesItsPayloads) {
  pb::SelectResponse answer = Good();
  Seal(answer);
  ASSERT_OK_AND_ASSIGN(const auto selections, Read(answer));
  ASSERT_EQ(selections.size(), 3u);
  ASSERT_EQ(selections[0].blocks.size(), 3u);
  ASSERT_EQ(selections[1].blocks.size(), 2u);
  EXPECT_FALSE(selections[0].blocks[0].block) << "the caller has it";
  EXPECT_EQ(selections[0].blocks[1].block.payload().data(),
            selections[1].blocks[0].block.payload().data())
      << "sent once";
  EXPECT_EQ(selections[1].blocks[1].block.payload()[0], std::byte{'c'});
  EXPECT_EQ(selections[1].blocks[1].score, 2.5f);
  EXPECT_EQ(selections[2].status, absl::DataLossError("block 3 is lost"));
}

TEST_F(SelectAnswerTest, AWrongAnswerIsRefusedByName) {
  using Change = std::function<void(pb::SelectResponse&)>;
  const std::pair<Change, const char*> rows[] = {
      {[](auto& r) { r.mutable_answers()->RemoveLast(), r.clear_payloads(); },
       "ended after 2 of 3 answers"},
      {[](auto& r) { r.mutable_answers()->RemoveLast(); }, "a payload comes before the answer"},
      {[](auto& r) { r.add_answers(); }, "more answers than the 3 queries"},
      {[](auto& r) { r.mutable_payloads()->RemoveLast(); }, "ended after 2 of 3 payloads"},
      {[](auto& r) { r.add_payloads(); }, "more payloads than the 3 named"},
      {[](auto& r) { r.mutable_payloads(1)->mutable_payload()->pop_back(); },
       "its payload has 31 bytes, not 32"},
      {[](auto& r) { r.mutable_payloads(0)->clear_payload(); }, "its payload has 0 bytes, not 32"},
      {[](auto& r) {
         AddBlocks(*r.mutable_answers(0), {{8, 3}});
       },
       "4 blocks, but 3 were asked"},
      {[](auto& r) { r.mutable_answers(0)->mutable_blocks()->RemoveLast(); },
       "only 2 blocks, but 3 were asked and 20 are published"},
      {[](auto& r) { r.mutable_answers(1)->clear_blocks(); }, "only 0 blocks, but 5 were asked"},
      {[](auto& r) { r.mutable_answers(0)->mutable_blocks(2)->set_index(9); },
       "block 9 is not in [0, 9)"},
      {[](auto& r) { r.mutable_answers(0)->mutable_blocks(0)->set_index(-1); },
       "block -1 is not in [0, 9)"},
      {[](auto& r) { r.mutable_answers(0)->mutable_blocks(1)->set_index(2); }, "not ascending"},
      {[](auto& r) { r.mutable_answers(0)->mutable_blocks(2)->set_index(3); }, "not ascending"},
      {[](auto& r) { r.mutable_answers(0)->mutable_blocks(0)->set_payload(0); },
       "which the caller has"},
      {[](auto& r) { r.mutable_answers(0)->mutable_blocks(1)->clear_payload(); },
       "it has no payload"},
      {[](auto& r) { r.mutable_answers(0)->mutable_blocks(2)->set_payload(2); },
       "names payload 2 before payload 1"},
      {[](auto& r) { r.mutable_answers(0)->mutable_blocks(2)->set_payload(-7); }, "payload -7"},
      {[](auto& r) { r.mutable_answers(1)->mutable_blocks(0)->set_payload(1); },
       "names payload 1, of block 7"},
      {[](auto& r) { r.mutable_answers(1)->set_code(5); }, "an error comes with blocks"},
      {[](auto& r) { r.mutable_answers(2)->set_code(17); }, "status code 17"},
      {[](auto& r) { r.mutable_answers(2)->set_code(-1); }, "status code -1"},
  };
  for (const auto& [change, text] : rows) {
    SCOPED_TRACE(text);
    pb::SelectResponse answer = Good();
    change(answer);
    Seal(answer);
    EXPECT_THAT(Read(answer),
                StatusIs(absl::StatusCode::kInternal, AllOf(HasSubstr(kStore), HasSubstr(text))));
  }
}

TEST_F(SelectAnswerTest, PayloadsOfAnotherSizeAreNotShared) {
  std::vector<AskedQuery> asked = asked_;
  asked[1].payload_bytes = 2 * kBytes;
  pb::SelectResponse answer = Good();
  Seal(answer);
  SelectAnswer reader(kStore, kLayer, asked);
  EXPECT_THAT(reader.Take(answer),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("names payload 0")));
}

TEST_F(SelectAnswerTest, AnAnswerBehindPayloadsIsRefused) {
  pb::SelectResponse answer = Good();
  Seal(answer);
  SelectAnswer reader(kStore, kLayer, std::span(asked_).first(2));
  pb::SelectResponse first = answer, late;
  first.mutable_answers()->RemoveLast();
  *late.add_answers() = answer.answers(2);
  ASSERT_OK(reader.Take(first));
  EXPECT_THAT(reader.Take(late), StatusIs(absl::StatusCode::kInternal, HasSubstr("more answers")));
}

TEST_F(SelectAnswerTest, WhatDoesNotFitItsChecksumIsDamaged) {
  for (const bool of_payload : {false, true}) {
    pb::SelectResponse answer = Good();
    Seal(answer);
    if (of_payload) {
      answer.mutable_payloads(2)->mutable_payload()->front() ^= 1;
    } else {
      answer.mutable_answers(0)->mutable_blocks(1)->set_score(9);
    }
    EXPECT_THAT(Read(answer), StatusIs(absl::StatusCode::kAborted, HasSubstr("damaged")));
  }
}

TEST(FetchAnswerTest, AWrongAnswerIsRefusedByName) {
  const std::vector<int64_t> blocks = {5, 2};
  const auto read = [&](std::vector<std::pair<int64_t, size_t>> sent) -> absl::Status {
    pb::FetchResponse answer;
    for (const auto& [index, bytes] : sent) {
      pb::FetchResponse::Block& block = *answer.add_blocks();
      block.set_payload(std::string(bytes, 'x'));
      block.set_crc32c(wire::BlockChecksum({kContext, kLayer, index},
                                           std::as_bytes(wire::AsSpan(block.payload()))));
    }
    FetchAnswer reader(kStore, kContext, kLayer, blocks, kBytes);
    if (absl::Status taken = reader.Take(answer); !taken.ok()) return taken;
    return reader.Finish().status();
  };
  EXPECT_OK(read({{5, kBytes}, {2, kBytes}}));
  EXPECT_THAT(read({{5, kBytes}}),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("ended after 1 of 2 blocks")));
  EXPECT_THAT(read({{5, kBytes}, {2, kBytes}, {3, kBytes}}),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("more blocks than the 2 asked")));
  EXPECT_THAT(read({{5, kBytes + 1}, {2, kBytes}}),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("33 bytes, not 32")));
  EXPECT_THAT(read({{2, kBytes}, {5, kBytes}}),
              StatusIs(absl::StatusCode::kAborted, HasSubstr("block 5")));
}

}  // namespace
}  // namespace infllm::services
