#include "worker/model/safetensors.h"

#include <sys/stat.h>

#include <bit>
#include <cstring>
#include <filesystem>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::worker {
namespace {

using infllm::testing::StatusIs;
using infllm::testing::TempDir;
using kernels::DType;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

const std::string kFixtures = std::string(INFLLM_TEST_DATA) + "/safetensors";

// A file with this header text and so many bytes of data.
std::string File(const std::string& header, size_t data_bytes) {
  const uint64_t size = header.size();
  std::string file(reinterpret_cast<const char*>(&size), sizeof(size));
  file += header;
  for (size_t i = 0; i < data_bytes; ++i) file.push_back(static_cast<char>(i));
  return file;
}

std::string Entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" +
         offsets + "}";
}

absl::StatusOr<std::map<std::string, TensorView>> Parse(std::string_view file) {
  return ParseSafetensors(std::as_bytes(std::span(file)));
}

// A small valid file of one tensor.
std::string Valid(const std::string& name = "t") {
  return File("{" + Entry(name, "F32", "[2]", "[0,8]") + "}", 8);
}

std::vector<float> Floats(const TensorView& view) {
  std::vector<float> out;
  for (size_t at = 0; at < view.data.size(); at += kernels::SizeOf(view.dtype)) {
    float value = 0;
    uint16_t bits = 0;
    if (view.dtype == DType::kF32) {
      std::memcpy(&value, view.data.data() + at, 4);
    } else {
      std::memcpy(&bits, view.data.data() + at, 2);
      value = view.dtype == DType::kF16 ? kernels::HalfToFloat(bits)
                                        : std::bit_cast<float>(uint32_t{bits} << 16);
    }
    out.push_back(value);
  }
  return out;
}

TEST(ParseSafetensorsTest, RefusesMalformedHeaders) {
  const std::string t = Entry("t", "F32", "[2]", "[0,8]");
  struct Case {
    std::string file;
    const char* message;
  };
  const auto header = [](const std::string& text) { return File(text, 8); };
  const auto entry = [](const std::string& dtype, const std::string& shape,
                        const std::string& offsets) {
    return File("{" + Entry("t", dtype, shape, offsets) + "}", 8);
  };
  std::string huge_header = Valid();
  huge_header.replace(0, 8, "\xff\xff\xff\xff\xff\xff\xff\xff");
  std::string long_header = Valid();
  long_header[1] = 1;
  const Case kCases[] = {
      {"", "0 bytes, too few"},
      {"1234567", "7 bytes, too few"},
      {huge_header, "claims 18446744073709551615 bytes, but at most 100000000"},
      {long_header, "claims 310 bytes, but the file ends after 62"},
      {File("", 0), "does not begin with '{'"},
      {header("[]"), "does not begin with '{'"},
      {header(" {}"), "does not begin with '{'"},
      {header("\xef\xbb\xbf{}"), "does not begin with '{'"},
      {header("{"), "not valid JSON"},
      {header("{} {}"), "not valid JSON"},
      {header("{\"\xff\":{}}"), "not valid JSON"},
      {header("{" + t.substr(0, 20)), "not valid JSON"},
      {header(R"({"t":)" + std::string(100000, '[')),
       R"(tensor "t" has an array instead of an ob)"},
      {header(R"({"t":{"dtype":)" + std::string(100000, '{')), "has an object instead of a string"},
      {header(R"({"t":null})"), R"(tensor "t" has null instead of an object)"},
      {header(R"({"t":{}})"), R"(tensor "t" has no dtype)"},
      {header(R"({"t":{"dtype":"F32","data_offsets":[0,8]}})"), R"(tensor "t" has no shape)"},
      {header(R"({"t":{"dtype":"F32","shape":[2]}})"), R"(tensor "t" has no data_offsets)"},
      {header(R"({"t":{"dtype":"F32","dtype":"F32"}})"), R"(two fields "dtype")"},
      {header(R"({"t":{"shape":[2],"shape":[2]}})"), R"(two fields "shape")"},
      {header(R"({"t":{"data_offsets":[0,8],"data_offsets":[0,8]}})"),
       R"(two fields "data_offsets")"},
      {header(R"({"t":{"stride":[2]}})"), R"(unknown field "stride")"},
      {header("{" + t + "," + t + "}"), R"(tensor "t" occurs twice)"},
      {header("{" + t + R"(,"\u0074":{}})"), R"(tensor "t" occurs twice)"},
      {header(R"({"t":{"dtype":4}})"), "a number instead of a string as dtype"},
      {header(R"({"t":{"shape":2}})"), "a number in its shape"},
      {header(R"({"t":{"shape":[[2]]}})"), "an array in its shape"},
      {header(R"({"t":{"shape":[-1]}})"), "a negative number in its shape"},
      {header(R"({"t":{"shape":[2.0]}})"), "the number 2.0 in its shape"},
      {header(R"({"t":{"shape":["2"]}})"), "a string in its shape"},
      {header(R"({"t":{"shape":[true]}})"), "a boolean in its shape"},
      {header(R"({"t":{"shape":[18446744073709551616]}})"), "the number 18446744073709551616 in"},
      {header(R"({"t":{"shape":[1,1,1,1,1,1,1,1,1]}})"), "a list of more than 8 numbers"},
      {header(R"({"t":{"data_offsets":[0]}})"), "1 data_offsets instead of 2"},
      {header(R"({"t":{"data_offsets":[0,4,8]}})"), "3 data_offsets instead of 2"},
      {header(R"({"t":{"data_offsets":[-8,8]}})"), "a negative number in its data_offsets"},
      {header(R"({"__metadata__":[]})"), "__metadata__ is an array instead of an object"},
      {header(R"({"__metadata__":{"a":1}})"), "__metadata__ holds a number"},
      {header(R"({"__metadata__":{"a":{}}})"), "__metadata__ holds an object"},
      {header(R"({"__metadata__":{"a":"","a":""}})"), R"(__metadata__ has two fields "a")"},
      {header(R"({"__metadata__":{},"__metadata__":{}})"), "__metadata__ occurs twice"},
      {entry("I64", "[1]", "[0,8]"), R"(tensor "t" has dtype "I64"; only F32, BF16 and F16)"},
      {entry("f32", "[2]", "[0,8]"), R"(has dtype "f32")"},
      {entry("", "[2]", "[0,8]"), R"(has dtype "")"},
      {entry("F32", "[3]", "[0,8]"),
       "[3] of F32, which takes 12 bytes, but its data_offsets span 8"},
      {entry("F16", "[2]", "[0,8]"), "takes 4 bytes, but its data_offsets span 8"},
      {entry("F32", "[2]", "[8,0]"), "begins at offset 8, after its end at 0"},
      {entry("F32", "[4]", "[0,16]"), "ends at offset 16, but the file has only 8 bytes"},
      {entry("F32", "[2]", "[18446744073709551608,18446744073709551615]"), "only 8 bytes of data"},
      {entry("F32", "[4294967296,4294967296]", "[0,8]"), "overflows 64 bits"},
      {entry("F32", "[18446744073709551615]", "[0,8]"), "overflows 64 bits"},
      {entry("F32", "[0,9223372036854775808]", "[0,0]"), "overflows 64 bits"},
      {entry("F32", "[9223372036854775807,9,0]", "[0,0]"), "overflows 64 bits"},
      {entry("F32", "[1]", "[0,4]"), "goes on for 4 bytes after the last tensor"},
      {entry("F32", "[1]", "[4,8]"), "begins at offset 4, which leaves a gap after offset 0"},
      {File("{}", 1), "goes on for 1 bytes"},
      {File("{" + Entry("a", "F32", "[2]", "[0,8]") + "," + Entry("b", "F32", "[1]", "[4,8]") + "}",
            8),
       R"(tensor "b" begins at offset 4, inside another tensor that ends at 8)"},
      {File("{" + Entry("a", "F32", "[1]", "[0,4]") + "," + Entry("b", "F32", "[1]", "[0,4]") + "}",
            4),
       R"(tensor "b" begins at offset 0, inside another)"},
      {File(
           "{" + Entry("a", "F32", "[1]", "[0,4]") + "," + Entry("b", "F32", "[1]", "[8,12]") + "}",
           12),
       R"(tensor "b" begins at offset 8, which leaves a gap after offset 4)"},
      {File("{" + Entry("a", "F32", "[2]", "[0,8]") + "," + Entry("b", "F32", "[0]", "[4,4]") + "}",
            8),
       R"(tensor "b" begins at offset 4, inside another)"},
  };
  for (const Case& c : kCases) {
    EXPECT_THAT(Parse(c.file), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(c.message)))
        << c.file.substr(0, 200);
  }
}

TEST(ParseSafetensorsTest, EveryTruncationIsRefused) {
  const std::string file = Valid();
  ASSERT_OK(Parse(file));
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_THAT(Parse(std::string_view(file).substr(0, size)),
                StatusIs(absl::StatusCode::kInvalidArgument))
        << size;
  }
}

TEST(ParseSafetensorsTest, AcceptsWhatTheFormatAllows) {
  EXPECT_OK(Parse(File("{}", 0)));
  EXPECT_OK(Parse(File("{}      ", 0)));
  EXPECT_OK(Parse(File(R"({"__metadata__":{"format":"pt"}})", 0)));
  // Data in another order than the header's, and starting at an odd address.
  const std::string file = File(
      "{" + Entry("a", "F32", "[1]", "[2,6]") + "," + Entry("b", "F16", "[1]", "[0,2]") + "} ", 6);
  ASSERT_OK_AND_ASSIGN(const auto tensors, Parse(file));
  EXPECT_THAT(tensors.at("a").shape, ElementsAre(1));
  EXPECT_EQ(tensors.at("a").data.size(), 4u);
  EXPECT_EQ(static_cast<int>(tensors.at("a").data[0]), 2);
  EXPECT_EQ(static_cast<int>(tensors.at("b").data[1]), 1);
}

TEST(ParseSafetensorsTest, NamesAreEscapedInMessages) {
  EXPECT_THAT(
      Parse(File(R"({"a\nb\u0000":{}})", 0)),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(R"("a\nb\x00" has no dtype)")));
}

TEST(ParseShardIndexTest, ReadsTheMapAndIgnoresMetadata) {
  ASSERT_OK_AND_ASSIGN(const auto map, ParseShardIndex(R"({"metadata": {"total_size": 3, "x": {}},
      "weight_map": {"a": "m-1.safetensors", "total_size": "m-2.safetensors"}})"));
  EXPECT_THAT(map, ElementsAre(::testing::Pair("a", "m-1.safetensors"),
                               ::testing::Pair("total_size", "m-2.safetensors")));
}

TEST(ParseShardIndexTest, RefusesWhatIsNotAnIndex) {
  struct Case {
    std::string text;
    const char* message;
  };
  const auto map = [](const std::string& value) { return R"({"weight_map":{"a":)" + value + "}}"; };
  const Case kCases[] = {
      {"", "not valid JSON"},
      {"{", "not valid JSON"},
      {"[]", "no weight_map"},
      {"{}", "no weight_map"},
      {R"({"weight_map":[]})", "no weight_map"},
      {R"({"weight_map":{}})", "no weight_map"},
      {std::string(100000, '['), "nested deeper than 64 levels"},
      {map(std::string(100000, '[') + std::string(100000, ']')), "nested deeper than 64 levels"},
      {map("1"), R"(weight_map["a"] is not the name of a file)"},
      {map("{}"), R"(weight_map["a"] is not the name of a file)"},
      {map(R"("")"), "plain name"},
      {map(R"("..")"), "plain name"},
      {map(R"("../m.safetensors")"), R"(is "../m.safetensors", but must be the plain name)"},
      {map(R"("/etc/m.safetensors")"), "plain name"},
      {map(R"("sub/m.safetensors")"), "plain name"},
      {map(R"("sub\\m.safetensors")"), "plain name"},
      {map(R"("m\u0000.safetensors")"), "plain name"},
      {map(R"("m.bin")"), "plain name"},
      {R"({"weight_map":{"a":"1.safetensors","a":"2.safetensors"}})", R"("a" occurs twice)"},
      {R"({"weight_map":{},"weight_map":{"a":"1.safetensors"}})", R"("weight_map" occurs twice)"},
  };
  for (const Case& c : kCases) {
    EXPECT_THAT(ParseShardIndex(c.text),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(c.message)))
        << c.text.substr(0, 100);
  }
}

// Files written by the reference library; element i of every tensor is i / 4 - 1.
class FixtureTest : public ::testing::TestWithParam<const char*> {};

TEST_P(FixtureTest, ReadsWhatTheReferenceLibraryWrote) {
  ASSERT_OK_AND_ASSIGN(const auto files, ModelFiles::Open(kFixtures + "/" + GetParam()));
  struct Expected {
    std::string name;
    DType dtype;
    std::vector<int64_t> shape;
  };
  const Expected kExpected[] = {
      {"bf16", DType::kBF16, {7}},
      {"empty", DType::kF32, {0, 4}},
      {"f16", DType::kF16, {2, 3, 4}},
      {"f32", DType::kF32, {3, 5}},
      {"name with \"quotes\", \\ and \u00e9\u4e2d", DType::kBF16, {1}},
      {"scalar", DType::kF32, {}},
  };
  std::vector<std::string> names;
  for (const Expected& expected : kExpected) {
    names.push_back(expected.name);
    EXPECT_TRUE(files->Has(expected.name));
    ASSERT_OK_AND_ASSIGN(const TensorView view, files->Get(expected.name, expected.shape));
    EXPECT_EQ(view.dtype, expected.dtype);
    EXPECT_EQ(view.shape, expected.shape);
    size_t count = 1;
    for (const int64_t dim : expected.shape) count *= static_cast<size_t>(dim);
    std::vector<float> values;
    for (size_t i = 0; i < count; ++i) values.push_back(static_cast<float>(i) / 4 - 1);
    EXPECT_EQ(Floats(view), values) << expected.name;
  }
  EXPECT_EQ(files->names(), names);
  EXPECT_EQ(files->total_bytes(), 128);
  EXPECT_FALSE(files->Has("f64"));
}
INSTANTIATE_TEST_SUITE_P(Layouts, FixtureTest, ::testing::Values("single", "sharded"),
                         [](const auto& info) { return std::string(info.param); });

TEST(ModelFilesTest, GetNamesWhatDiffers) {
  ASSERT_OK_AND_ASSIGN(const auto files, ModelFiles::Open(kFixtures + "/single"));
  EXPECT_THAT(files->Get("nope", {}),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("no tensor \"nope\"")));
  const std::vector<int64_t> transposed = {5, 3};
  EXPECT_THAT(files->Get("f32", transposed),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("\"f32\""), HasSubstr("shape [3, 5] instead of [5, 3]"),
                             HasSubstr("model.safetensors"))));
  const std::vector<int64_t> flat = {15};
  EXPECT_THAT(files->Get("f32", flat), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(ModelFilesTest, ErrorsNameFileAndTensor) {
  EXPECT_THAT(ModelFiles::Open(kFixtures + "/i64"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("i64/model.safetensors"), HasSubstr("\"positions\""),
                             HasSubstr("\"I64\""))));
}

TEST(ModelFilesTest, FindsTheFilesOfADirectory) {
  const TempDir dir;
  EXPECT_THAT(ModelFiles::Open(dir.file("absent")),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("absent does not exist")));
  EXPECT_THAT(ModelFiles::Open(dir.path()),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("has no *.safetensors file")));
  EXPECT_THAT(ModelFiles::Open(dir.Write("file", "x")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("file is not a directory")));

  dir.Write("weights.safetensors", Valid("only"));
  ASSERT_OK_AND_ASSIGN(const auto only, ModelFiles::Open(dir.path()));
  EXPECT_THAT(only->names(), ElementsAre("only"));

  dir.Write("other.safetensors", Valid("other"));
  EXPECT_THAT(ModelFiles::Open(dir.path()),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("has 2 *.safetensors files"), HasSubstr("index"))));

  dir.Write("model.safetensors.index.json", R"({"weight_map":{"other":"other.safetensors"}})");
  ASSERT_OK_AND_ASSIGN(const auto sharded, ModelFiles::Open(dir.path()));
  EXPECT_THAT(sharded->names(), ElementsAre("other"));

  dir.Write("model.safetensors", Valid("single"));
  ASSERT_OK_AND_ASSIGN(const auto single, ModelFiles::Open(dir.path()));
  EXPECT_THAT(single->names(), ElementsAre("single"));
}

TEST(ModelFilesTest, LinksAreFollowed) {
  // As in the Hugging Face cache, where all files are links out of the directory.
  const TempDir dir, blobs;
  fs::create_symlink(blobs.Write("3f2a", Valid()), dir.file("model.safetensors"));
  EXPECT_OK(ModelFiles::Open(dir.path()));
  fs::remove(blobs.file("3f2a"));
  EXPECT_THAT(ModelFiles::Open(dir.path()), StatusIs(absl::StatusCode::kNotFound));
}

TEST(ModelFilesTest, WhatIsNotARegularFileIsRefused) {
  const TempDir dir;
  fs::create_directory(dir.file("model.safetensors"));
  EXPECT_THAT(ModelFiles::Open(dir.path()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("is a directory")));
  fs::remove(dir.file("model.safetensors"));
  ASSERT_EQ(::mkfifo(dir.file("model.safetensors").c_str(), 0600), 0);
  EXPECT_THAT(ModelFiles::Open(dir.path()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("not a regular file")));
  fs::remove(dir.file("model.safetensors"));
  dir.Write("model.safetensors", "");
  EXPECT_THAT(ModelFiles::Open(dir.path()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("0 bytes, too few")));
}

TEST(ModelFilesTest, IndexAndShardsMustAgree) {
  const TempDir dir;
  const auto write_index = [&dir](const std::string& map) {
    dir.Write("model.safetensors.index.json", R"({"weight_map":)" + map + "}");
  };
  dir.Write("1.safetensors", Valid("a"));
  dir.Write("2.safetensors", Valid("b"));

  write_index(R"({"a":"1.safetensors","b":"3.safetensors"})");
  EXPECT_THAT(ModelFiles::Open(dir.path()),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("3.safetensors is missing")));
  write_index(R"({"a":"2.safetensors","b":"1.safetensors"})");
  EXPECT_THAT(
      ModelFiles::Open(dir.path()),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(R"(says it is in "2.safetensors")")));
  write_index(R"({"b":"2.safetensors","x":"1.safetensors"})");
  EXPECT_THAT(ModelFiles::Open(dir.path()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("does not list it")));
  write_index(R"({"a":"1.safetensors","b":"2.safetensors","c":"2.safetensors"})");
  EXPECT_THAT(ModelFiles::Open(dir.path()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("tensor \"c\" is not in")));
  write_index(R"({"a":"../1.safetensors"})");
  EXPECT_THAT(ModelFiles::Open(dir.path()),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("index.json: "), HasSubstr("plain name"))));
  dir.Write("2.safetensors", Valid("a"));
  write_index(R"({"a":"1.safetensors","b":"2.safetensors"})");
  EXPECT_THAT(ModelFiles::Open(dir.path()),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("is both in "), HasSubstr("1.safetensors"))));
}

TEST(ModelFilesTest, AFileThatShrankIsNotRead) {
  const TempDir dir;
  dir.Write("model.safetensors", Valid());
  ASSERT_OK_AND_ASSIGN(const auto files, ModelFiles::Open(dir.path()));
  const std::vector<int64_t> shape = {2};
  ASSERT_OK(files->Get("t", shape));
  fs::resize_file(dir.file("model.safetensors"), 10);
  EXPECT_THAT(files->Get("t", shape),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("had 70 bytes"), HasSubstr("has 10 now"))));
}

TEST(ModelFilesTest, PagesComeBackAfterDropping) {
  ASSERT_OK_AND_ASSIGN(const auto files, ModelFiles::Open(kFixtures + "/single"));
  const std::vector<int64_t> shape = {7};
  ASSERT_OK_AND_ASSIGN(const TensorView view, files->Get("bf16", shape));
  const std::vector<float> before = Floats(view);
  files->DropPages();
  EXPECT_EQ(Floats(view), before);
}

memstore::Fingerprint FingerprintOf(const std::string& file) {
  const TempDir dir;
  dir.Write("model.safetensors", file);
  return ModelFiles::Open(dir.path()).value()->fingerprint();
}

TEST(FingerprintTest, DoesNotDependOnHowTensorsAreSpreadOverFiles) {
  ASSERT_OK_AND_ASSIGN(const auto single, ModelFiles::Open(kFixtures + "/single"));
  ASSERT_OK_AND_ASSIGN(const auto sharded, ModelFiles::Open(kFixtures + "/sharded"));
  EXPECT_EQ(single->fingerprint(), sharded->fingerprint());
  EXPECT_EQ(single->fingerprint(), single->fingerprint());
}

TEST(FingerprintTest, IsStableBetweenReleases) {
  // Computed with Python's xxhash. A change here orphans every stored context.
  ASSERT_OK_AND_ASSIGN(const auto files, ModelFiles::Open(kFixtures + "/single"));
  EXPECT_EQ(files->fingerprint().hi, 0xb62471931336c47eu);
  EXPECT_EQ(files->fingerprint().lo, 0x04439189ce91b4b3u);
}

TEST(FingerprintTest, DependsOnNameDtypeShapeAndBytes) {
  const auto file = [](const std::string& name, const std::string& dtype, const std::string& shape,
                       size_t bytes) {
    return File("{" + Entry(name, dtype, shape, "[0," + std::to_string(bytes) + "]") + "}", bytes);
  };
  std::string changed = file("t", "F32", "[2]", 8);
  changed.back() = static_cast<char>(changed.back() ^ 1);
  const std::string kFiles[] = {
      file("t", "F32", "[2]", 8),
      file("u", "F32", "[2]", 8),
      file("t", "F32", "[1,2]", 8),
      file("t", "F32", "[2,1]", 8),
      file("t", "F16", "[4]", 8),
      file("t", "BF16", "[4]", 8),
      file("t", "F32", "[3]", 12),
      changed,
      File("{}", 0),
      File("{" + Entry("t", "F32", "[1]", "[0,4]") + "," + Entry("u", "F32", "[1]", "[4,8]") + "}",
           8),
  };
  std::set<std::pair<uint64_t, uint64_t>> seen;
  for (const std::string& bytes : kFiles) {
    const memstore::Fingerprint fingerprint = FingerprintOf(bytes);
    EXPECT_TRUE(seen.emplace(fingerprint.hi, fingerprint.lo).second) << bytes.substr(8, 60);
  }
}

TEST(FingerprintTest, DoesNotDependOnPaddingMetadataOrOrder) {
  const std::string a = Entry("a", "F32", "[1]", "[0,4]");
  const std::string b = Entry("b", "F16", "[1]", "[4,6]");
  const memstore::Fingerprint plain = FingerprintOf(File("{" + a + "," + b + "}", 6));
  EXPECT_EQ(FingerprintOf(File("{" + b + "," + a + "}    ", 6)), plain);
  EXPECT_EQ(FingerprintOf(File(R"({"__metadata__":{"k":"v"},)" + a + "," + b + "}", 6)), plain);
}

TEST(FingerprintTest, ThreadsMayAskAtOnce) {
  ASSERT_OK_AND_ASSIGN(const auto files,
                       ModelFiles::Open(std::string(INFLLM_TEST_DATA) + "/stories260K"));
  std::vector<memstore::Fingerprint> results(8);
  std::vector<std::thread> threads;
  for (memstore::Fingerprint& result : results) {
    threads.emplace_back([&files, &result] {
      result = files->fingerprint();
      files->DropPages();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(results, ::testing::Each(results[0]));
}

}  // namespace
}  // namespace infllm::worker
