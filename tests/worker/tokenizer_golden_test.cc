// Ids and texts are those of the real SentencePiece library, see make_tokenizer_goldens.py.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"
#include "tests/worker/tokenizer_data.h"
#include "worker/tokenizer/tokenizer.h"

namespace infllm::worker {
namespace {

using ::testing::ElementsAreArray;

// 64-bit FNV-1a, in hexadecimal.
template <typename T>
std::string Fnv(const std::vector<T>& values) {
  uint64_t hash = 0xCBF29CE484222325;
  for (const T value : values) {
    for (size_t i = 0; i < sizeof(T); ++i) {
      hash = (hash ^ static_cast<uint8_t>(value >> (8 * i))) * 0x100000001B3;
    }
  }
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

class TokenizerGolden : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(tokenizer_, LoadSentencePiece(TokenizerModelPath(GetParam())));
  }

  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_P(TokenizerGolden, EncodesAndDecodesEveryInputLikeTheLibrary) {
  const std::vector<std::string> inputs = TokenizerInputs();
  const std::vector<EncodeGolden> goldens = ReadEncodeGoldens(GetParam()).by_input;
  ASSERT_EQ(goldens.size(), inputs.size());
  ASSERT_GE(inputs.size(), 300);
  for (size_t i = 0; i < inputs.size(); ++i) {
    SCOPED_TRACE("input " + std::to_string(i) + ": " + ::testing::PrintToString(inputs[i]));
    EXPECT_THAT(tokenizer_->Encode(inputs[i]), ElementsAreArray(goldens[i].ids));
    EXPECT_EQ(tokenizer_->Decode(goldens[i].ids), goldens[i].decoded.value_or(inputs[i]));
  }
}

TEST_P(TokenizerGolden, EncodesALongTextLikeTheLibrary) {
  const std::vector<std::string> inputs = TokenizerInputs();
  const LongTextGolden golden = ReadEncodeGoldens(GetParam()).long_text;
  std::string text;
  for (int i = 0; i < golden.repeat; ++i) {
    for (const std::string& input : inputs) text += input + "\n";
  }
  text.pop_back();
  const std::vector<int32_t> ids = tokenizer_->Encode(text);
  EXPECT_EQ(ids.size(), golden.count);
  EXPECT_EQ(Fnv(ids), golden.ids_fnv);
  const std::string decoded = tokenizer_->Decode(ids);
  EXPECT_EQ(Fnv(std::vector<char>(decoded.begin(), decoded.end())), golden.text_fnv);
}

TEST_P(TokenizerGolden, DecodesAnyIdsLikeTheLibrary) {
  const std::vector<DecodeGolden> goldens = ReadDecodeGoldens(GetParam());
  ASSERT_GE(goldens.size(), 100);
  for (const DecodeGolden& golden : goldens) {
    EXPECT_EQ(tokenizer_->Decode(golden.ids), golden.decoded)
        << ::testing::PrintToString(golden.ids);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, TokenizerGolden, ::testing::ValuesIn(TokenizerModelNames()),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace infllm::worker
