#include <signal.h>
#include <sys/stat.h>

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
#include "tests/services/cli_fixture.h"
#include "tests/support/scoped_env.h"

namespace infllm {
namespace {

using ::infllm::testing::ScopedEnv;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;
using Json = nlohmann::json;

// Of memory stores, below TMPDIR.
int64_t ScratchDirectories(const std::string& tmpdir) {
  const std::filesystem::directory_iterator entries(tmpdir);
  return std::count_if(begin(entries), end(entries), [](const auto& entry) {
    return entry.path().filename().string().starts_with("infllm-cold");
  });
}

TEST_F(CliTest, HelpTellsFlagsUnitsAndDefaults) {
  EXPECT_THAT(Run({"--help"}).out, AllOf(HasSubstr("ask"), HasSubstr("score")));
  for (const char* command : {"ask", "generate", "score"}) {
    const Result result = Run({command, "--help"});
    EXPECT_EQ(result.status, 0);
    for (const char* flag :
         {"--policy", "--rope-scaling", "--n-init", "--n-local", "--block-tokens", "--top-k",
          "--repr-top-k", "--exec-block", "--cache-blocks", "--cache-policy", "--scoring",
          "--representatives", "--device", "--dtype", "--threads", "--memstore", "--ram-bytes",
          "--data-dir"}) {
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
  const std::string deep =
      dir_.Write("deep", std::string(1000000, '[') + std::string(1000000, ']'));
  const std::string huge = dir_.Write("huge", "x");
  std::filesystem::resize_file(huge, uintmax_t{2} << 30);  // sparse
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
           {{"score", "--model", kModel, "--token-ids", deep}, "nested deeper than 64 levels"},
           {{"score", "--model", kModel, "--token-ids", dir_.Write("ids", "[1, 999999]")},
            "999999"},
           {{"generate", "--model", kModel, "--prompt-file", "/proc/self/mem"},
            "cannot read \"/proc/self/mem\": Input/output error"},
           {{"generate", "--model", kModel, "--prompt-file", dir_.path()}, "is a directory"},
           {{"score", "--model", kModel, "--text", "/dev/zero"}, "/dev/zero is a device"},
           {{"score", "--model", kModel, "--token-ids", "/dev/full"}, "/dev/full is a device"},
           {{"score", "--model", kModel, "--text", huge}, "is larger than the 1 GiB"},
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
  const Json json = Run(with_json).json<Json>();
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
        .json<Json>()
        .at("ids");
  };
  EXPECT_EQ(sample("3"), sample("3"));
  EXPECT_NE(sample("3"), sample("4"));
}

TEST_F(CliTest, NoTokenIsScoredIfOneIsNotInTheVocabulary) {
  for (const size_t at : {0, 1, 511, 512, 513, 1024}) {  // also the first of a chunk
    std::vector<int> ids(1100, 1);
    ids[at] = 900000000;
    const Result result = Run(
        {"score", "--model", kModel, "--token-ids", dir_.Write("ids", Json(ids).dump()), "--json"});
    EXPECT_EQ(result.status, 1) << at;
    EXPECT_THAT(result.err, HasSubstr("element " + std::to_string(at) +
                                      " is 900000000, but the vocabulary of the model has ids 0 "
                                      "to 511"));
  }
}

TEST_F(CliTest, ScoreGivesTheSameForTextAndIds) {
  const std::string text = dir_.Write("text", StoryText(8));
  const Result scored =
      Run({"score", "--model", kModel, "--text", text, "--json", "--per-token", "--dtype", "f32"});
  ASSERT_EQ(scored.status, 0) << scored.err;
  const Json json = scored.json<Json>();
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
        .json<Json>()
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
  const Json expected = reference.json<Json>();
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
  EXPECT_EQ(answers(tight.json<Json>()), answers(expected));
  EXPECT_GT(tight.json<Json>().at("memory").at("blocks_cold"), blocks / 2);

  const std::string endpoint = "unix:" + dir_.path() + "/store";
  // The daemon counts representatives and bookkeeping, too: up to 1 KiB for each block.
  Subprocess daemon({INFLLM_MEMSTORE, "--listen", endpoint, "--ram-bytes",
                     std::to_string(blocks * (4096 / 10 + 1024)), "--data-dir", dir_.file("cold")});
  ASSERT_TRUE(daemon.WaitForOutput("listening")) << daemon.err();
  std::vector<std::string> remote = ask;
  remote.insert(remote.end(), {"--memstore", endpoint});
  const Result over_grpc = Run(remote);
  ASSERT_EQ(over_grpc.status, 0) << over_grpc.err;
  EXPECT_EQ(answers(over_grpc.json<Json>()), answers(expected));
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
    return result.json<Json>().at("nll").get<double>();
  };
  const double full = nll("--policy=full"), infllm = nll("--policy=infllm");
  EXPECT_GT(std::abs(infllm - full), 1e-4);

  const std::string endpoint = "unix:" + dir_.path() + "/store";
  Subprocess daemon({INFLLM_MEMSTORE, "--listen", endpoint, "--data-dir", dir_.file("cold")});
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
    return result.status == 0 ? result.json<Json>()["nll"].get<double>() : 0;
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

TEST_F(CliTest, AModelWhoseWeightsAreNoNumbersIsNamed) {
  const std::string model = dir_.file("model");
  std::filesystem::copy(kModel, model);
  {
    std::fstream file(model + "/model.safetensors",
                      std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-1024, std::ios::end);
    file << std::string(1024, '\xff');
  }
  for (const std::vector<std::string>& command : std::vector<std::vector<std::string>>{
           {"score", "--model", model, "--text", dir_.Write("text", "Once upon a time")},
           {"generate", "--model", model, "--prompt", "Once"}}) {
    const Result result = Run(command);
    EXPECT_EQ(result.status, 1);
    EXPECT_THAT(result.err, HasSubstr("gives no logits after token"));
  }
}

TEST_F(CliTest, EndpointsAreEvaluatedWhateverTheModelRecommends) {
  const std::string model = dir_.file("model");
  std::filesystem::copy(kModel, model);
  std::ofstream(model + "/infllm.json") << R"({"method": {"scoring": "mean", "rope-factor": 2}})";
  const Result result = Run({"eval", "passkey", "--endpoint", "http://127.0.0.1:1", "--model",
                             model, "--lengths=512", "--out", dir_.file("out")});
  EXPECT_EQ(result.status, 1) << result.err;  // nobody listens there
  EXPECT_THAT(result.err, HasSubstr("127.0.0.1"));
}

TEST_F(CliTest, ABadPresetIsNamed) {
  const std::string model = dir_.file("model");
  std::filesystem::copy(kModel, model);
  const std::vector<std::string> command = {"generate", "--model", model, "--prompt", "x"};
  for (const auto& [json, complaint] : std::vector<std::pair<std::string, std::string>>{
           {"nonsense", "is not a JSON object"},
           {R"({"n-local": 3})", "has no object \"method\""},
           {R"({"method": {"n-local": [3]}})", "\"n-local\" is neither"},
           {R"({"method": )" + std::string(100000, '[') + std::string(100000, ']') + "}",
            "nested deeper than 64 levels"},
           {R"({"method": {"n-locale": 3}})", "sets n-locale"},
           {R"({"method": {"threads": 3}})", "sets threads"},
           {R"({"method": {"n-local": "many"}})", "--n-local"}}) {
    std::ofstream(model + "/infllm.json") << json;
    const Result result = Run(command);
    EXPECT_EQ(result.status, 2) << json.substr(0, 100);
    EXPECT_THAT(result.err, HasSubstr(complaint)) << json.substr(0, 100);
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

TEST_F(CliTest, SignalsEndALongJobCleanlyWithinASecond) {
  ::signal(SIGHUP, SIG_DFL);  // inherited by the command; this test may run under nohup
  const std::string text = dir_.Write("text", StoryText(60000));
  const std::string cold = dir_.file("cold");
  std::filesystem::create_directory(cold);
  const ScopedEnv tmpdir("TMPDIR", cold);
  for (const auto& [signal, status] : {std::pair{SIGINT, 130}, {SIGTERM, 143}, {SIGHUP, 129}}) {
    Subprocess process(With({INFLLM_CLI, "ask", "--model", kModel, "--text", text, "--question",
                             "x", "--ram-bytes", "1MiB"}));
    ASSERT_TRUE(process.WaitForOutput("reading "));
    const auto start = std::chrono::steady_clock::now();
    process.Signal(signal);
    EXPECT_EQ(process.Wait(), status);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
    EXPECT_THAT(process.err(), HasSubstr("interrupted"));
    EXPECT_EQ(ScratchDirectories(cold), 0) << "after signal " << signal;
  }
}

TEST_F(CliTest, AHangupThatNohupIgnoresDoesNotEndAJob) {
  const std::string text = dir_.Write("text", StoryText(60000));
  const auto before = ::signal(SIGHUP, SIG_IGN);
  Subprocess process(
      With({INFLLM_CLI, "ask", "--model", kModel, "--text", text, "--question", "x"}));
  ::signal(SIGHUP, before);
  ASSERT_TRUE(process.WaitForOutput("reading "));
  process.Signal(SIGHUP);
  process.Signal(SIGTERM);
  EXPECT_EQ(process.Wait(), 143);
}

TEST_F(CliTest, OutputThatIsLostIsAnError) {
  const std::string text = dir_.Write("text", StoryText(8));
  for (const std::vector<std::string>& arguments : std::vector<std::vector<std::string>>{
           {"--help"},
           {"--version"},
           {"eval", "list"},
           {"generate", "--model", kModel, "--prompt", "x", "--max-tokens", "5"},
           {"generate", "--model", kModel, "--prompt", "x", "--max-tokens", "5", "--json"},
           {"score", "--model", kModel, "--text", text},
           {"score", "--model", kModel, "--text", text, "--per-token", "--json"}}) {
    for (const auto& [redirection, why] :
         {std::pair{R"("$@" > /dev/full)", "cannot write to stdout: No space left on device"},
          {R"("$@" >&-)", "cannot write to stdout: Bad file descriptor"}}) {
      const Result result = RunInShell(redirection, arguments);
      EXPECT_EQ(result.status, 1) << arguments[0] << redirection;
      EXPECT_THAT(result.err, AllOf(StartsWith("infllm: "), HasSubstr(why)));
      EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    }
  }
}

// An answer that nobody reads is not made to its end, and neither blocks nor contexts stay behind.
TEST_F(CliTest, AReaderThatGoesAwayEndsTheJobCleanly) {
  const std::string text = dir_.Write("text", StoryText(20));
  const std::string cold = dir_.file("cold"), endpoint = "unix:" + dir_.file("store");
  std::filesystem::create_directory(cold);
  const ScopedEnv tmpdir("TMPDIR", cold);
  const std::string pipe = dir_.file("pipe");
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  Subprocess daemon({INFLLM_MEMSTORE, "--listen", endpoint, "--data-dir", dir_.file("daemon")});
  ASSERT_TRUE(daemon.WaitForOutput("listening")) << daemon.err();
  const auto ask = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"ask", "--model", kModel, "--text", text, "--question", "Tim"});
    return With(std::move(more));
  };
  const auto blocks_stored = [&] {
    return Run(ask({"--memstore", endpoint, "--max-tokens", "1", "--json"}))
        .json<Json>()
        .at("memory")
        .at("blocks_stored")
        .get<int64_t>();
  };
  const int64_t blocks = blocks_stored();
  for (const std::vector<std::string>& store :
       {std::vector<std::string>{}, std::vector<std::string>{"--memstore", endpoint}}) {
    // Descriptor 6 is a pipe whose only reader, 5, is closed again.
    const Result result =
        RunInShell("exec 5<>" + pipe + " 6>" + pipe + R"( 5>&-; exec "$@" >&6 6>&-)", ask(store));
    EXPECT_EQ(result.status, 1);
    EXPECT_THAT(result.err, HasSubstr("infllm: cannot write to stdout: Broken pipe"));
  }
  EXPECT_EQ(ScratchDirectories(cold), 0);
  EXPECT_EQ(blocks_stored(), blocks);
  daemon.Signal(SIGTERM);
  EXPECT_EQ(daemon.Wait(), 0);
}

}  // namespace
}  // namespace infllm
