// Contexts that outlive their process, from the command line: ingest, ask --context, contexts.
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "gmock/gmock.h"
#include "tests/services/cli_fixture.h"
#include "tests/services/test_certificates.h"

namespace infllm {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using Json = nlohmann::json;

class ContextsCliTest : public CliTest {
 protected:
  using Arguments = std::vector<std::string>;

  static Arguments Plus(Arguments arguments, const Arguments& more) {
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  Arguments Ingest(const Arguments& store, const std::string& name, const std::string& text) {
    return With(Plus({"ingest", "--model", kModel, "--context", name, "--text", text}, store));
  }
  // The ids of the answers.
  Json Ask(const Arguments& store_and_source) {
    const Result result = Run(With(Plus({"ask", "--model", kModel, "--question", "One day, Tim",
                                         "--question", "The dog", "--max-tokens", "30", "--json"},
                                        store_and_source)));
    EXPECT_EQ(result.status, 0) << result.err;
    if (result.status != 0) return Json();
    Json ids = Json::array();
    const Json report = result.json<Json>();
    for (const Json& answer : report.at("answers")) ids.push_back(answer.at("ids"));
    return ids;
  }
  Result Contexts(const Arguments& action, const Arguments& store) {
    return Run(Plus(Plus({"contexts"}, action), store));
  }
  static Arguments DaemonFlags(const std::string& endpoint, const std::string& data_dir) {
    return {INFLLM_MEMSTORE, "--listen", endpoint, "--ram-bytes", "12MiB", "--data-dir", data_dir};
  }
};

TEST_F(ContextsCliTest, AContextAnswersAsTheTextDoes) {
  const std::string text = dir_.Write("text", StoryText(60));
  const Json expected = Ask({"--text", text});
  const Arguments store = {"--data-dir", dir_.file("data")};
  const Result first = Run(Ingest(store, "a", text));
  ASSERT_EQ(first.status, 0) << first.err;
  EXPECT_THAT(first.out, StartsWith("committed "));
  EXPECT_EQ(Ask(Plus({"--context", "a"}, store)), expected);
  const Result again = Run(Ingest(store, "a", text));
  EXPECT_EQ(again.status, 0) << again.err;
  EXPECT_THAT(again.out, AllOf(HasSubstr("\"a\" holds all"), HasSubstr("already")));

  // Over a daemon that has the same directory, which then another takes over.
  for (int run = 0; run < 2; ++run) {
    const std::string endpoint = "unix:" + dir_.file("store");
    Subprocess daemon(DaemonFlags(endpoint, dir_.file("data")));
    ASSERT_TRUE(daemon.WaitForOutput("listening")) << daemon.err();
    EXPECT_EQ(Ask({"--context", "a", "--memstore", endpoint}), expected);
    const Result busy = Contexts({"list"}, store);
    EXPECT_EQ(busy.status, 1);
    EXPECT_THAT(busy.err, HasSubstr("in use by another store"));
    daemon.Signal(SIGKILL);
    daemon.Wait();
  }
}

TEST_F(ContextsCliTest, ALongerTextGoesOnWhereTheContextEnds) {
  const std::string begin = StoryText(30), whole = StoryText(60);
  const std::string text = dir_.Write("whole", whole);
  const Json expected = Ask({"--text", text});
  const Arguments store = {"--data-dir", dir_.file("data")};
  const Result first = Run(Ingest(store, "a", dir_.Write("begin", begin)));
  ASSERT_EQ(first.status, 0) << first.err;
  const Result second = Run(Plus(Ingest(store, "a", text), {"--json"}));
  ASSERT_EQ(second.status, 0) << second.err;
  EXPECT_GT(second.json<Json>().at("cached_tokens"), 500);
  EXPECT_EQ(second.json<Json>().at("cached_tokens").get<int64_t>() % 32, 0) << "a whole exec block";
  EXPECT_EQ(Ask(Plus({"--context", "a"}, store)), expected);

  const Result other = Run(Ingest(store, "a", dir_.Write("other", "Once there was a cat.")));
  EXPECT_EQ(other.status, 1);
  EXPECT_THAT(other.err, AllOf(HasSubstr("\"a\" holds another text: from token"),
                               HasSubstr("contexts delete")));
  EXPECT_EQ(Ask(Plus({"--context", "a"}, store)), expected);
}

TEST_F(ContextsCliTest, ATextThatBeginsLikeAContextIsReadFromThereOn) {
  const std::string begin = StoryText(40);
  const std::string text = dir_.Write("text", begin + " Then the cat said something else.");
  const Json expected = Ask({"--text", text});
  const Arguments store = {"--data-dir", dir_.file("data")};
  ASSERT_EQ(Run(Ingest(store, "a", dir_.Write("begin", begin))).status, 0);
  const Result asked = Run(With(Plus({"ask", "--model", kModel, "--question", "One day, Tim",
                                      "--max-tokens", "30", "--text", text},
                                     store)));
  EXPECT_EQ(asked.status, 0) << asked.err;
  EXPECT_THAT(asked.err, HasSubstr("context \"a\" begins with "));
  EXPECT_THAT(asked.out, HasSubstr(" were committed"));
  EXPECT_EQ(Ask(Plus({"--text", text}, store)), expected);

  const Json second = Run(Plus(Ingest(store, "b", text), {"--json"})).json<Json>();
  EXPECT_GT(second.at("cached_tokens"), 500);
  EXPECT_EQ(Ask(Plus({"--context", "b"}, store)), expected);
  const Json again = Run(Plus(Ingest(store, "c", text), {"--json"})).json<Json>();
  EXPECT_EQ(again.at("cached_tokens").get<int64_t>(),
            again.at("text_tokens").get<int64_t>() / 32 * 32);
  EXPECT_EQ(Ask(Plus({"--context", "c"}, store)), expected);
  // Other settings, other keys and values.
  const Json other = Run(Plus(Ingest(store, "d", text), {"--json", "--far-bias=-1"})).json<Json>();
  EXPECT_EQ(other.at("cached_tokens"), 0);
}

TEST_F(ContextsCliTest, SeveralContextsAreAskedTogether) {
  const Arguments store = {"--data-dir", dir_.file("data")};
  const std::string a = dir_.Write("a", StoryText(40)), b = dir_.Write("b", "The dog was big.");
  ASSERT_EQ(Run(Ingest(store, "a", a)).status, 0);
  ASSERT_EQ(Run(Ingest(store, "b", b)).status, 0);
  const Json alone = Ask(Plus({"--context", "b"}, store));
  EXPECT_EQ(Ask(Plus({"--text", b}, store)), alone);
  const Json together = Ask(Plus({"--context", "a", "--context", "b"}, store));
  EXPECT_NE(together, alone) << "what is in a is seen";
  // Its short text has no block of its own: to read it again is the same.
  EXPECT_EQ(Ask(Plus({"--context", "b", "--context", "a"}, store)),
            Ask(Plus({"--context", "a"}, store)));
  EXPECT_NE(Ask(Plus({"--context", "a", "--text", b}, store)), alone);

  const Result twice = Run(With(Plus(
      {"ask", "--model", kModel, "--question", "x", "--context", "a", "--context", "a"}, store)));
  EXPECT_EQ(twice.status, 1);
  EXPECT_THAT(twice.err, HasSubstr("\"a\" is given twice"));
}

TEST_F(ContextsCliTest, ContextsAreListedShownForkedAndDeleted) {
  const std::string text = dir_.Write("text", StoryText(20));
  const Arguments store = {"--data-dir", dir_.file("data")};
  EXPECT_THAT(Contexts({"list"}, store).err, HasSubstr("no memory store in "));
  ASSERT_EQ(Run(Ingest(store, "a", text)).status, 0);
  EXPECT_EQ(Contexts({"fork", "a", "b c"}, store).status, 0);
  EXPECT_THAT(Contexts({"list"}, store).out,
              AllOf(HasSubstr("TOKENS"), HasSubstr(" a\n"), HasSubstr(" b c\n")));
  const Json list = Contexts({"list", "--json"}, store).json<Json>();
  ASSERT_EQ(list.size(), 2u);
  const Json shown = Contexts({"show", "b c", "--json"}, store).json<Json>();
  EXPECT_EQ(shown, list[1]);
  EXPECT_EQ(shown.at("tokens"), list[0].at("tokens"));
  EXPECT_EQ(shown.at("base"), list[0].at("id"));
  EXPECT_THAT(shown.at("recipe").get<std::string>(), HasSubstr("n-local=64"));
  EXPECT_THAT(Contexts({"show", "a"}, store).out, HasSubstr("stored_bytes"));
  const Json expected = Ask(Plus({"--context", "a"}, store));
  EXPECT_THAT(Contexts({"delete", "a"}, store).out, HasSubstr("deleted \"a\""));
  EXPECT_EQ(Ask(Plus({"--context", "b c"}, store)), expected) << "it keeps what both shared";

  for (const Arguments& action : {Arguments{"show", "a"}, {"delete", "a"}, {"fork", "a", "d"}}) {
    const Result missing = Contexts(action, store);
    EXPECT_EQ(missing.status, 1);
    EXPECT_THAT(missing.err, HasSubstr("no context \"a\" is committed"));
  }
  const Result taken = Contexts({"fork", "b c", "b c"}, store);
  EXPECT_EQ(taken.status, 1);
  EXPECT_THAT(taken.err, HasSubstr("\"b c\""));
}

TEST_F(ContextsCliTest, WhatCannotBeIsExplained) {
  const std::string text = dir_.Write("text", StoryText(20));
  const auto fails = [&](const Arguments& arguments, const char* why) {
    const Result result = Run(arguments);
    EXPECT_EQ(result.status, 1);
    EXPECT_THAT(result.err, HasSubstr(why));
  };
  const Arguments store = {"--data-dir", dir_.file("data")};
  fails(Ingest({}, "a", text), "--data-dir");
  fails(Ingest(store, "a\nb", text), "control characters");
  fails(Ingest(Plus(store, {"--memstore", "unix:/nowhere"}), "a", text), "both given");
  fails(Plus(Ingest(store, "a", text), {"--policy", "lm-infinite"}), "infllm");
  fails({"contexts", "list"}, "--memstore");
  const Arguments ask = With({"ask", "--model", kModel, "--question", "x"});
  fails(ask, "give a --text, or the --context");
  fails(Plus(ask, {"--text", text, "--context", "a", "--evidence", "Once"}), "without --context");
  fails(Plus(ask, Plus({"--context", "a"}, store)), "no context \"a\" is committed");
  fails(Plus(ask, {"--context", "a"}), "--data-dir");
  ASSERT_EQ(Run(Ingest(store, "a", text)).status, 0);
  const auto replaced = [](Arguments arguments, const std::string& flag, const std::string& by) {
    *std::ranges::find(arguments, flag) = by;
    return arguments;
  };
  const Arguments open = Plus(Plus(ask, {"--context", "a"}), store);
  fails(replaced(open, "--top-k=4", "--top-k=3"), "top-k=4");
  fails(replaced(open, "--dtype=f32", "--dtype=bf16"), "dtype");
  fails(replaced(Ingest(store, "a", text), "--top-k=4", "--top-k=3"), "top-k=4");

  const std::string endpoint = "unix:" + dir_.file("store");
  Subprocess daemon({INFLLM_MEMSTORE, "--listen", endpoint});
  ASSERT_TRUE(daemon.WaitForOutput("listening")) << daemon.err();
  fails(Ingest({"--memstore", endpoint}, "a", text), "--data-dir");
  fails({"contexts", "list", "--memstore", endpoint}, "--data-dir");
}

// Two readers of a daemon on TCP, by certificate: same names, each its own.
TEST_F(ContextsCliTest, TenantsHaveContextsOfTheirOwn) {
  const ::infllm::testing::TestCa ca(dir_.file("ca"));
  ca.Issue("server", "", "IP:127.0.0.1");
  ca.Issue("a", "", "URI:spiffe://test/a");
  ca.Issue("b", "", "URI:spiffe://test/b");
  Subprocess daemon(Plus(DaemonFlags("127.0.0.1:0", dir_.file("data")),
                         {"--tls-cert", ca.path("server.pem"), "--tls-key", ca.path("server.key"),
                          "--tls-client-ca", ca.ca()}));
  ASSERT_TRUE(daemon.WaitForOutput("RAM tier")) << daemon.err();
  const std::string out = daemon.out();
  const size_t begin = out.find("127.0.0.1:");
  const std::string endpoint = out.substr(begin, out.find(' ', begin) - begin);
  const auto of = [&](const std::string& who) {
    return Arguments{
        "--memstore",          endpoint,    "--tls-ca",           ca.ca(), "--tls-cert",
        ca.path(who + ".pem"), "--tls-key", ca.path(who + ".key")};
  };
  const std::string text = dir_.Write("text", StoryText(20)),
                    other = dir_.Write("other", StoryText(9));
  const Result first = Run(Ingest(of("a"), "name", text));
  ASSERT_EQ(first.status, 0) << first.err;
  const Result none = Contexts({"show", "name"}, of("b"));
  EXPECT_EQ(none.status, 1);
  EXPECT_THAT(none.err, HasSubstr("no context \"name\" is committed"));
  const Result second = Run(Ingest(of("b"), "name", other));
  ASSERT_EQ(second.status, 0) << second.err;
  EXPECT_EQ(Contexts({"delete", "name"}, of("b")).status, 0);
  EXPECT_EQ(Ask(Plus({"--context", "name"}, of("a"))), Ask({"--text", text}));
  const Result nobody = Contexts({"list"}, {"--memstore", endpoint, "--tls-ca", ca.ca()});
  EXPECT_EQ(nobody.status, 1);
}

// Reader and daemon are killed at random; what was committed stays, and in the end all is as if
// nothing had happened. INFLLM_KILLS sets how often.
TEST_F(ContextsCliTest, KillsLoseNothing) {
  const char* const asked = std::getenv("INFLLM_KILLS");
  const int kills = asked != nullptr ? std::atoi(asked) : 5;
  const std::string text = dir_.Write("text", StoryText(600));
  const Json expected = Ask({"--text", text});
  const std::string endpoint = "unix:" + dir_.file("store"), data = dir_.file("data");
  const Arguments store = {"--memstore", endpoint};
  const Arguments ingest = Plus(Ingest(store, "a", text), {"--commit-tokens", "1024"});
  std::mt19937 random(20240217);
  int64_t committed = 0;
  auto daemon = std::make_unique<Subprocess>(DaemonFlags(endpoint, data));
  ASSERT_TRUE(daemon->WaitForOutput("listening")) << daemon->err();
  for (int kill = 0; kill < kills; ++kill) {
    Subprocess reader(Plus({INFLLM_CLI}, ingest));
    // When to strike is what the test is about.
    std::this_thread::sleep_for(std::chrono::milliseconds(random() % 400));
    if (random() % 3 != 0) reader.Signal(SIGKILL);
    if (random() % 2 == 0) {
      daemon->Signal(SIGKILL);
      daemon->Wait();
      daemon = std::make_unique<Subprocess>(DaemonFlags(endpoint, data));
      ASSERT_TRUE(daemon->WaitForOutput("listening")) << daemon->err();
    }
    reader.Signal(SIGKILL);
    reader.Wait();
    const Result shown = Contexts({"show", "a", "--json"}, store);
    if (committed == 0 && shown.status != 0) continue;  // nothing yet
    ASSERT_EQ(shown.status, 0) << shown.err;
    ASSERT_GE(shown.json<Json>().at("tokens"), committed);
    committed = shown.json<Json>().at("tokens");
    ASSERT_EQ(Ask({"--context", "a", "--memstore", endpoint}).size(), 2u);
  }
  const Result last = Run(ingest);
  ASSERT_EQ(last.status, 0) << last.err;
  EXPECT_EQ(Ask({"--context", "a", "--memstore", endpoint}), expected);
  EXPECT_EQ(Contexts({"list", "--json"}, store).json<Json>().size(), 1u);
  EXPECT_EQ(Contexts({"delete", "a"}, store).status, 0);
  EXPECT_EQ(Contexts({"list", "--json"}, store).json<Json>().size(), 0u);
}

}  // namespace
}  // namespace infllm
