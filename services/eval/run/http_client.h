// Plain HTTP/1.1 requests, one connection each.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace infllm::services {

struct HttpUrl {
  std::string host;  // a name or an address, IPv6 without brackets
  std::string port = "80";
  std::string path;  // without a slash at its end
};
// Of "http://host[:port][/path]".
//   UNIMPLEMENTED     https
//   INVALID_ARGUMENT  anything else; the text shows what is accepted
absl::StatusOr<HttpUrl> ParseHttpUrl(std::string_view url);

struct HttpRequest {
  std::string target;  // follows the URL's path
  std::string body;    // JSON, sent by POST; empty: a GET
  std::string bearer;  // of the Authorization header; empty: none
};
struct HttpResponse {
  int status = 0;
  std::string body;
  std::optional<std::chrono::seconds> retry_after;  // if the server asks so, in seconds
};
inline constexpr int64_t kMaxHttpBodyBytes = int64_t{16} << 20;

// Sends the request and waits for the whole answer, whatever its status.
//   UNAVAILABLE        no connection, or it ended before the answer did
//   DEADLINE_EXCEEDED  the answer was not complete after `timeout`
//   DATA_LOSS          what came is not HTTP, or longer than kMaxHttpBodyBytes
//   CANCELLED          *cancel became true
absl::StatusOr<HttpResponse> SendHttp(const HttpUrl& url, const HttpRequest& request,
                                      std::chrono::milliseconds timeout,
                                      const std::atomic<bool>* cancel);

}  // namespace infllm::services
