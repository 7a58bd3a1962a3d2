// Whatever is streamed equals what is decoded at once, and is whole characters at every step.
#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"
#include "tests/worker/tokenizer_data.h"
#include "worker/tokenizer/tokenizer.h"
#include "worker/tokenizer/utf8.h"

namespace infllm::worker {
namespace {

using Ids = std::vector<int32_t>;

std::string Stream(StreamDecoder& decoder, std::span<const int32_t> ids) {
  std::string text;
  for (const int32_t id : ids) {
    const std::string part = decoder.Add(id);
    EXPECT_TRUE(IsValidUtf8(part)) << ::testing::PrintToString(part);
    text += part;
  }
  return text;
}

class TokenizerStream : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(tokenizer_, LoadSentencePiece(TokenizerModelPath(GetParam())));
  }

  // Every prefix, streamed and finished, equals the prefix decoded.
  void ExpectPrefixesEqual(const Ids& ids) {
    for (size_t size = 0; size <= ids.size(); ++size) {
      const std::span<const int32_t> prefix(ids.data(), size);
      const std::unique_ptr<StreamDecoder> decoder = tokenizer_->NewStreamDecoder(false);
      std::string text = Stream(*decoder, prefix);
      const std::string rest = decoder->Finish();
      EXPECT_TRUE(IsValidUtf8(rest));
      text += rest;
      ASSERT_EQ(text, tokenizer_->Decode(prefix)) << ::testing::PrintToString(prefix);
    }
  }

  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_P(TokenizerStream, EveryPrefixOfRandomIdsEqualsDecode) {
  std::mt19937 rng(3);
  const int32_t size = tokenizer_->vocab_size();
  for (int round = 0; round < 200; ++round) {
    Ids ids(1 + rng() % 24);
    // Low ids are control and byte pieces in all models that have them.
    for (int32_t& id : ids) id = static_cast<int32_t>(rng() % (rng() % 2 == 0 ? 260 : size));
    ExpectPrefixesEqual(ids);
  }
}

TEST_P(TokenizerStream, EveryPrefixOfEncodedTextEqualsDecode) {
  for (const std::string& input : TokenizerInputs()) {
    const Ids ids = tokenizer_->Encode(input);
    if (ids.size() <= 64) ExpectPrefixesEqual(ids);
  }
}

TEST_P(TokenizerStream, ADecoderThatContinuesGivesTheRest) {
  std::mt19937 rng(4);
  for (const std::string& input : TokenizerInputs()) {
    const Ids ids = tokenizer_->Encode(input);
    if (ids.size() < 2) continue;
    const size_t cut = 1 + rng() % (ids.size() - 1);
    const std::unique_ptr<StreamDecoder> first = tokenizer_->NewStreamDecoder(false);
    const std::string head = Stream(*first, std::span(ids).first(cut));
    // The cut must lie between characters, and after some text.
    if (head.empty() || !first->Finish().empty()) continue;
    const std::unique_ptr<StreamDecoder> second = tokenizer_->NewStreamDecoder(true);
    const std::string tail = Stream(*second, std::span(ids).subspan(cut)) + second->Finish();
    EXPECT_EQ(head + tail, tokenizer_->Decode(ids));
  }
}

INSTANTIATE_TEST_SUITE_P(Models, TokenizerStream, ::testing::ValuesIn(TokenizerModelNames()),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

class ByteStream : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(tokenizer_, LoadSentencePiece(TokenizerModelPath("tok512")));
    decoder_ = tokenizer_->NewStreamDecoder(true);
  }
  // In tok512 byte pieces begin at id 3.
  std::string AddByte(uint8_t byte) { return decoder_->Add(3 + byte); }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<StreamDecoder> decoder_;
};

TEST_F(ByteStream, BytesWaitUntilTheirCharacterIsWhole) {
  EXPECT_EQ(AddByte(0xF0), "");
  EXPECT_EQ(AddByte(0x9F), "");
  EXPECT_EQ(AddByte(0x98), "");
  EXPECT_EQ(AddByte(0x80), "\U0001F600");
  EXPECT_EQ(AddByte('a'), "a");
  EXPECT_EQ(decoder_->Finish(), "");
}

TEST_F(ByteStream, ABrokenCharacterBecomesOneReplacementPerByte) {
  EXPECT_EQ(AddByte(0xE2), "");
  EXPECT_EQ(AddByte(0x96), "");
  EXPECT_EQ(AddByte('a'), "\uFFFD\uFFFDa");
  EXPECT_EQ(AddByte(0xFF), "\uFFFD");  // starts no character: nothing to wait for
  EXPECT_EQ(AddByte(0xC3), "");
  EXPECT_EQ(AddByte(0xC3), "\uFFFD");
  EXPECT_EQ(AddByte(0xA9), "\u00E9");
}

TEST_F(ByteStream, APieceOrTheEndCompletesNothing) {
  const int32_t space_a = tokenizer_->Encode("a")[0];
  EXPECT_EQ(AddByte(0xC3), "");
  EXPECT_EQ(decoder_->Add(space_a), "\uFFFD a");
  EXPECT_EQ(AddByte(0xF0), "");
  EXPECT_EQ(AddByte(0x9F), "");
  EXPECT_EQ(decoder_->Finish(), "\uFFFD\uFFFD");
  EXPECT_EQ(decoder_->Finish(), "");
}

TEST_F(ByteStream, OnlyADecoderThatContinuesKeepsTheLeadingSpace) {
  const int32_t space_a = tokenizer_->Encode("a")[0];
  EXPECT_EQ(decoder_->Add(space_a), " a");
  EXPECT_EQ(tokenizer_->NewStreamDecoder(false)->Add(space_a), "a");
}

}  // namespace
}  // namespace infllm::worker
