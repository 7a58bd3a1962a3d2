// Runs the real binaries as a user would.
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
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
using ::testing::StartsWith;
using Json = nlohmann::json;

const std::string kModel = INFLLM_TEST_DATA "/stories260K";

std::string StoryText(int sentences) {
  std::string text;
  for (int i = 0; i < sentences; ++i) {
    text += "Once there was a dog named Tim who lived in house number " + std::to_string(i * 37) +
            ". He liked to play with a big red ball in the park.\n";
  }
  return text;
}

class CliTest : public ::testing::Test {
 protected:
  struct Result {
    int status;
    std::string out, err;
    Json json() const { return Json::parse(out); }
  };
  Result Run(std::vector<std::string> arguments, const std::string& stdin_path = "/dev/null") {
    arguments.insert(arguments.begin(), INFLLM_CLI);
    Subprocess process(arguments, stdin_path);
    const int status = process.Wait();
    return {status, process.out(), process.err()};
  }
  // Small parameters of the method, so that short texts have many blocks.
  std::vector<std::string> With(std::vector<std::string> arguments) {
    for (const char* flag :
         {"--dtype=f32", "--n-init=8", "--n-local=64", "--block-tokens=16", "--top-k=4",
          "--exec-block=32", "--cache-blocks=6", "--repr-top-k=2"}) {
      arguments.push_back(flag);
    }
    return arguments;
  }

  TempDir dir_;
};

TEST_F(CliTest, HelpTellsFlagsUnitsAndDefaults) {
  EXPECT_THAT(Run({"--help"}).out, AllOf(HasSubstr("ask"), HasSubstr("score")));
  for (const char* command : {"ask", "generate", "score"}) {
    const Result result = Run({command, "--help"});
    EXPECT_EQ(result.status, 0);
    for (const char* flag :
         {"--policy", "--rope-scaling", "--n-init", "--n-local", "--block-tokens", "--top-k",
          "--repr-top-k", "--exec-block", "--cache-blocks", "--cache-policy", "--scoring",
          "--representatives", "--device", "--dtype", "--threads", "--memstore", "--ram-bytes",
          "--cold-dir"}) {
      EXPECT_THAT(result.out, HasSubstr(flag)) << command;
    }
    EXPECT_THAT(result.out, AllOf(HasSubstr("tokens"), HasSubstr("4096"), HasSubstr("4GiB")));
  }
}

TEST_F(CliTest, WrongUsageIsStatusTwoAndNamesTheFlag) {
  for (const auto& [arguments, what] :
       std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{}, "subcommand"},
           {{"generate"}, "--model"},
           {{"score", "--model", kModel}, "--text"},
           {{"generate", "--model", kModel, "--policy", "magic"}, "--policy"},
           {{"generate", "--model", kModel, "--n-local", "many"}, "--n-local"},
           {{"generate", "--model", kModel, "--representatives", "all"}, "--representatives"},
           {{"generate", "--model", kModel, "--top-k", "70000"}, "top-k is 70000"},
           {{"generate", "--model", kModel, "--no-such-flag"}, "no-such-flag"}}) {
    const Result result = Run(arguments);
    EXPECT_EQ(result.status, 2) << what;
    EXPECT_THAT(result.out + result.err, HasSubstr(what));
  }
}

TEST_F(CliTest, BadInputIsStatusOneAndOneLine) {
  const std::string text = dir_.Write("text", "Once upon a time");
  const std::string broken = dir_.path() + "/broken";
  std::filesystem::copy(kModel, broken);
  std::filesystem::resize_file(broken + "/model.safetensors", 5000);
  for (const auto& [arguments, what] :
       std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{"generate", "--model", "/nonexistent", "--prompt", "x"}, "/nonexistent"},
           {{"generate", "--model", broken, "--prompt", "x"}, "model.safetensors"},
           {{"ask", "--model", kModel, "--text", "/nonexistent", "--question", "x"},
            "/nonexistent"},
           {{"ask", "--model", kModel, "--text", dir_.path(), "--question", "x"}, "directory"},
           {{"ask", "--model", kModel, "--text", text, "--question", "x", "--evidence", "absent"},
            "absent"},
           {{"score", "--model", kModel, "--token-ids", text}, "JSON"},
           {{"score", "--model", kModel, "--token-ids", dir_.Write("ids", "[1, 999999]")},
            "999999"},
           {{"generate", "--model", kModel, "--prompt", "x", "--exec-block", "5000"},
            "exec-block is 5000"},
           {{"generate", "--model", kModel, "--prompt", "x", "--compat", "reference"},
            "representatives is bounds, must be mean-key"},
           {{"generate", "--model", kModel, "--prompt", "x", "--ram-bytes", "lots"}, "lots"},
           {{"generate", "--model", kModel, "--prompt", "x", "--ram-bytes", "1MiB"},
            "--ram-bytes is 1 MiB"},
           {{"generate", "--model", kModel, "--prompt", "x", "--temperature", "-1"},
            "temperature is -1"},
           {{"generate", "--model", kModel, "--prompt", "x", "--device", "cuda"}, "cuda"},
           {{"generate", "--model", kModel, "--prompt", "x", "--memstore",
             "unix:" + dir_.path() + "/no-socket"},
            "no-socket"}}) {
    const Result result = Run(arguments);
    EXPECT_EQ(result.status, 1) << what << result.err;
    EXPECT_THAT(result.err, AllOf(StartsWith("infllm: "), HasSubstr(what)));
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_THAT(result.out, IsEmpty());
  }
}

TEST_F(CliTest, GenerateStreamsTextOrPrintsJson) {
  const std::vector<std::string> arguments = {"generate", "--model",          kModel,
                                              "--prompt", "Once upon a time", "--max-tokens",
                                              "20",       "--dtype",          "f32"};
  const Result text = Run(arguments);
  ASSERT_EQ(text.status, 0) << text.err;
  EXPECT_THAT(text.out, StartsWith(", there was a little girl named Lily."));
  std::vector<std::string> with_json = arguments;
  with_json.push_back("--json");
  const Json json = Run(with_json).json();
  EXPECT_EQ(json.at("text").get<std::string>() + "\n", text.out);
  EXPECT_EQ(json.at("ids").size(), 20u);
  EXPECT_EQ(json.at("completion_tokens"), 20);
  EXPECT_EQ(json.at("prompt_tokens"), 5);
  EXPECT_GT(json.at("timings").at("total_seconds"), 0);
}

TEST_F(CliTest, SamplingFollowsTheSeed) {
  const auto sample = [&](const char* seed) {
    return Run({"generate", "--model", kModel, "--prompt", "Once", "--max-tokens", "30",
                "--temperature", "1.2", "--top-p", "0.9", "--seed", seed, "--json"})
        .json()
        .at("ids");
  };
  EXPECT_EQ(sample("3"), sample("3"));
  EXPECT_NE(sample("3"), sample("4"));
}

TEST_F(CliTest, ScoreGivesTheSameForTextAndIds) {
  const std::string text = dir_.Write("text", StoryText(8));
  const Result scored =
      Run({"score", "--model", kModel, "--text", text, "--json", "--per-token", "--dtype", "f32"});
  ASSERT_EQ(scored.status, 0) << scored.err;
  const Json json = scored.json();
  const size_t tokens = json.at("tokens");
  EXPECT_EQ(json.at("argmax").size(), tokens);
  ASSERT_EQ(json.at("token_nll").size(), tokens - 1);
  double sum = 0;
  for (const double nll : json.at("token_nll")) sum += nll;
  EXPECT_NEAR(json.at("nll"), sum / double(tokens - 1), 1e-9);
}

TEST_F(CliTest, Bf16ScoresCloseToF32) {
  const std::string text = dir_.Write("text", StoryText(40));
  const auto nll = [&](const char* dtype) {
    return Run({"score", "--model", kModel, "--text", text, "--json", "--dtype", dtype, "--policy",
                "full"})
        .json()
        .at("nll")
        .get<double>();
  };
  const double f32 = nll("f32"), bf16 = nll("bf16");
  EXPECT_NE(bf16, f32);
  EXPECT_NEAR(bf16, f32, 0.01 * f32);  // bf16 has 8 bits of mantissa
}

// The question is answered with the same tokens wherever the far blocks lie.
TEST_F(CliTest, AnswersDoNotDependOnTheMemoryStore) {
  const std::string text = dir_.Write("text", StoryText(100));
  std::vector<std::string> ask =
      With({"ask", "--model", kModel, "--text", text, "--question", "One day, Tim", "--question",
            "The dog", "--evidence", "number 37.", "--evidence", "number 1480.", "--max-tokens",
            "40", "--json"});
  const Result reference = Run(ask);
  ASSERT_EQ(reference.status, 0) << reference.err;
  const Json expected = reference.json();
  ASSERT_EQ(expected.at("answers").size(), 2u);
  EXPECT_EQ(expected.at("recall").at("asked"), 2);
  const int64_t blocks = expected.at("memory").at("blocks_stored");
  EXPECT_GT(blocks, 1000);
  EXPECT_EQ(expected.at("memory").at("blocks_cold"), 0);

  const auto answers = [](const Json& json) {
    std::vector<Json> ids;
    for (const Json& answer : json.at("answers")) ids.push_back(answer.at("ids"));
    return ids;
  };
  // A payload is 2 x 4 heads x 16 tokens x 8 x 4 bytes = 4 KiB: room for a tenth of the blocks.
  std::vector<std::string> small = ask;
  small.insert(small.end(), {"--ram-bytes", std::to_string(blocks * 4096 / 10)});
  const Result tight = Run(small);
  ASSERT_EQ(tight.status, 0) << tight.err;
  EXPECT_EQ(answers(tight.json()), answers(expected));
  EXPECT_GT(tight.json().at("memory").at("blocks_cold"), blocks / 2);

  const std::string endpoint = "unix:" + dir_.path() + "/store";
  Subprocess daemon({INFLLM_MEMSTORE, "--listen", endpoint, "--ram-bytes",
                     std::to_string(blocks * 4096 / 10), "--cold-dir", dir_.file("cold")});
  ASSERT_TRUE(daemon.WaitForOutput("listening")) << daemon.err();
  std::vector<std::string> remote = ask;
  remote.insert(remote.end(), {"--memstore", endpoint});
  const Result over_grpc = Run(remote);
  ASSERT_EQ(over_grpc.status, 0) << over_grpc.err;
  EXPECT_EQ(answers(over_grpc.json()), answers(expected));
  daemon.Signal(SIGTERM);
  EXPECT_EQ(daemon.Wait(), 0);
}

// Every option makes a difference, the same one wherever the far blocks lie.
TEST_F(CliTest, ScoresWithTheOptionsOfTheMemory) {
  const std::string text = dir_.Write("text", StoryText(10));
  const auto nll = [&](const std::string& option, const std::string& memstore = "") {
    std::vector<std::string> score = {
        "score",           "--model",           kModel,       "--text",          text,
        "--json",          "--dtype=f32",       "--n-init=8", "--n-local=64",    "--repr-top-k=2",
        "--exec-block=32", "--block-tokens=16", "--top-k=4",  "--cache-blocks=8"};
    score.push_back(option);
    if (!memstore.empty()) score.push_back("--memstore=" + memstore);
    const Result result = Run(score);
    EXPECT_EQ(result.status, 0) << result.err;
    return result.json().at("nll").get<double>();
  };
  const double full = nll("--policy=full"), infllm = nll("--policy=infllm");
  EXPECT_GT(std::abs(infllm - full), 1e-4);

  const std::string endpoint = "unix:" + dir_.path() + "/store";
  Subprocess daemon({INFLLM_MEMSTORE, "--listen", endpoint, "--cold-dir", dir_.file("cold")});
  ASSERT_TRUE(daemon.WaitForOutput("listening")) << daemon.err();
  for (const char* option : {"--representatives=mean-key", "--scoring=head-vote"}) {
    const double changed = nll(option);
    EXPECT_NE(changed, infllm) << option;
    EXPECT_EQ(nll(option, endpoint), changed) << option;
  }
  daemon.Signal(SIGTERM);
  EXPECT_EQ(daemon.Wait(), 0);
}

TEST_F(CliTest, PresetsFillInTheFlagsThatAreNotGiven) {
  const std::string model = dir_.file("model");
  std::filesystem::copy(kModel, model);
  const std::string text = dir_.Write("text", StoryText(12));
  const auto nll = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"score", "--text", text, "--json"});
    const Result result = Run(arguments);
    EXPECT_EQ(result.status, 0) << result.err;
    return result.status == 0 ? result.json()["nll"].get<double>() : 0;
  };
  const double given = nll(With({"--model", kModel}));
  std::vector<std::string> narrow = With({"--model", kModel});
  std::replace(narrow.begin(), narrow.end(), std::string("--n-local=64"),
               std::string("--n-local=32"));
  const double narrower = nll(narrow);
  ASSERT_NE(given, narrower);

  std::ofstream(model + "/infllm.json")
      << R"({"method": {"n-init": 8, "n-local": 64, "block-tokens": 16, "top-k": 4,)"
         R"( "exec-block": 32, "cache-blocks": 6, "repr-top-k": 2, "scoring": "mean"}})";
  EXPECT_EQ(nll({"--model", model, "--dtype=f32"}), given);
  EXPECT_EQ(nll({"--model", model, "--dtype=f32", "--n-local=32"}), narrower);
  const double defaults = nll({"--model", kModel, "--dtype=f32", "--scoring=mean"});
  ASSERT_NE(defaults, given);
  EXPECT_EQ(nll({"--model", model, "--dtype=f32", "--preset=paper-mistral"}), defaults);
  EXPECT_EQ(nll({"--model", model, "--dtype=f32", "--preset=none", "--scoring=mean"}), defaults);
}

TEST_F(CliTest, ABadPresetIsNamed) {
  const std::string model = dir_.file("model");
  std::filesystem::copy(kModel, model);
  const std::vector<std::string> command = {"generate", "--model", model, "--prompt", "x"};
  for (const auto& [json, complaint] : std::vector<std::pair<std::string, std::string>>{
           {"nonsense", "is not a JSON object"},
           {R"({"n-local": 3})", "has no object \"method\""},
           {R"({"method": {"n-local": [3]}})", "\"n-local\" is neither"},
           {R"({"method": {"n-locale": 3}})", "sets n-locale"},
           {R"({"method": {"threads": 3}})", "sets threads"},
           {R"({"method": {"n-local": "many"}})", "--n-local"}}) {
    std::ofstream(model + "/infllm.json") << json;
    const Result result = Run(command);
    EXPECT_EQ(result.status, 2) << json;
    EXPECT_THAT(result.err, HasSubstr(complaint)) << json;
  }
  std::filesystem::remove(model + "/infllm.json");
  EXPECT_EQ(Run({"generate", "--model", model, "--prompt", "x", "--preset=mine"}).status, 2);
}

TEST_F(CliTest, ReadsStandardInput) {
  const std::string text = dir_.Write("text", StoryText(3));
  const Result result =
      Run(With({"ask", "--model", kModel, "--text", "-", "--question", "Tim", "--max-tokens", "5"}),
          text);
  EXPECT_EQ(result.status, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("Q: Tim"), HasSubstr("tokens/s"), HasSubstr("peak")));
}

TEST_F(CliTest, InterruptEndsALongJobCleanlyWithinASecond) {
  const std::string text = dir_.Write("text", StoryText(60000));
  const std::string cold = dir_.file("cold");
  Subprocess process(With({INFLLM_CLI, "ask", "--model", kModel, "--text", text, "--question", "x",
                           "--ram-bytes", "1MiB", "--cold-dir", cold}));
  ASSERT_TRUE(process.WaitForOutput("reading "));
  const auto start = std::chrono::steady_clock::now();
  process.Signal(SIGINT);
  EXPECT_EQ(process.Wait(), 130);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
  EXPECT_THAT(process.err(), HasSubstr("interrupted"));
}

}  // namespace
}  // namespace infllm
