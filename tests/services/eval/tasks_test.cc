// What holds for every task, on every request that it accepts.
#include "services/eval/tasks/task.h"

#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "services/eval/tasks/random.h"
#include "tests/services/eval/fake_tokens.h"
#include "tests/support/status_matchers.h"

namespace infllm::services {
namespace {

using ::infllm::testing::StatusIs;
using ::testing::AllOf;
using ::testing::HasSubstr;

// Sentences that differ from each other.
std::string Book(size_t bytes) {
  Random random(1, "book", 0);
  std::string book;
  while (book.size() < bytes) {
    std::string sentence = RandomLetters(random, 1, 'A');
    for (int64_t words = random.Between(3, 20); words > 0; --words) {
      sentence += RandomLetters(random, random.Between(1, 9), 'a') + (words > 1 ? " " : ". ");
    }
    book += sentence + (random.Below(8) == 0 ? "\n\n" : "");
  }
  return book;
}

std::string DataFile(std::string_view task) {
  const std::map<std::string_view, std::string> files = {
      {"longchat-lines", "longchat-3.jsonl.gz"},
      {"lost-in-the-middle-kv", "kv-retrieval-3.jsonl.gz"},
      {"babi-in-haystack", "babi-qa1.txt"}};
  const auto file = files.find(task);
  return file == files.end() ? "" : INFLLM_TEST_DATA "/eval/" + file->second;
}

TaskRequest Request(const Task& task, int64_t length) {
  TaskRequest request{.length = length, .samples = 3, .seed = 7};
  request.data_file = DataFile(task.name());
  request.count_tokens = CountFakeTokens;
  return request;
}

int64_t TotalTokens(const Sample& sample) {
  int64_t prompt = 0;
  for (const Question& question : sample.questions) {
    prompt = std::max(prompt, CountFakeTokens(question.prompt));
  }
  return CountFakeTokens(sample.text) + prompt + sample.max_new_tokens;
}

std::string_view At(const Sample& sample, const TextRange& range) {
  return std::string_view(sample.text).substr(range.begin, range.end - range.begin);
}

class TaskTest : public ::testing::TestWithParam<std::string_view> {
 protected:
  const Task& task() const { return *FindTask(GetParam()).value(); }
};

void ExpectWellFormed(const Task& task, const TaskRequest& request,
                      const std::vector<Sample>& samples) {
  std::set<std::string> ids;
  for (const Sample& sample : samples) {
    EXPECT_TRUE(ids.insert(sample.id).second) << sample.id;
    EXPECT_LE(TotalTokens(sample), request.length);
    EXPECT_GT(sample.max_new_tokens, 0);
    ASSERT_FALSE(sample.questions.empty());
    for (const Question& question : sample.questions) {
      EXPECT_TRUE(question.prompt.starts_with("\n")) << question.prompt;
      EXPECT_FALSE(question.prompt.ends_with(" ")) << question.prompt;
      EXPECT_FALSE(sample.text.ends_with("\n\n"));
      EXPECT_FALSE(question.label.empty());
      ASSERT_FALSE(question.answers.empty());
      // The right answer scores, and no answer does not.
      std::string right;
      for (const std::string& answer : question.answers) right += " " + answer;
      EXPECT_EQ(Score(sample.metric, right, question.answers), 1) << right;
      EXPECT_EQ(Score(sample.metric, "", question.answers), 0);
      EXPECT_EQ(question.evidence.empty(), question.depth < 0) << task.name();
      EXPECT_LE(question.depth, 1);
      for (const TextRange& range : question.evidence) {
        EXPECT_LE(0, range.begin);
        EXPECT_LT(range.begin, range.end);
        ASSERT_LE(range.end, static_cast<int64_t>(sample.text.size()));
      }
    }
  }
}

TEST_P(TaskTest, SamplesAreWellFormedAtManyLengths) {
  const auto book = std::make_shared<const std::string>(Book(20000));
  for (const bool with_book : {false, true}) {
    for (const int64_t length : {2048, 4096, 10007, 65536}) {
      TaskRequest request = Request(task(), length);
      if (with_book) request.haystack = book;
      SCOPED_TRACE(::testing::Message() << "length " << length << " book " << with_book);
      ASSERT_OK_AND_ASSIGN(const std::vector<Sample> samples, task().Make(request));
      EXPECT_EQ(samples.size(), 3u);
      ExpectWellFormed(task(), request, samples);
    }
  }
}

TEST_P(TaskTest, SamplesFillTheLength) {
  // The records of a file end somewhere.
  if (GetParam() == "longchat-lines" || GetParam() == "lost-in-the-middle-kv") return;
  const auto book = std::make_shared<const std::string>(Book(300000));
  for (const int64_t length : {4096, 100000}) {
    TaskRequest request = Request(task(), length);
    request.haystack = book;
    ASSERT_OK_AND_ASSIGN(const std::vector<Sample> samples, task().Make(request));
    // A word more of cwe is many tokens, and its samples differ in the length of the words.
    const int64_t slack = GetParam() == "cwe" ? length / 20 : std::max<int64_t>(100, length / 200);
    for (const Sample& sample : samples) EXPECT_GE(TotalTokens(sample), length - slack);
  }
}

TEST_P(TaskTest, TheTextIsTokenisedAHandfulOfTimes) {
  TaskRequest request = Request(task(), 1000000);
  int64_t bytes = 0;
  request.samples = 2;
  request.count_tokens = [&](std::string_view text) {
    bytes += static_cast<int64_t>(text.size());
    return static_cast<int64_t>(text.size()) / 4;
  };
  ASSERT_OK_AND_ASSIGN(const std::vector<Sample> samples, task().Make(request));
  int64_t text_bytes = 0;
  for (const Sample& sample : samples) text_bytes += static_cast<int64_t>(sample.text.size());
  EXPECT_LE(bytes, 5 * text_bytes + 100000);
}

TEST_P(TaskTest, TheSeedAloneDecides) {
  TaskRequest request = Request(task(), 4096);
  ASSERT_OK_AND_ASSIGN(const std::vector<Sample> first, task().Make(request));
  ASSERT_OK_AND_ASSIGN(const std::vector<Sample> second, task().Make(request));
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_EQ(first[i].text, second[i].text);
    EXPECT_EQ(first[i].questions[0].prompt, second[i].questions[0].prompt);
    EXPECT_EQ(first[i].questions[0].answers, second[i].questions[0].answers);
  }
  bool differs = false;
  for (request.seed = 8; request.seed < 14; ++request.seed) {  // files have few records
    ASSERT_OK_AND_ASSIGN(const std::vector<Sample> other, task().Make(request));
    differs |= first[0].text != other[0].text;
  }
  EXPECT_TRUE(differs);
}

TEST_P(TaskTest, DepthsArePlacesInTheText) {
  if (!task().has_depths()) return;
  TaskRequest request = Request(task(), 8192);
  request.haystack = std::make_shared<const std::string>(Book(50000));
  request.depths = {0, 0.25, 0.5, 1};
  request.samples = 2;
  ASSERT_OK_AND_ASSIGN(const std::vector<Sample> samples, task().Make(request));
  std::map<double, int> questions;
  for (const Sample& sample : samples) {
    for (const Question& question : sample.questions) {
      ++questions[question.depth];
      const TextRange& range = question.evidence.at(0);
      const double middle = static_cast<double>(range.begin + range.end) / 2 /
                            static_cast<double>(sample.text.size());
      EXPECT_NEAR(middle, question.depth, 0.03);
    }
  }
  EXPECT_THAT(questions, ::testing::ElementsAre(std::pair(0.0, 2), std::pair(0.25, 2),
                                                std::pair(0.5, 2), std::pair(1.0, 2)));
  ExpectWellFormed(task(), request, samples);
}

TEST_P(TaskTest, RefusesWhatItCannotDo) {
  const auto expect = [&](auto change, const std::string& why) {
    TaskRequest request = Request(task(), 4096);
    change(request);
    EXPECT_THAT(task().Make(request), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why)));
  };
  expect([](TaskRequest& r) { r.length = 0; }, "length 0: must be at least 1");
  expect([](TaskRequest& r) { r.length = 40; }, "length 40");
  expect([](TaskRequest& r) { r.samples = 0; }, "samples 0: must be in [1, ");
  expect([](TaskRequest& r) { r.needles = -1; }, "needles -1: must be in [0, ");
  expect([](TaskRequest& r) { r.depths = {0.5, 1.5}; }, "depth 1.5: must be in [0, 1]");
  expect([](TaskRequest& r) { r.depths = {std::numeric_limits<double>::quiet_NaN()}; }, "depth");
  expect([](TaskRequest& r) { r.count_tokens = nullptr; }, "count_tokens");
  if (!task().needs_file()) return;
  expect([](TaskRequest& r) { r.data_file = ""; }, "data_file is empty");
  expect([](TaskRequest& r) { r.samples = 1000; }, "samples 1000");
  TaskRequest request = Request(task(), 4096);
  request.data_file = "/no/such/file";
  EXPECT_THAT(task().Make(request), StatusIs(absl::StatusCode::kNotFound, HasSubstr("/no/such")));
  request.data_file = INFLLM_TEST_DATA "/README.md";
  EXPECT_THAT(task().Make(request),
              StatusIs(absl::StatusCode::kDataLoss, AllOf(HasSubstr("README.md: line 1:"))));
}

std::vector<std::string_view> Names() {
  std::vector<std::string_view> names;
  for (const Task* const task : Tasks()) names.push_back(task->name());
  return names;
}

INSTANTIATE_TEST_SUITE_P(All, TaskTest, ::testing::ValuesIn(Names()), [](const auto& info) {
  std::string name(info.param);
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST(TasksTest, AnUnknownNameListsTheKnownOnes) {
  EXPECT_THAT(FindTask("passkeys"),
              StatusIs(absl::StatusCode::kNotFound,
                       AllOf(HasSubstr("\"passkeys\""), HasSubstr("passkey, number-string"),
                             HasSubstr("babi-in-haystack"))));
}

// What differs between the samples of one length begins with the needle, so that one reading of the
// haystack serves them all.
TEST(TasksTest, SamplesShareTheHaystackUpToTheirNeedle) {
  TaskRequest request{.length = 20000, .depths = {0.3, 0.7}, .samples = 4};
  request.haystack = std::make_shared<const std::string>(Book(100000));
  request.count_tokens = CountFakeTokens;
  for (const char* const name : {"passkey", "number-string", "niah_single_2", "niah_single_3"}) {
    ASSERT_OK_AND_ASSIGN(const Task* const task, FindTask(name));
    ASSERT_OK_AND_ASSIGN(const std::vector<Sample> samples, task->Make(request));
    ASSERT_EQ(samples.size(), 8u);
    const Sample& deepest = samples.back();
    for (const Sample& sample : samples) {
      const auto needle = static_cast<size_t>(sample.questions[0].evidence[0].begin);
      EXPECT_EQ(sample.text.substr(0, needle), deepest.text.substr(0, needle)) << sample.id;
    }
    EXPECT_EQ(At(samples[0], samples[0].questions[0].evidence[0]).substr(0, 3),
              At(samples[1], samples[1].questions[0].evidence[0]).substr(0, 3));
  }
}

// Changing these breaks the comparison with every result written down before.
TEST(TasksTest, SamplesAreTheSameEverywhere) {
  const std::map<std::string_view, uint64_t> golden = {
      {"passkey", 0x4155BCB2BF5FD68D},
      {"number-string", 0xFB4F96C7D9AF9AF8},
      {"multikey", 0xD8D3938781141B53},
      {"needle", 0xC8EC967D7E5F46A7},
      {"kv-retrieval", 0x6EFAC3050C72BA57},
      {"kv-retrieval-key-first", 0x48A55B0396F111A3},
      {"math-find", 0x6D54594E6A5FA71F},
      {"niah_single_1", 0x26E6F754468CFB38},
      {"niah_single_2", 0xA43C910CE57CDBDE},
      {"niah_single_3", 0x88C0D92A2D3B2035},
      {"niah_multikey_1", 0x764823B7C4AB56D5},
      {"niah_multikey_2", 0xE15534DAA51F2E09},
      {"niah_multikey_3", 0xE9696C21C957E08E},
      {"niah_multivalue", 0xAEE5443611B318AB},
      {"niah_multiquery", 0x7F640B38CA5D0800},
      {"vt", 0x5C9DCEE597535546},
      {"cwe", 0xB23BE75D127F2939},
      {"fwe", 0x3D673149D0AD9AA9},
      {"longchat-lines", 0x4233495011DFBB1C},
      {"lost-in-the-middle-kv", 0x1A56EBAC073E2767},
      {"babi-in-haystack", 0xD069A61DAB97C4D2}};
  const auto hash = [](uint64_t state, std::string_view text) {  // FNV-1a
    for (const char c : text) state = (state ^ static_cast<unsigned char>(c)) * 0x100000001B3;
    return (state ^ 0xFF) * 0x100000001B3;
  };
  for (const Task* const task : Tasks()) {
    TaskRequest request = Request(*task, 3000);
    request.haystack = std::make_shared<const std::string>(Book(5000));
    ASSERT_OK_AND_ASSIGN(const std::vector<Sample> samples, task->Make(request));
    uint64_t state = 0xCBF29CE484222325;
    for (const Sample& sample : samples) {
      state = hash(hash(state, sample.id), sample.text);
      for (const Question& question : sample.questions) {
        state = hash(hash(state, question.prompt), question.label);
        for (const std::string& answer : question.answers) state = hash(state, answer);
      }
    }
    const auto expected = golden.find(task->name());
    EXPECT_EQ(state, expected == golden.end() ? 0 : expected->second)
        << "{\"" << task->name() << "\", 0x" << std::hex << std::uppercase << state << "},";
  }
}

}  // namespace
}  // namespace infllm::services
