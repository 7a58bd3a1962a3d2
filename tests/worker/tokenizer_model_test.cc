// What a model file must hold, and what happens when it does not.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"
#include "tests/worker/sentencepiece_writer.h"
#include "tests/worker/tokenizer_data.h"
#include "worker/tokenizer/tokenizer.h"

namespace infllm::worker {
namespace {

using ::infllm::testing::IsOk;
using ::infllm::testing::StatusIs;
using ::infllm::testing::TempDir;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// ids: a 3, b 4, ab 5, the space symbol 6.
std::string SmallBpe(const std::string& more_trainer_fields = "") {
  return SpecialPieces() + PieceField("a", -2, kNormal) + PieceField("b", -3, kNormal) +
         PieceField("ab", -1, kNormal) + PieceField("\u2581", -4, kNormal) +
         TrainerField(ModelTypeField(kBpeModel) + more_trainer_fields);
}

std::unique_ptr<Tokenizer> ParseOrDie(const std::string& bytes) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = ParseSentencePiece(bytes);
  EXPECT_OK(tokenizer);
  return *std::move(tokenizer);
}

std::string ReadFile(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

TEST(TokenizerModel, ReadsASmallModel) {
  const std::unique_ptr<Tokenizer> tokenizer = ParseOrDie(SmallBpe());
  EXPECT_EQ(tokenizer->vocab_size(), 7);
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 2);
  EXPECT_EQ(tokenizer->piece(5), "ab");
  EXPECT_THAT(tokenizer->Encode("ab a"), ElementsAre(6, 5, 6, 3));
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{1, 6, 5, 6, 3, 2}), "ab a");
}

TEST(TokenizerModel, BosAndEosAreTheControlPiecesThatTheSpecNames) {
  const std::string trainer = BytesField(46, "[B]") + BytesField(47, "a");
  const std::unique_ptr<Tokenizer> named =
      ParseOrDie(SmallBpe(trainer) + PieceField("[B]", 0, kControl));
  EXPECT_EQ(named->bos_id(), 7);
  EXPECT_EQ(named->eos_id(), -1);  // "a" is no control piece
  const std::unique_ptr<Tokenizer> none =
      ParseOrDie(PieceField("<unk>", 0, kUnknown) + PieceField("a", 0, kNormal));
  EXPECT_EQ(none->bos_id(), -1);
  EXPECT_EQ(none->eos_id(), -1);
}

TEST(TokenizerModel, UnknownTextIsOneIdPerRunWithoutByteFallback) {
  const std::unique_ptr<Tokenizer> tokenizer = ParseOrDie(SmallBpe());
  EXPECT_THAT(tokenizer->Encode("axyzb"), ElementsAre(6, 3, 0, 4));
  EXPECT_THAT(tokenizer->Encode("x\xFFy"), ElementsAre(6, 0));
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{3, 0, 4}), "a \u2047 b");
}

TEST(TokenizerModel, InvalidUtf8ReadsAsOneReplacementCharacterPerByte) {
  const std::unique_ptr<Tokenizer> tokenizer =
      ParseOrDie(SmallBpe(ByteFallbackField()) + BytePieces());
  const auto replaced = tokenizer->Encode("a\uFFFD\uFFFDb");
  EXPECT_EQ(tokenizer->Encode("a\xE2\x96"
                              "b"),
            replaced);
  EXPECT_EQ(tokenizer->Decode(replaced), "a\uFFFD\uFFFDb");
}

TEST(TokenizerModel, IdsOutsideTheVocabularyReadAsUnknown) {
  const std::unique_ptr<Tokenizer> tokenizer = ParseOrDie(SmallBpe(BytesField(44, "?")));
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{3, 7, 4}), "a?b");
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{-1, 3}), "?a");
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{std::numeric_limits<int32_t>::min(),
                                                   std::numeric_limits<int32_t>::max()}),
            "??");
}

TEST(TokenizerModel, UnknownFieldsAndExtensionsAreSkipped) {
  const std::string extra = IntField(4, 8000) + BytesField(30, "x") + FloatField(10, 0.5f);
  EXPECT_OK(ParseSentencePiece(SmallBpe(extra) + BytesField(4, "old") + IntField(200, 1) +
                               BytesField(201, "extension")));
}

TEST(TokenizerModel, RepeatedSpecsMergeAndTheLastScalarWins) {
  const std::string model = SmallBpe() + NormalizerField(IntField(3, 0)) +
                            NormalizerField(IntField(4, 0) + IntField(4, 1));
  EXPECT_THAT(ParseOrDie(model)->Encode("  a  "), ElementsAre(3));  // no dummy, spaces removed
}

TEST(TokenizerModel, ANullPieceIsIgnoredAsInTheLibrary) {
  const std::string null_piece = PieceField(std::string_view("\0", 1), 0, kNormal);
  const std::unique_ptr<Tokenizer> tokenizer =
      ParseOrDie(SmallBpe(ByteFallbackField()) + BytePieces() + null_piece);
  EXPECT_THAT(tokenizer->Encode(std::string_view("a\0", 2)), ElementsAre(6, 3, 7));
  EXPECT_THAT(ParseSentencePiece(SmallBpe() + null_piece),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("NUL")));
}

struct BrokenModel {
  std::string name;
  std::string bytes;
  std::string message;  // part of it
};

std::string Charsmap(std::string_view trie, std::string_view replacements) {
  return NormalizerField(BytesField(2, Uint32(static_cast<uint32_t>(trie.size())) +
                                           std::string(trie) + std::string(replacements)));
}

// A block of 256 units. Offset 1 << 10 leads from the root to its own block.
std::string Trie(uint32_t root, uint32_t others) {
  std::string units = Uint32(root);
  for (int i = 1; i < 256; ++i) units += Uint32(others);
  return units;
}
constexpr uint32_t kSoundRoot = 1u << 10;
constexpr uint32_t kLeafBit = 1u << 31;
const std::string kNul("\0", 1);

std::vector<BrokenModel> BrokenModels() {
  const std::string nan = PieceField("x", std::numeric_limits<float>::quiet_NaN(), kNormal);
  const std::string inf = PieceField("x", -std::numeric_limits<float>::infinity(), kNormal);
  return {
      {"Empty", "", "no pieces"},
      {"NoPieces", TrainerField(ModelTypeField(kBpeModel)), "no pieces"},
      {"Text", "This is not a model.", "at byte 0"},
      {"Json", "{\"model\": {\"type\": \"BPE\"}}", "at byte 0"},
      {"FieldZero", IntField(0, 1), "field number 0"},
      {"FieldNumberTooLarge", Varint(uint64_t{1} << 32) + "x", "field number"},
      {"Group", SmallBpe() + Varint(9 << 3 | 3), "wire type 3"},
      {"VarintCut", SmallBpe() + "\xFF\xFF", "varint is cut off"},
      {"VarintTooLong", SmallBpe() + std::string(11, '\xFF'), "longer than 64 bits"},
      {"LengthPastEnd", SmallBpe() + Varint(1 << 3 | 2) + Varint(5) + "abcd",
       "field 1 is 5 bytes long, and 4 are left"},
      {"HugeLength", Varint(1 << 3 | 2) + Varint(std::numeric_limits<uint64_t>::max()),
       "18446744073709551615 bytes long"},
      {"FloatCut", BytesField(1, BytesField(1, "a") + Varint(2 << 3 | 5) + "xy"), "cut off"},
      {"PiecesOfWrongWireType", IntField(1, 7), "field 1 has wire type 0 where 2 is due"},
      {"ScoreOfWrongWireType", BytesField(1, BytesField(1, "a") + IntField(2, 1)),
       "field 2 has wire type 0 where 5 is due"},
      {"EmptyPiece", SmallBpe() + PieceField("", 0, kNormal), "piece 7: it is empty"},
      {"PieceNotUtf8", SmallBpe() + PieceField("a\xFF", 0, kNormal), "piece 7: it is not valid"},
      {"PieceTooLong", SmallBpe() + PieceField(std::string(8000, 'a'), 0, kNormal),
       "piece 7: it is 8000 bytes long; the limit is 7999"},
      {"UnknownPieceType", SmallBpe() + PieceField("x", 0, 7), "piece 7: type 7"},
      {"ScoreNan", SmallBpe() + nan, "piece 7: its score is nan"},
      {"ScoreInfinite", SmallBpe() + inf, "piece 7: its score is -inf"},
      {"PieceTwice", SmallBpe() + PieceField("ab", 0, kNormal), "piece 7 \"ab\""},
      {"ControlAndNormalTwice", SmallBpe() + PieceField("<s>", 0, kNormal), "\"<s>\""},
      {"ControlTwice", SmallBpe() + PieceField("<s>", 0, kControl), "piece 7 \"<s>\""},
      {"TwoUnknown", SmallBpe() + PieceField("<u2>", 0, kUnknown), "piece 0 is unknown already"},
      {"NoUnknown", PieceField("a", 0, kNormal), "neither an unknown piece nor byte_fallback"},
      {"ByteWithoutFallback", SmallBpe() + PieceField("<0x41>", 0, kByte), "byte_fallback"},
      {"NotAByte", SmallBpe(ByteFallbackField()) + PieceField("<0x4g>", 0, kByte), "<0x4g>"},
      {"BytesMissing", SmallBpe(ByteFallbackField()) + PieceField("<0x00>", 0, kByte),
       "<0x01> is missing"},
      {"WordModel", SmallBpe(ModelTypeField(kWordModel)), "model type WORD is not supported"},
      {"CharModel", SmallBpe(ModelTypeField(kCharModel)), "model type CHAR is not supported"},
      {"UnknownModelType", SmallBpe(ModelTypeField(9)), "model type 9"},
      {"UnigramWithoutPieces", SpecialPieces(), "without a normal or user-defined piece"},
      {"UnkSurfaceNotUtf8", SmallBpe(BytesField(44, "\xC0")), "unk_surface"},
      {"Denormalizer", SmallBpe() + BytesField(5, BytesField(2, "rules")), "denormalizer_spec"},
      {"CharsmapTooShort", SmallBpe() + NormalizerField(BytesField(2, "abc")), "too few"},
      {"CharsmapTrieSize", SmallBpe() + Charsmap("abcd", kNul), "a trie of 4 bytes"},
      {"CharsmapWithoutReplacements", SmallBpe() + Charsmap(Trie(kSoundRoot, 0), ""),
       "a trie of 1024 bytes where 1024"},
      {"CharsmapNotEnded", SmallBpe() + Charsmap(Trie(kSoundRoot, 0), "abc"), "end in NUL"},
      {"CharsmapNotUtf8", SmallBpe() + Charsmap(Trie(kSoundRoot, 0), "\xFF" + kNul), "UTF-8"},
      {"CharsmapReplacementTooLong",
       SmallBpe() + Charsmap(Trie(kSoundRoot, 0), std::string(1025, 'x') + kNul),
       "1025 bytes long; the limit is 1024"},
      {"CharsmapRootOutside", SmallBpe() + Charsmap(Trie(256u << 10, 0), kNul), "root"},
      {"CharsmapRootIsLeaf", SmallBpe() + Charsmap(Trie(kLeafBit, 0), kNul), "root"},
      {"CharsmapNodeOutside", SmallBpe() + Charsmap(Trie(kSoundRoot, 256u << 10), kNul),
       "node 1 of the trie"},
      {"CharsmapLeafIsNoLeaf", SmallBpe() + Charsmap(Trie(kSoundRoot, 1u << 8), kNul),
       "node 1 of the trie"},
      {"CharsmapLeafOutside", SmallBpe() + Charsmap(Trie(kSoundRoot, kLeafBit | 5), kNul),
       "leaf 1 of the trie of precompiled_charsmap points to byte 5 of 1"},
      {"CharsmapLeafInsideCharacter",
       SmallBpe() + Charsmap(Trie(kSoundRoot, kLeafBit | 1), "\u00E9" + kNul), "byte 1 of 3"},
  };
}

class BrokenModelTest : public ::testing::TestWithParam<BrokenModel> {};

TEST_P(BrokenModelTest, IsRefusedWithAReason) {
  EXPECT_THAT(ParseSentencePiece(GetParam().bytes),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(GetParam().message)));
}

INSTANTIATE_TEST_SUITE_P(Models, BrokenModelTest, ::testing::ValuesIn(BrokenModels()),
                         [](const auto& info) { return info.param.name; });

TEST(TokenizerModel, TheCharsmapsThatTheBrokenOnesDeriveFromAreSound) {
  EXPECT_OK(ParseSentencePiece(SmallBpe() + Charsmap(Trie(kSoundRoot, 0), kNul)));
  EXPECT_OK(ParseSentencePiece(SmallBpe() + Charsmap(Trie(kSoundRoot, kLeafBit), "x" + kNul)));
}

TEST(TokenizerModel, TooManyBytesAreRefusedBeforeTheyAreRead) {
  EXPECT_THAT(ParseSentencePiece(std::string((32 << 20) + 1, 'x')),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("the limit is 33554432")));
}

TEST(TokenizerModel, TooManyPiecesAreRefused) {
  std::string bytes;
  const std::string piece = BytesField(1, BytesField(1, "a"));
  for (int i = 0; i <= (2 << 20); ++i) bytes += piece;
  EXPECT_THAT(ParseSentencePiece(bytes),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("more than 2097152 pieces")));
}

TEST(TokenizerModel, ATruncatedModelEndsInAStatus) {
  for (const std::string name : {"tok512", "unigram-rules"}) {
    const std::string whole = ReadFile(TokenizerModelPath(name));
    ASSERT_FALSE(whole.empty());
    for (size_t size = 0; size < whole.size(); size += 3) {
      const auto tokenizer = ParseSentencePiece(whole.substr(0, size));
      if (!tokenizer.ok()) {
        EXPECT_THAT(tokenizer, StatusIs(absl::StatusCode::kInvalidArgument)) << size;
      }
    }
  }
}

TEST(TokenizerModel, LoadNamesThePathInItsErrors) {
  const TempDir dir;
  const std::string missing = dir.file("none.model");
  EXPECT_THAT(LoadSentencePiece(missing),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr(missing)));
  EXPECT_THAT(LoadSentencePiece(dir.path()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(dir.path())));
  const std::string broken = dir.Write("broken.model", "\xFF\xFF");
  EXPECT_THAT(LoadSentencePiece(broken),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr(broken), HasSubstr("varint is cut off"))));
  const std::string large = dir.Write("large.model", "");
  std::filesystem::resize_file(large, (32 << 20) + 1);  // sparse
  EXPECT_THAT(LoadSentencePiece(large),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("at most 33554432")));
  EXPECT_OK(LoadSentencePiece(dir.Write("sound.model", SmallBpe())));
}

TEST(TokenizerModel, OneTokenizerServesManyThreads) {
  const std::unique_ptr<Tokenizer> tokenizer = ParseOrDie(ReadFile(TokenizerModelPath("tok512")));
  const std::vector<std::string> inputs = TokenizerInputs();
  const std::vector<EncodeGolden> goldens = ReadEncodeGoldens("tok512").by_input;
  std::vector<size_t> wrong(4, 0);
  std::vector<std::thread> threads;
  for (size_t& count : wrong) {
    threads.emplace_back([&] {
      for (size_t i = 0; i < inputs.size(); ++i) {
        const std::vector<int32_t> ids = tokenizer->Encode(inputs[i]);
        count += ids != goldens[i].ids;
        count += tokenizer->Decode(ids) != goldens[i].decoded.value_or(inputs[i]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(wrong, ElementsAre(0, 0, 0, 0));
}

}  // namespace
}  // namespace infllm::worker
