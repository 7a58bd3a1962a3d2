#include "services/eval/run/endpoint_subject.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "kernels/core/status_macros.h"
#include "services/eval/report/text.h"
#include "services/eval/run/http_client.h"
#include "worker/model/json_depth.h"

namespace infllm::services {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::json;

constexpr int kMostTries = 6;
constexpr std::chrono::seconds kFirstWait{1}, kLongestWait{60};
constexpr size_t kExcerptCharacters = 300;
constexpr double kBytesPerToken = 3.5;

// Sleeps; CANCELLED if *cancel becomes true.
absl::Status Wait(std::chrono::seconds time, const std::atomic<bool>* cancel) {
  constexpr std::chrono::milliseconds kPoll{50};
  const Clock::time_point end = Clock::now() + time;
  while (Clock::now() < end) {
    if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) {
      return absl::CancelledError("interrupted");
    }
    std::this_thread::sleep_for(std::min<Clock::duration>(kPoll, end - Clock::now()));
  }
  return absl::OkStatus();
}

class EndpointSubject final : public Subject {
 public:
  EndpointSubject(EndpointOptions options, HttpUrl url)
      : options_(std::move(options)), url_(std::move(url)) {}

  absl::Status FindModel() {
    if (!options_.model.empty()) return absl::OkStatus();
    INFLLM_ASSIGN_OR_RETURN(const Json models, Call({.target = "/v1/models"}, nullptr));
    const Json name = models.value(Json::json_pointer("/data/0/id"), Json());
    if (!name.is_string()) {
      return absl::DataLossError(
          absl::StrCat(options_.url, "/v1/models names no model; give one by --endpoint-model"));
    }
    options_.model = name.get<std::string>();
    return absl::OkStatus();
  }

  int64_t CountTokens(std::string_view text) const override {
    if (options_.count_tokens) return options_.count_tokens(text);
    return static_cast<int64_t>(static_cast<double>(text.size()) / kBytesPerToken);
  }
  std::optional<std::string> CannotRead(int64_t) const override { return std::nullopt; }

  absl::Status Ask(std::span<const Sample> samples, const SubjectEvents& events,
                   const std::atomic<bool>* cancel) override {
    std::vector<int64_t> tokens;  // of each sample's text
    int64_t total = 0, done = 0;
    for (const Sample& sample : samples) {
      tokens.push_back(CountTokens(sample.text));
      total += tokens.back() * static_cast<int64_t>(sample.questions.size());
    }
    for (size_t i = 0; i < samples.size(); ++i) {
      const size_t questions = samples[i].questions.size();
      for (size_t q = 0; q < questions; ++q) {
        const absl::StatusOr<Answer> answer =
            Complete(samples[i], samples[i].questions[q], tokens[i], cancel);
        if (absl::IsResourceExhausted(answer.status()) && events.on_error) {
          done += tokens[i] * static_cast<int64_t>(questions - q);
          events.on_error(i, answer.status());
          break;
        }
        INFLLM_RETURN_IF_ERROR(answer.status());
        done += tokens[i];
        if (events.on_progress) events.on_progress(done, total);
        if (events.on_answer) INFLLM_RETURN_IF_ERROR(events.on_answer(i, q, *answer));
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<Reading> Perplexity(std::string_view, int64_t,
                                     const std::function<void(int64_t, double)>&,
                                     const std::function<void(int64_t, int64_t)>&,
                                     const std::atomic<bool>*) override {
    return absl::UnimplementedError(
        "a server's completions API does not tell the likelihood of a text");
  }

 private:
  absl::StatusOr<Answer> Complete(const Sample& sample, const Question& question,
                                  int64_t text_tokens, const std::atomic<bool>* cancel) {
    const Json body = {{"model", options_.model},
                       {"prompt", sample.text + question.prompt},
                       {"max_tokens", sample.max_new_tokens},
                       {"temperature", 0}};
    const Clock::time_point start = Clock::now();
    INFLLM_ASSIGN_OR_RETURN(
        const Json json, Call({.target = "/v1/completions",
                               .body = body.dump(-1, ' ', false, Json::error_handler_t::replace)},
                              cancel));
    const Json text = json.value(Json::json_pointer("/choices/0/text"), Json());
    if (!text.is_string()) {
      return absl::DataLossError(
          absl::StrCat("the answer of ", options_.url, "/v1/completions has no choices[0].text: ",
                       Excerpt(json.dump(-1, ' ', false, Json::error_handler_t::replace))));
    }
    Answer answer{.output = text.get<std::string>(), .text_tokens = text_tokens};
    answer.seconds = std::chrono::duration<double>(Clock::now() - start).count();
    const Json used = json.value(Json::json_pointer("/usage/prompt_tokens"), Json());
    if (used.is_number_unsigned()) answer.text_tokens = used.get<int64_t>();
    return answer;
  }

  // The JSON object that the server answers.
  absl::StatusOr<Json> Call(HttpRequest request, const std::atomic<bool>* cancel) {
    request.bearer = options_.api_key;
    std::chrono::seconds wait = kFirstWait;
    for (int tries = 1;; ++tries) {
      INFLLM_ASSIGN_OR_RETURN(const HttpResponse response,
                              SendHttp(url_, request, options_.timeout, cancel));
      const std::string what = absl::StrCat(options_.url, request.target, ": status ",
                                            response.status, ": ", Excerpt(response.body));
      if (response.status == 200) {
        if (const absl::Status depth = worker::CheckJsonDepth(response.body); !depth.ok()) {
          return absl::DataLossError(
              absl::StrCat(options_.url, request.target, ": ", depth.message()));
        }
        Json json = Json::parse(response.body, nullptr, /*allow_exceptions=*/false);
        if (json.is_object()) return json;
        return absl::DataLossError(absl::StrCat(what, ": this is not a JSON object"));
      }
      if (response.status != 429 && response.status != 503) {
        return TooLong(response) ? absl::ResourceExhaustedError(what)
                                 : absl::FailedPreconditionError(what);
      }
      if (tries == kMostTries) {
        return absl::UnavailableError(absl::StrCat(what, " (tried ", tries, " times)"));
      }
      INFLLM_RETURN_IF_ERROR(
          Wait(std::min(response.retry_after.value_or(wait), kLongestWait), cancel));
      wait *= 2;
    }
  }

  // Servers have no status of their own for it.
  static bool TooLong(const HttpResponse& response) {
    return response.status == 413 ||
           (response.status == 400 && (absl::StrContains(response.body, "context length") ||
                                       absl::StrContains(response.body, "context_length") ||
                                       absl::StrContains(response.body, "context size") ||
                                       absl::StrContains(response.body, "context window")));
  }
  static std::string Excerpt(const std::string& text) {
    std::string line = absl::StrReplaceAll(Shorten(text, kExcerptCharacters), {{"\n", " "}});
    return line.empty() ? "no text" : line;
  }

  EndpointOptions options_;
  const HttpUrl url_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Subject>> NewEndpointSubject(EndpointOptions options) {
  while (options.url.ends_with('/')) options.url.pop_back();
  options.url = std::string(absl::StripSuffix(options.url, "/v1"));
  INFLLM_ASSIGN_OR_RETURN(HttpUrl url, ParseHttpUrl(options.url));
  auto subject = std::make_unique<EndpointSubject>(std::move(options), std::move(url));
  INFLLM_RETURN_IF_ERROR(subject->FindModel());
  return subject;
}

}  // namespace infllm::services
