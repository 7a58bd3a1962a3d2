#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "services/eval/run/subject.h"

namespace infllm::services {

struct EndpointOptions {
  std::string url;                     // "http://host:port", with or without "/v1" at its end
  std::string model;                   // of the requests; empty: the first that the server names
  std::string api_key;                 // sent as a bearer token; empty: none
  std::chrono::seconds timeout{3600};  // of one request: reading a long text takes its time
  // Tokens of a text, if a tokenizer of the server's model is at hand; else bytes / 3.5.
  std::function<int64_t(std::string_view)> count_tokens;
};

// A server with the completions API of OpenAI. Each question is a request of its own, text and all,
// so nothing is read once for several; on_read is never called, as a server does not tell reading
// from answering. Busy servers (429, 503) are asked again a few times, after the time they name.
//   RESOURCE_EXHAUSTED   a text is too long for the server
//   UNAVAILABLE          it stays busy
//   FAILED_PRECONDITION  the server refuses; the text has its status and the begin of what it says
//   DATA_LOSS            an answer is not what the API says
//   and the errors of ParseHttpUrl() and SendHttp()
absl::StatusOr<std::unique_ptr<Subject>> NewEndpointSubject(EndpointOptions options);

}  // namespace infllm::services
