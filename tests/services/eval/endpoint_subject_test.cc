#include "services/eval/run/endpoint_subject.h"

#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <deque>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "kernels/core/status_macros.h"
#include "services/eval/run/http_client.h"
#include "tests/support/status_matchers.h"

namespace infllm::services {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using ::infllm::testing::StatusIs;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using Json = nlohmann::json;

std::string Http(int status, const std::string& body, const std::string& headers = "") {
  return "HTTP/1.1 " + std::to_string(status) + " X\r\nContent-Type: application/json\r\n" +
         headers + "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}
std::string Completion(const std::string& text) {
  return Http(200,
              Json{{"choices", {{{"text", text}}}}, {"usage", {{"prompt_tokens", 77}}}}.dump());
}

// Answers each connection with the next of the scripted replies, byte by byte as they are, and
// closes it. A connection without a reply is held open until the server ends.
class ScriptedServer {
 public:
  explicit ScriptedServer(std::deque<std::string> replies)
      : replies_(std::move(replies)),
        acceptor_(io_, {asio::ip::make_address("127.0.0.1"), 0}),
        endpoint_(acceptor_.local_endpoint()),
        thread_([this] { Serve(); }) {}
  ~ScriptedServer() {
    stopping_ = true;
    boost::system::error_code ignored;
    asio::ip::tcp::socket wake(io_);
    wake.connect(endpoint_, ignored);
    thread_.join();
  }

  std::string url() const { return "http://127.0.0.1:" + std::to_string(endpoint_.port()); }
  using Request = http::request<http::string_body>;
  std::vector<Request> requests() {
    const std::lock_guard lock(mutex_);
    return requests_;
  }

 private:
  void Serve() {
    std::vector<asio::ip::tcp::socket> held;
    while (true) {
      boost::system::error_code error;
      asio::ip::tcp::socket socket(io_);
      acceptor_.accept(socket, error);
      if (stopping_ || error) return;
      boost::beast::flat_buffer buffer;
      Request request;
      http::read(socket, buffer, request, error);
      if (error) continue;
      {
        const std::lock_guard lock(mutex_);
        requests_.push_back(std::move(request));
      }
      if (replies_.empty()) {
        held.push_back(std::move(socket));
        continue;
      }
      asio::write(socket, asio::buffer(replies_.front()), error);
      replies_.pop_front();
      socket.shutdown(asio::ip::tcp::socket::shutdown_both, error);
    }
  }

  std::deque<std::string> replies_;
  asio::io_context io_;
  asio::ip::tcp::acceptor acceptor_;
  const asio::ip::tcp::endpoint endpoint_;
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::vector<Request> requests_;
  std::thread thread_;
};

std::vector<Sample> OneSample() {
  return {{.id = "s",
           .text = "The pass key is 5. ",
           .questions = {{.prompt = "What is it?"}, {.prompt = "Again \xFF?"}},
           .max_new_tokens = 12}};
}

class EndpointSubjectTest : public ::testing::Test {
 protected:
  // What the subject answers to the sample's questions, or its error.
  absl::StatusOr<std::vector<Answer>> Ask(ScriptedServer& server, EndpointOptions options = {},
                                          const std::atomic<bool>* cancel = nullptr) {
    options.url = server.url() + "/v1/";
    if (options.model.empty()) options.model = "m";
    INFLLM_ASSIGN_OR_RETURN(const auto subject, NewEndpointSubject(options));
    std::vector<Answer> answers;
    const SubjectEvents events{.on_read = {},
                               .on_answer =
                                   [&](size_t, size_t, const Answer& answer) {
                                     answers.push_back(answer);
                                     return absl::OkStatus();
                                   },
                               .on_progress = {}};
    INFLLM_RETURN_IF_ERROR(subject->Ask(OneSample(), events, cancel));
    return answers;
  }
};

TEST_F(EndpointSubjectTest, AsksEachQuestionWithTheWholeText) {
  ScriptedServer server({Completion(" 5"), Completion(" six")});
  ASSERT_OK_AND_ASSIGN(const auto answers, Ask(server, {.api_key = "secret"}));
  ASSERT_THAT(answers, SizeIs(2));
  EXPECT_EQ(answers[0].output, " 5");
  EXPECT_EQ(answers[0].text_tokens, 77);
  EXPECT_FALSE(answers[0].retrieval.has_value());
  const auto requests = server.requests();
  ASSERT_THAT(requests, SizeIs(2));
  EXPECT_EQ(requests[0].method(), http::verb::post);
  EXPECT_EQ(requests[0].target(), "/v1/completions");
  EXPECT_EQ(requests[0][http::field::authorization], "Bearer secret");
  EXPECT_EQ(Json::parse(requests[0].body()), (Json{{"model", "m"},
                                                   {"prompt", "The pass key is 5. What is it?"},
                                                   {"max_tokens", 12},
                                                   {"temperature", 0}}));
  EXPECT_EQ(Json::parse(requests[1].body()).at("prompt"), "The pass key is 5. Again \uFFFD?");
}

TEST_F(EndpointSubjectTest, TheFirstModelOfTheServerIsTaken) {
  ScriptedServer server({Http(200, R"({"data":[{"id":"its-model"},{"id":"other"}]})"),
                         Completion("x"), Completion("y")});
  ASSERT_OK_AND_ASSIGN(const auto subject, NewEndpointSubject({.url = server.url()}));
  ASSERT_OK(subject->Ask(OneSample(), {}, nullptr));
  const auto requests = server.requests();
  EXPECT_EQ(requests[0].method(), http::verb::get);
  EXPECT_EQ(requests[0].target(), "/v1/models");
  EXPECT_EQ(requests[0].count(http::field::authorization), 0u);
  EXPECT_EQ(Json::parse(requests[1].body()).at("model"), "its-model");

  ScriptedServer nameless({Http(200, R"({"data":[]})")});
  EXPECT_THAT(NewEndpointSubject({.url = nameless.url()}),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("--endpoint-model")));
}

TEST_F(EndpointSubjectTest, BusyServersAreAskedAgain) {
  ScriptedServer server({Http(503, "loading", "Retry-After: 0\r\n"),
                         Http(429, "slow down", "Retry-After: 0\r\n"), Completion("a"),
                         Completion("b")});
  ASSERT_OK_AND_ASSIGN(const auto answers, Ask(server));
  EXPECT_THAT(answers, SizeIs(2));
  EXPECT_THAT(server.requests(), SizeIs(4));

  ScriptedServer busy(std::deque<std::string>(9, Http(503, "loading", "Retry-After: 0\r\n")));
  EXPECT_THAT(Ask(busy),
              StatusIs(absl::StatusCode::kUnavailable,
                       AllOf(HasSubstr("503"), HasSubstr("loading"), HasSubstr("tried 6 times"))));
  EXPECT_THAT(busy.requests(), SizeIs(6));
}

TEST_F(EndpointSubjectTest, ACancelEndsTheWait) {
  std::atomic<bool> cancel{true};
  ScriptedServer server({Http(503, "loading", "Retry-After: 1000000\r\n")});
  EXPECT_THAT(Ask(server, {}, &cancel), StatusIs(absl::StatusCode::kCancelled));
  ScriptedServer silent({});
  EXPECT_THAT(Ask(silent, {}, &cancel), StatusIs(absl::StatusCode::kCancelled));
}

TEST_F(EndpointSubjectTest, RefusalsAreShown) {
  ScriptedServer server({Http(400, "{\"error\": \"no\nsuch model\"}")});
  const auto refused = Ask(server);
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kFailedPrecondition,
                                AllOf(HasSubstr("/v1/completions"), HasSubstr("status 400"),
                                      HasSubstr("no such model"), Not(HasSubstr("\n")))));
  ScriptedServer long_text({Http(401, std::string(100000, 'x'))});
  const auto long_refusal = Ask(long_text);
  EXPECT_THAT(long_refusal, StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_LT(long_refusal.status().message().size(), 600u);
  ScriptedServer empty({Http(404, "")});
  EXPECT_THAT(Ask(empty),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("404: no text")));
}

TEST_F(EndpointSubjectTest, TextsTooLongForTheServerAreTold) {
  for (const std::string& reply :
       {Http(400, "This model's maximum context length is 4096 tokens"), Http(413, "too big")}) {
    ScriptedServer server({reply});
    EXPECT_THAT(Ask(server), StatusIs(absl::StatusCode::kResourceExhausted));
  }
}

TEST_F(EndpointSubjectTest, ATextTooLongLeavesTheOtherSamplesToBeAsked) {
  ScriptedServer server({Http(413, "too big"), Completion(" 5"), Completion(" six")});
  ASSERT_OK_AND_ASSIGN(const auto subject, NewEndpointSubject({.url = server.url(), .model = "m"}));
  std::vector<Sample> samples = OneSample();
  samples.push_back(samples[0]);
  std::vector<size_t> failed, answered;
  int64_t last = 0, most = 1;
  const SubjectEvents events{.on_answer =
                                 [&](size_t sample, size_t, const Answer&) {
                                   answered.push_back(sample);
                                   return absl::OkStatus();
                                 },
                             .on_error =
                                 [&](size_t sample, const absl::Status& error) {
                                   failed.push_back(sample);
                                   EXPECT_THAT(error.message(), HasSubstr("too big"));
                                 },
                             .on_progress =
                                 [&](int64_t done, int64_t total) {
                                   last = done;
                                   most = total;
                                 }};
  ASSERT_OK(subject->Ask(samples, events, nullptr));
  EXPECT_THAT(failed, ElementsAre(0));
  EXPECT_THAT(answered, ElementsAre(1, 1));
  EXPECT_EQ(last, most);
}

TEST_F(EndpointSubjectTest, GarbageIsRefused) {
  for (const auto& [reply, code, what] :
       std::vector<std::tuple<std::string, absl::StatusCode, std::string>>{
           {"SSH-2.0-OpenSSH_9.2\r\n", absl::StatusCode::kDataLoss, "not an answer in HTTP"},
           {Http(200, "hello"), absl::StatusCode::kDataLoss, "not a JSON object"},
           {Http(200, "[1]"), absl::StatusCode::kDataLoss, "not a JSON object"},
           {Http(200, std::string(1000000, '[')), absl::StatusCode::kDataLoss, "64 levels"},
           {Http(200, "{}"), absl::StatusCode::kDataLoss, "choices[0].text"},
           {Http(200, R"({"choices":"x"})"), absl::StatusCode::kDataLoss, "choices[0].text"},
           {Http(200, R"({"choices":{"0":{"text":1}}})"), absl::StatusCode::kDataLoss,
            "choices[0].text"},
           {Http(200, R"({"choices":[{"text":null}]})"), absl::StatusCode::kDataLoss,
            "choices[0].text"},
           {Completion("x").substr(0, 100), absl::StatusCode::kUnavailable,
            "before its answer was complete"},
           {"HTTP/1.1 200 OK\r\nContent-", absl::StatusCode::kUnavailable,
            "before its answer was complete"},
           {"", absl::StatusCode::kUnavailable, "before its answer was complete"},
           {"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", absl::StatusCode::kDataLoss,
            "longer than"}}) {
    ScriptedServer server({reply});
    EXPECT_THAT(Ask(server), StatusIs(code, HasSubstr(what))) << reply;
  }
}

TEST_F(EndpointSubjectTest, AServerThatDoesNotAnswerTimesOut) {
  ScriptedServer server({});
  ASSERT_OK_AND_ASSIGN(const HttpUrl url, ParseHttpUrl(server.url()));
  EXPECT_THAT(SendHttp(url, {.target = "/x"}, std::chrono::milliseconds(100), nullptr),
              StatusIs(absl::StatusCode::kDeadlineExceeded,
                       AllOf(HasSubstr("0.1 s"), HasSubstr("waiting for the answer"))));
}

TEST_F(EndpointSubjectTest, NobodyThereIsTold) {
  std::string url;
  {
    ScriptedServer gone({});
    url = gone.url();
  }
  EXPECT_THAT(NewEndpointSubject({.url = url}),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("connecting")));
}

TEST_F(EndpointSubjectTest, TokensAreEstimatedOrCounted) {
  ASSERT_OK_AND_ASSIGN(auto subject, NewEndpointSubject({.url = "http://h", .model = "m"}));
  EXPECT_EQ(subject->CountTokens(std::string(3500, 'x')), 1000);
  EXPECT_EQ(subject->CannotRead(1 << 30), std::nullopt);
  EXPECT_THAT(subject->Perplexity("x", 1, nullptr, nullptr, nullptr),
              StatusIs(absl::StatusCode::kUnimplemented));
  ASSERT_OK_AND_ASSIGN(
      subject,
      NewEndpointSubject(
          {.url = "http://h", .model = "m", .count_tokens = [](std::string_view) { return 3; }}));
  EXPECT_EQ(subject->CountTokens("x"), 3);
}

TEST(ParseHttpUrlTest, HostsPortsAndPaths) {
  const auto parts = [](const char* text) {
    const auto url = ParseHttpUrl(text);
    EXPECT_OK(url);
    return url.ok() ? std::vector<std::string>{url->host, url->port, url->path}
                    : std::vector<std::string>{};
  };
  EXPECT_THAT(parts("http://host"), ElementsAre("host", "80", ""));
  EXPECT_THAT(parts("HTTP://host:8000/"), ElementsAre("host", "8000", ""));
  EXPECT_THAT(parts("http://10.0.0.1:1/base/v1//"), ElementsAre("10.0.0.1", "1", "/base/v1"));
  EXPECT_THAT(parts("http://[::1]:8000/x"), ElementsAre("::1", "8000", "/x"));
  EXPECT_THAT(parts("http://[::1]"), ElementsAre("::1", "80", ""));
  EXPECT_THAT(ParseHttpUrl("https://api.example.com"),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("https is not supported")));
  for (const char* text :
       {"", "host:80", "http://", "http:///x", "http://host:port", "http://host:70000",
        "http://a b", "http://user:key@host", "http://h/x?y", "http://h/#", "ftp://h",
        "http://h\r\nX: y", "http://unix:/run/x"}) {
    EXPECT_THAT(ParseHttpUrl(text), StatusIs(absl::StatusCode::kInvalidArgument)) << text;
  }
}

}  // namespace
}  // namespace infllm::services
