// The text of each task, as published.
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "services/eval/tasks/random.h"
#include "services/eval/tasks/task.h"
#include "services/eval/tasks/words.h"
#include "tests/services/eval/fake_tokens.h"
#include "tests/support/status_matchers.h"

namespace infllm::services {
namespace {

using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::MatchesRegex;
using ::testing::StartsWith;

std::vector<Sample> Make(const std::string& task, TaskRequest request) {
  request.count_tokens = CountFakeTokens;
  if (!request.data_file.empty()) request.data_file = INFLLM_TEST_DATA "/eval/" + request.data_file;
  auto samples = FindTask(task).value()->Make(request);
  EXPECT_OK(samples);
  return samples.ok() ? *std::move(samples)
                      : std::vector<Sample>(1, {.questions = {1, Question()}});
}

std::string At(const Sample& sample, const TextRange& range) {
  return sample.text.substr(range.begin, range.end - range.begin);
}

constexpr char kNoise[] =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

TEST(TaskFormatsTest, Passkey) {
  const Sample sample = Make("passkey", {.length = 300, .depths = {0.5}})[0];
  const Question& question = sample.questions[0];
  const std::string key = question.answers[0];
  const std::string line = std::string(kNoise) + "\n";
  EXPECT_THAT(key, MatchesRegex("[0-9]{5}"));
  EXPECT_EQ(sample.text,
            "There is an important info hidden inside a lot of irrelevant text. Find it and "
            "memorize them. I will quiz you about the important information there.\n\n" +
                line + line + line + "The pass key is " + key + ". Remember it. " + key +
                " is the pass key.\n" + line + line + kNoise);
  EXPECT_EQ(question.prompt, "\n\nWhat is the pass key? The pass key is");
  EXPECT_EQ(At(sample, question.evidence[0]),
            "The pass key is " + key + ". Remember it. " + key + " is the pass key.");
  EXPECT_EQ(sample.metric, Metric::kFirstDigits);
}

TEST(TaskFormatsTest, NumberString) {
  const Sample sample = Make("number-string", {.length = 300, .depths = {1}})[0];
  const std::string key = sample.questions[0].answers[0];
  EXPECT_THAT(sample.text, StartsWith("There is an important info hidden inside a lot of "
                                      "irrelevant text. Find it. I will quiz you about the "
                                      "important information there.\n\nThe grass"));
  EXPECT_THAT(sample.text, EndsWith("again.\nThe sequence of digits is " + key + ". Remember it. " +
                                    key + " is the sequence of digits."));
  EXPECT_EQ(sample.questions[0].prompt,
            "\n\nWhat is the sequence of digits? The sequence of digits is");
  EXPECT_EQ(key.size(), 10u);
  int repeats = 0;
  for (size_t i = 1; i < key.size(); ++i) repeats += key[i] == key[i - 1];
  EXPECT_GE(repeats, 5);
}

TEST(TaskFormatsTest, MultikeyAsksForEachName) {
  const Sample sample = Make("multikey", {.length = 4000})[0];
  ASSERT_EQ(sample.questions.size(), 20u);
  std::set<std::string> names;
  for (size_t i = 0; i < 20; ++i) {
    const Question& question = sample.questions[i];
    const std::string& name = question.label;
    const std::string& key = question.answers[0];
    names.insert(name);
    EXPECT_THAT(name, MatchesRegex("[a-z]+-[a-z]+"));
    EXPECT_EQ(At(sample, question.evidence[0]), "The pass key of " + name + " is " + key +
                                                    ". Remember it. " + key +
                                                    " is the pass key of " + name + ".");
    EXPECT_EQ(question.prompt,
              "\n\nWhat is the pass key of " + name + "? The pass key of " + name + " is");
    EXPECT_DOUBLE_EQ(question.depth, (static_cast<double>(i) + 0.5) / 20);
  }
  EXPECT_EQ(names.size(), 20u);
  EXPECT_EQ(Make("multikey", {.length = 4000, .needles = 7})[0].questions.size(), 7u);
}

TEST(TaskFormatsTest, NeedleAsksEveryDepthOfOneText) {
  const std::vector<Sample> samples =
      Make("needle", {.length = 3000, .depths = {0, 0.5, 1}, .samples = 2});
  ASSERT_EQ(samples.size(), 2u);
  EXPECT_THAT(samples[0].text,
              StartsWith("Some special magic numbers are hidden within the following text. Make "
                         "sure to memorize it. I will quiz you about the numbers afterwards.\n"
                         "One of the special magic numbers for "));
  for (const Question& question : samples[0].questions) {
    EXPECT_EQ(At(samples[0], question.evidence[0]), "One of the special magic numbers for " +
                                                        question.label +
                                                        " is: " + question.answers[0] + ".");
    EXPECT_EQ(question.prompt, "\nWhat is the special magic number for " + question.label +
                                   " mentioned in the provided text? The special magic number "
                                   "for " +
                                   question.label + " mentioned in the provided text is");
  }
  EXPECT_EQ(samples[0].questions.size(), 3u);
  EXPECT_NE(samples[0].questions[0].label, samples[1].questions[0].label);
}

TEST(TaskFormatsTest, KvRetrieval) {
  const Sample sample = Make("kv-retrieval", {.length = 2000, .depths = {0, 1}})[0];
  ASSERT_EQ(sample.questions.size(), 2u);
  const Question& first = sample.questions[0];
  EXPECT_THAT(sample.text,
              StartsWith("Extract the value corresponding to the specified key in the JSON object "
                         "below.\n\nJSON data:\n{\"" +
                         first.label + "\": \"" + first.answers[0] + "\", \""));
  EXPECT_THAT(sample.text, EndsWith("\", " + At(sample, sample.questions[1].evidence[0]) + "}"));
  EXPECT_EQ(first.prompt,
            "\nKey: \"" + first.label + "\"\nThe value associated with the specified key is:");
  EXPECT_THAT(first.answers[0],
              MatchesRegex("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"));
  EXPECT_EQ(sample.metric, Metric::kWordMatch);
}

TEST(TaskFormatsTest, KvRetrievalKeyFirstNamesTheKey) {
  const std::vector<Sample> samples =
      Make("kv-retrieval-key-first", {.length = 2000, .depths = {0, 1}});
  ASSERT_EQ(samples.size(), 2u);
  for (const Sample& sample : samples) {
    ASSERT_EQ(sample.questions.size(), 1u);
    EXPECT_THAT(sample.text, StartsWith("Extract the value corresponding to the specified key \"" +
                                        sample.questions[0].label +
                                        "\" in the JSON object below.\n\nJSON data:\n{\""));
  }
}

TEST(TaskFormatsTest, MathFindAsksForEveryKind) {
  const std::vector<Sample> samples = Make("math-find", {.length = 3000, .samples = 7});
  const std::vector<std::string> kinds = {
      "largest number",         "second largest number", "third largest number", "smallest number",
      "second smallest number", "third smallest number", "median number"};
  for (size_t i = 0; i < samples.size(); ++i) {
    const std::string& text = samples[i].text;
    const std::string before = "What is the " + kinds[i] + " in the following list?\n\n[";
    ASSERT_THAT(text, StartsWith(before));
    ASSERT_THAT(text, EndsWith("]"));
    EXPECT_EQ(samples[i].questions[0].prompt,
              "\n\nYou should answer with only one number, no other words. The " + kinds[i] +
                  " of the list is:");
    std::multiset<int> numbers;
    for (size_t at = before.size(); at < text.size(); at = text.find(' ', at) + 1) {
      numbers.insert(std::stoi(text.substr(at)));
      if (text.find(' ', at) == std::string::npos) break;
    }
    EXPECT_EQ(numbers.size() % 2, 1u);
    const std::set<int> distinct(numbers.begin(), numbers.end());
    const int expected[] = {*distinct.rbegin(),
                            *std::next(distinct.rbegin()),
                            *std::next(distinct.rbegin(), 2),
                            *distinct.begin(),
                            *std::next(distinct.begin()),
                            *std::next(distinct.begin(), 2),
                            *std::next(numbers.begin(), numbers.size() / 2)};
    EXPECT_EQ(samples[i].questions[0].answers[0], std::to_string(expected[i])) << kinds[i];
  }
}

TEST(TaskFormatsTest, NiahSingle) {
  const Sample sample = Make("niah_single_1", {.length = 1000, .depths = {0}})[0];
  const Question& question = sample.questions[0];
  EXPECT_EQ(sample.text.substr(0, sample.text.find(" The sky")),
            "A special magic number is hidden within the following text. Make sure to memorize it. "
            "I will quiz you about the number afterwards.\nOne of the special magic numbers for " +
                question.label + " is: " + question.answers[0] + ".\nThe grass is green.");
  EXPECT_THAT(question.answers[0], MatchesRegex("[1-9][0-9]{6}"));
  EXPECT_EQ(question.prompt, "\nWhat is the special magic number for " + question.label +
                                 " mentioned in the provided text? The special magic number for " +
                                 question.label + " mentioned in the provided text is");
  const Sample uuid = Make("niah_single_3", {.length = 1000, .depths = {1}})[0];
  EXPECT_THAT(uuid.text, StartsWith("A special magic uuid is hidden"));
  EXPECT_THAT(uuid.text, EndsWith("One of the special magic uuids for " + uuid.questions[0].label +
                                  " is: " + uuid.questions[0].answers[0] + "."));
  EXPECT_EQ(uuid.questions[0].answers[0].size(), 36u);
}

TEST(TaskFormatsTest, NiahMultikey) {
  const Sample four = Make("niah_multikey_1", {.length = 2000})[0];
  size_t needles = 0;
  for (size_t at = 0; (at = four.text.find("One of the special", at)) != std::string::npos; ++at) {
    ++needles;
  }
  EXPECT_EQ(needles, 4u);
  EXPECT_EQ(four.questions[0].answers.size(), 1u);
  const Sample lines = Make("niah_multikey_3", {.length = 3000})[0];
  const std::string body = lines.text.substr(lines.text.find('\n') + 1);
  std::set<std::string> keys;
  size_t count = 0;
  for (size_t at = 0; at < body.size(); ++count) {
    const size_t end = std::min(body.find('\n', at), body.size());
    const std::string line = body.substr(at, end - at);
    EXPECT_THAT(line, MatchesRegex("One of the special magic uuids for [-0-9a-f]{36} is: "
                                   "[-0-9a-f]{36}\\."));
    keys.insert(line.substr(35, 36));
    at = end + 1;
  }
  EXPECT_GT(count, 20u);
  EXPECT_EQ(keys.size(), count);
  EXPECT_EQ(At(lines, lines.questions[0].evidence[0]),
            "One of the special magic uuids for " + lines.questions[0].label +
                " is: " + lines.questions[0].answers[0] + ".");
}

TEST(TaskFormatsTest, NiahMultivalueAndMultiquery) {
  const Sample values = Make("niah_multivalue", {.length = 2000})[0];
  const Question& question = values.questions[0];
  ASSERT_EQ(question.answers.size(), 4u);
  EXPECT_THAT(values.text, StartsWith("Some special magic numbers are hidden"));
  EXPECT_EQ(question.prompt, "\nWhat are all the special magic numbers for " + question.label +
                                 " mentioned in the provided text? The special magic numbers for " +
                                 question.label + " mentioned in the provided text are");
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(At(values, question.evidence[i]), "One of the special magic numbers for " +
                                                    question.label + " is: " + question.answers[i] +
                                                    ".");
  }
  const Question query = Make("niah_multiquery", {.length = 2000})[0].questions[0];
  EXPECT_EQ(query.answers.size(), 4u);
  EXPECT_THAT(query.label, MatchesRegex("[a-z]+-[a-z]+, [a-z]+-[a-z]+, [a-z]+-[a-z]+, and "
                                        "[a-z]+-[a-z]+"));
}

TEST(TaskFormatsTest, VariableTracking) {
  const Sample sample = Make("vt", {.length = 3000})[0];
  const Question& question = sample.questions[0];
  const std::vector<std::string>& names = question.answers;
  const std::string value = question.label;
  ASSERT_EQ(names.size(), 5u);
  EXPECT_EQ(At(sample, question.evidence[0]), "VAR " + names[0] + " = " + value);
  for (size_t i = 1; i < 5; ++i) {
    EXPECT_EQ(At(sample, question.evidence[i]), "VAR " + names[i] + " = VAR " + names[i - 1]);
  }
  const std::string begin =
      "Memorize and track the chain(s) of variable assignment hidden in the following text.";
  EXPECT_THAT(sample.text, StartsWith(begin + " "));
  const size_t example_end = sample.text.find("\n\n\n\n" + begin + "\n\n");
  ASSERT_NE(example_end, std::string::npos);
  EXPECT_LE(CountFakeTokens(sample.text.substr(0, example_end)), 500);
  EXPECT_THAT(sample.text.substr(0, example_end),
              ::testing::ContainsRegex(
                  "again\\.\n Question: Find all variables that are assigned the value [0-9]{5} in "
                  "the text above. Answer: According to the chain.s. of variable assignment in the "
                  "text above, 5 variables are assgined the value [0-9]{5}, they are: "
                  "[A-Z]{3} [A-Z]{3} [A-Z]{3} [A-Z]{3} [A-Z]{3}$"));
  EXPECT_EQ(question.prompt,
            "\nQuestion: Find all variables that are assigned the value " + value +
                " in the text above. Answer: According to the chain(s) of variable assignment in "
                "the text above, 5 variables are assgined the value " +
                value + ", they are:");
  EXPECT_THAT(sample.text, ::testing::ContainsRegex(
                               "again\\.\n VAR [A-Z]{5} = VAR [A-Z]{5}  The grass is green"));
}

TEST(TaskFormatsTest, FrequentWordsAreTheSecondToFourthMostFrequent) {
  const Sample sample = Make("fwe", {.length = 4000})[0];
  EXPECT_THAT(sample.text, StartsWith("Read the following coded text and track the frequency of "
                                      "each coded word. Find the three most frequently appeared "
                                      "coded words. "));
  std::map<std::string, int> counts;
  size_t at = sample.text.find("coded words. ") + 13;
  while (at < sample.text.size()) {
    const size_t end = std::min(sample.text.find(' ', at), sample.text.size());
    ++counts[sample.text.substr(at, end - at)];
    at = end + 1;
  }
  std::vector<std::pair<int, std::string>> ranked;
  for (const auto& [word, count] : counts) ranked.emplace_back(count, word);
  std::sort(ranked.rbegin(), ranked.rend());
  EXPECT_EQ(ranked[0].second, "...");
  EXPECT_THAT(sample.questions[0].answers,
              ElementsAre(ranked[1].second, ranked[2].second, ranked[3].second));
  EXPECT_GT(ranked[3].first, ranked[4].first);
  EXPECT_NEAR(static_cast<double>(ranked[0].first) / ranked[1].first, 4, 0.1);  // 1 / 2^-2
}

TEST(TaskFormatsTest, CommonWords) {
  for (const int64_t length : {3000, 12000}) {
    const Sample sample = Make("cwe", {.length = length})[0];
    const std::string begin =
        "Below is a numbered list of words. In these words, some appear more "
        "often than others. Memorize the ones that appear most often.\n1. ";
    EXPECT_THAT(sample.text, StartsWith(begin));
    const size_t second = sample.text.find("\n" + begin);
    ASSERT_NE(second, std::string::npos);
    EXPECT_THAT(sample.text.substr(0, second),
                ::testing::ContainsRegex("\nQuestion: What are the 10 most common words in the "
                                         "above list. Answer: The top 10 words that appear most "
                                         "often in the list are:1\\. [a-z]+ 2\\. "));
    std::map<std::string, int> counts;
    int number = 0;
    size_t at = second + begin.size() - 2;
    while (at < sample.text.size()) {
      ASSERT_EQ(std::stoi(sample.text.substr(at)), ++number);
      const size_t word = sample.text.find(". ", at) + 2;
      const size_t end = std::min(sample.text.find(' ', word), sample.text.size());
      ++counts[sample.text.substr(word, end - word)];
      at = end + 1;
    }
    const int common = length < 4096 ? 6 : 30;
    const int other = length < 4096 ? 1 : 3;
    for (const auto& [word, count] : counts) {
      const auto& answers = sample.questions[0].answers;
      const bool is_common = std::find(answers.begin(), answers.end(), word) != answers.end();
      EXPECT_EQ(count, is_common ? common : other) << word;
    }
    EXPECT_EQ(sample.questions[0].answers.size(), 10u);
  }
}

TEST(TaskFormatsTest, LongChatLines) {
  const std::vector<Sample> whole =
      Make("longchat-lines", {.length = 100000, .samples = 3, .data_file = "longchat-3.jsonl.gz"});
  const std::vector<Sample> part =
      Make("longchat-lines", {.length = 1000, .samples = 3, .data_file = "longchat-3.jsonl.gz"});
  for (size_t i = 0; i < 3; ++i) {
    for (const Sample& sample : {whole[i], part[i]}) {
      const Question& question = sample.questions[0];
      EXPECT_THAT(sample.text, StartsWith("Below is a record of lines I want you to remember. "));
      EXPECT_EQ(At(sample, question.evidence[0]),
                "line " + question.label + ": REGISTER_CONTENT is <" + question.answers[0] + ">");
      EXPECT_EQ(question.prompt,
                "\n\nNow the record is over. Tell me what is the "
                "<REGISTER_CONTENT> in line " +
                    question.label + "? The <REGISTER_CONTENT> in line " + question.label + " is");
    }
    EXPECT_EQ(std::count(whole[i].text.begin(), whole[i].text.end(), '\n'), 2 + 199);
    EXPECT_NEAR(part[i].questions[0].depth, whole[i].questions[0].depth, 0.15);
  }
}

TEST(TaskFormatsTest, LostInTheMiddleKv) {
  const std::vector<Sample> samples =
      Make("lost-in-the-middle-kv",
           {.length = 100000, .depths = {0, 1}, .data_file = "kv-retrieval-3.jsonl.gz"});
  ASSERT_EQ(samples.size(), 2u);
  const std::string begin =
      "Extract the value corresponding to the specified key in the JSON object below.\n\n"
      "JSON data:\n{";
  const Question& question = samples[0].questions[0];
  const std::string pair = "\"" + question.label + "\": \"" + question.answers[0] + "\"";
  EXPECT_EQ(At(samples[0], question.evidence[0]), pair);
  EXPECT_THAT(samples[0].text, StartsWith(begin + pair + ",\n \""));
  EXPECT_THAT(samples[1].text, EndsWith(",\n " + pair + "}"));
  EXPECT_EQ(question.prompt, "\n\nKey: \"" + question.label + "\"\nCorresponding value:");
  EXPECT_EQ(std::count(samples[0].text.begin(), samples[0].text.end(), '\n'), 3 + 74);
}

TEST(TaskFormatsTest, BabiFactsAreInOrderAndTheirSupportIsTheEvidence) {
  const std::vector<Sample> samples =
      Make("babi-in-haystack", {.length = 1000, .samples = 10, .data_file = "babi-qa1.txt"});
  for (const Sample& sample : samples) {
    const Question& question = sample.questions[0];
    EXPECT_THAT(sample.text, StartsWith("I will give you context with the facts hidden in some "
                                        "random text and a question. You need to answer the "
                                        "question based only on the information from the facts.\n"
                                        "<context>\n"));
    EXPECT_EQ(question.prompt, "\n</context>\nQuestion: " + question.label + "\nAnswer:");
    ASSERT_EQ(question.evidence.size(), 1u);
    // The last that was said of the person: "Where is John?"
    const std::string fact = At(sample, question.evidence[0]);
    const std::string person = question.label.substr(9, question.label.size() - 10);
    EXPECT_THAT(fact, MatchesRegex(person + " .* the " + question.answers[0] + "\\."));
    EXPECT_EQ(sample.text.rfind(person), static_cast<size_t>(question.evidence[0].begin));
  }
}

TEST(WordsTest, AreSortedLowerCaseAndInOneListOnly) {
  std::set<std::string_view> all;
  for (const auto words : {Adjectives(), Nouns()}) {
    EXPECT_GE(words.size(), 300u);
    EXPECT_TRUE(std::is_sorted(words.begin(), words.end()));
    for (const std::string_view word : words) {
      EXPECT_TRUE(all.insert(word).second) << word;
      EXPECT_EQ(word.find_first_not_of("abcdefghijklmnopqrstuvwxyz"), std::string_view::npos);
    }
  }
}

TEST(NameSourceTest, NamesNeverRepeatEvenWhenPairsRunOut) {
  Random random(1, "names", 0);
  NameSource names(random);
  std::set<std::string> all;
  const size_t pairs = Adjectives().size() * Nouns().size();
  for (size_t i = 0; i < pairs + 1000; ++i) EXPECT_TRUE(all.insert(names.Next()).second);
}

TEST(RandomTest, DrawsAreInRange) {
  Random random(1, "range", 0);
  std::set<int64_t> seen;
  for (int i = 0; i < 1000; ++i) seen.insert(random.Between(-2, 3));
  EXPECT_THAT(seen, ElementsAre(-2, -1, 0, 1, 2, 3));
  EXPECT_THAT(random.Distinct(5, 5), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(random.Distinct(0, 0), ElementsAre());
  const std::vector<int64_t> some = random.Distinct(20, 100);
  EXPECT_EQ(std::set<int64_t>(some.begin(), some.end()).size(), 20u);
  EXPECT_TRUE(std::is_sorted(some.begin(), some.end()));
}

}  // namespace
}  // namespace infllm::services
