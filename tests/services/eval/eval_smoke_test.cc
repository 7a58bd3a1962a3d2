// Runs `infllm eval` as a user would.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "tests/support/subprocess.h"
#include "tests/support/temp_dir.h"

namespace infllm {
namespace {

using ::infllm::testing::Subprocess;
using ::infllm::testing::TempDir;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using Json = nlohmann::json;

class EvalSmokeTest : public ::testing::Test {
 protected:
  struct Result {
    int status;
    std::string out, err;
  };
  // The command with parameters of the method so small that short texts have many blocks.
  std::vector<std::string> Command(std::vector<std::string> arguments) {
    std::vector<std::string> all = {INFLLM_CLI, "eval"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    for (const char* flag : {"--model=" INFLLM_TEST_DATA "/stories260K", "--dtype=f32",
                             "--n-init=8", "--n-local=64", "--block-tokens=16", "--top-k=4",
                             "--exec-block=32", "--cache-blocks=6", "--repr-top-k=2"}) {
      all.push_back(flag);
    }
    all.push_back("--out=" + dir_.file("out"));
    return all;
  }
  Result Run(const std::vector<std::string>& command) {
    Subprocess process(command);
    const int status = process.Wait();
    return {status, process.out(), process.err()};
  }
  Result Eval(std::vector<std::string> arguments) { return Run(Command(std::move(arguments))); }
  size_t Lines() {
    std::ifstream file(dir_.file("out/records.jsonl"));
    return static_cast<size_t>(std::count(std::istreambuf_iterator<char>(file), {}, '\n'));
  }

  TempDir dir_;
};

TEST_F(EvalSmokeTest, PoliciesAreComparedAndDoneWorkIsKept) {
  const std::vector<std::string> arguments = {
      "passkey,multikey",
      "--lengths=1K,2K",
      "--depths=0:100:50",
      "--needles=5",
      "--policies=full,pi,ntk,lm-infinite,streaming-llm,infllm",
      "--scoring=mean,head-vote",
      "--max-full-tokens=1K"};
  const Result bad = Eval(arguments);
  EXPECT_EQ(bad.status, 2);  // not a number
  std::vector<std::string> good = arguments;
  good.back() = "--max-full-tokens=1024";
  const Result first = Eval(good);
  ASSERT_EQ(first.status, 0) << first.err;
  for (const char* text : {"passkey", "multikey", "infllm/head-vote", "streaming-llm", "1K", "2K",
                           "--max-full-tokens", "report.html"}) {
    EXPECT_THAT(first.out, HasSubstr(text));
  }
  EXPECT_THAT(first.err, AllOf(HasSubstr("[1/28] full passkey 1K: score"),
                               HasSubstr("[28/28] infllm/head-vote multikey 2K: score")));
  for (const char* file : {"manifest.json", "report.md", "report.html", "results.json"}) {
    EXPECT_TRUE(std::filesystem::exists(dir_.file("out") + "/" + file));
  }
  const size_t lines = Lines();
  good.push_back("--json");
  const Result second = Eval(good);
  ASSERT_EQ(second.status, 0) << second.err;
  EXPECT_TRUE(Json::accept(second.out));
  EXPECT_THAT(second.err, Not(HasSubstr("score")));
  EXPECT_EQ(Lines(), lines);

  good.push_back("--seed=2");
  const Result refused = Eval(good);
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("seed 1"), HasSubstr("now it is 2")));
}

TEST_F(EvalSmokeTest, TheSameSeedGivesTheSameAnswers) {
  const auto answers = [&] {
    const Result result = Eval({"passkey", "--length=1K", "--depths=0,100"});
    EXPECT_EQ(result.status, 0) << result.err;
    std::ifstream file(dir_.file("out/records.jsonl"));
    std::vector<Json> found;
    for (std::string line; std::getline(file, line);) {
      Json json = Json::parse(line);
      if (json.at("kind") != "answer") continue;
      json.erase("seconds");
      found.push_back(json);
    }
    std::filesystem::remove_all(dir_.file("out"));
    return found;
  };
  const std::vector<Json> first = answers();
  EXPECT_EQ(first.size(), 2u);
  EXPECT_EQ(first, answers());
}

TEST_F(EvalSmokeTest, PerplexityAndVariedFlags) {
  std::string text;
  for (int i = 0; i < 400; ++i) text += "Tim had a red ball and " + std::to_string(i) + " dogs. ";
  const Result result =
      Eval({"perplexity", "--text=" + dir_.Write("story.txt", text), "--length=4K", "--bins=log",
            "--policies=lm-infinite,infllm", "--vary=top-k=2,4"});
  ASSERT_EQ(result.status, 0) << result.err;
  for (const char* name : {"story.txt", "infllm/mean/top-k=2", "infllm/mean/top-k=4"}) {
    EXPECT_THAT(result.out, HasSubstr(name));
  }
  EXPECT_THAT(result.out, Not(HasSubstr("lm-infinite/top-k")));
}

TEST_F(EvalSmokeTest, FloorsDecideTheExitStatus) {
  // The model is far too small to answer, but its memory finds the needle.
  const std::vector<std::string> arguments = {"passkey", "--length=2K", "--depths=0:100:50"};
  const auto with = [&](const char* floor) {
    std::vector<std::string> all = arguments;
    all.push_back(floor);
    return Eval(all);
  };
  EXPECT_EQ(with("--require-recall=0.5").status, 0);
  const Result failed = with("--require-score=0.9");
  EXPECT_EQ(failed.status, 1);
  EXPECT_THAT(failed.err, AllOf(HasSubstr("infllm/mean has a score of"), HasSubstr("90.0%")));
}

TEST_F(EvalSmokeTest, InterruptKeepsWhatIsDoneAndTellsHowToGoOn) {
  const std::vector<std::string> command =
      Command({"passkey", "--length=4K", "--samples=30", "--depths=0,100"});
  Subprocess process(command);
  while (Lines() == 0) ::usleep(2000);  // a poll of another process, bounded by the test's timeout
  process.Signal(SIGINT);
  EXPECT_EQ(process.Wait(), 130);
  EXPECT_THAT(process.err(), AllOf(HasSubstr("answers are kept in " + dir_.file("out")),
                                   HasSubstr("repeat the command")));
  EXPECT_TRUE(std::filesystem::exists(dir_.file("out/report.html")));
  const size_t kept = Lines();
  EXPECT_LT(kept, 120u);
  const Result rest = Run(command);
  EXPECT_EQ(rest.status, 0) << rest.err;
  EXPECT_EQ(Lines(), 120u);  // a reading and an answer for each of 60 texts
}

TEST_F(EvalSmokeTest, MistakesAreTold) {
  for (const auto& [arguments, status, what] :
       std::vector<std::tuple<std::vector<std::string>, int, std::string>>{
           {{}, 2, "tasks"},
           {{"nosuch"}, 1, "no task is called"},
           {{"passkey", "--length=lots"}, 1, "lots"},
           {{"passkey", "--depths=0:200:10"}, 1, "0:200:10"},
           {{"passkey", "--policies=magic"}, 1, "magic"},
           {{"passkey", "--vary=magic=1"}, 1, "magic"},
           {{"passkey", "--vary=top-k=7"}, 1, "cache-blocks is 6"},
           {{"passkey", "--haystack=/nonexistent"}, 1, "/nonexistent"},
           {{"perplexity"}, 1, "--text"},
           {{"perplexity", "--text=" + dir_.Write("text", "x y"), "--bins=x"}, 1, "--bins"},
           {{"babi-in-haystack"}, 1, "--data"},
           {{"passkey", "--policies=lm-infinite", "--require-score=0.1"}, 1, "none are asked for"},
           {{"passkey", "--endpoint=https://x"}, 1, "https"},
           {{"passkey", "--endpoint=http://x", "--policies=full"}, 2, "--policies"},
           {{"passkey", "--endpoint-model=x"}, 2, "--endpoint"}}) {
    const Result result = Eval(arguments);
    EXPECT_EQ(result.status, status) << what << result.err;
    EXPECT_THAT(result.out + result.err, HasSubstr(what));
    EXPECT_FALSE(std::filesystem::exists(dir_.file("out"))) << what;
  }
  const Result no_model = Run({INFLLM_CLI, "eval", "passkey"});
  EXPECT_EQ(no_model.status, 2);
  EXPECT_THAT(no_model.out + no_model.err, HasSubstr("--model"));
}

TEST_F(EvalSmokeTest, TasksAreListed) {
  const Result list = Run({INFLLM_CLI, "eval", "list"});
  EXPECT_EQ(list.status, 0);
  EXPECT_THAT(list.out, AllOf(HasSubstr("passkey"), HasSubstr("perplexity"), HasSubstr("RULER")));
  EXPECT_EQ(Run({INFLLM_CLI, "eval", "--list-tasks"}).out, list.out);
  EXPECT_THAT(list.err, IsEmpty());
}

}  // namespace
}  // namespace infllm
