#include "services/eval/run/http_client.h"

#include <algorithm>
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "services/common/endpoint.h"

namespace infllm::services {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kPoll{50};  // how often the cancel flag is looked at

// One exchange, each step started by the end of the one before.
class Exchange {
 public:
  Exchange(const HttpUrl& url, const HttpRequest& request)
      : url_(url), resolver_(io_), stream_(io_) {
    request_.version(11);
    request_.method(request.body.empty() ? http::verb::get : http::verb::post);
    request_.target(url.path + request.target);
    const bool ipv6 = url.host.find(':') != std::string::npos;
    request_.set(http::field::host,
                 absl::StrCat(ipv6 ? "[" : "", url.host, ipv6 ? "]:" : ":", url.port));
    request_.set(http::field::user_agent, "infllm");
    request_.set(http::field::accept, "application/json");
    request_.set(http::field::connection, "close");
    if (!request.body.empty()) request_.set(http::field::content_type, "application/json");
    if (!request.bearer.empty()) {
      request_.set(http::field::authorization, absl::StrCat("Bearer ", request.bearer));
    }
    request_.body() = request.body;
    request_.prepare_payload();
    parser_.body_limit(kMaxHttpBodyBytes);
  }

  absl::StatusOr<HttpResponse> Run(std::chrono::milliseconds timeout,
                                   const std::atomic<bool>* cancel) {
    const Clock::time_point deadline = Clock::now() + timeout;
    Resolve();
    while (!done_) {
      io_.run_one_for(kPoll);
      if (done_) break;
      if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) {
        Abandon();
        return absl::CancelledError("interrupted");
      }
      if (Clock::now() >= deadline) {
        Abandon();
        return absl::DeadlineExceededError(
            absl::StrCat(Place(), " did not answer within ",
                         std::chrono::duration<double>(timeout).count(), " s (", step_, ")"));
      }
    }
    if (error_) return Failure();
    HttpResponse response{.status = static_cast<int>(parser_.get().result_int()),
                          .body = parser_.get().body(),
                          .retry_after = {}};
    const auto retry = parser_.get().find(http::field::retry_after);
    int64_t seconds = 0;
    if (retry != parser_.get().end() &&
        absl::SimpleAtoi(absl::string_view(retry->value().data(), retry->value().size()),
                         &seconds) &&
        seconds >= 0) {
      response.retry_after = std::chrono::seconds(seconds);
    }
    return response;
  }

 private:
  void Resolve() {
    step_ = "looking up the host";
    resolver_.async_resolve(url_.host, url_.port,
                            [this](error_code error, tcp::resolver::results_type found) {
                              if (!Failed(error)) Connect(found);
                            });
  }
  void Connect(const tcp::resolver::results_type& found) {
    step_ = "connecting";
    stream_.async_connect(found, [this](error_code error, const tcp::endpoint&) {
      if (!Failed(error)) Write();
    });
  }
  void Write() {
    step_ = "sending the request";
    http::async_write(stream_, request_, [this](error_code error, size_t) {
      // A server may refuse a long body before it has read it all: what it says is in the answer.
      if (error && error != asio::error::operation_aborted) write_error_ = error;
      Read();
    });
  }
  void Read() {
    step_ = "waiting for the answer";
    http::async_read(stream_, buffer_, parser_, [this](error_code error, size_t) {
      error_ = error && write_error_ ? write_error_ : error;
      done_ = true;
    });
  }

  bool Failed(error_code error) {
    if (!error) return false;
    error_ = error;
    done_ = true;
    return true;
  }
  void Abandon() {
    resolver_.cancel();
    stream_.close();
    io_.run();
  }
  std::string Place() const { return absl::StrCat("http://", url_.host, ":", url_.port); }

  absl::Status Failure() const {
    if (error_ == http::error::body_limit) {
      return absl::DataLossError(
          absl::StrCat("the answer of ", Place(), " is longer than ", kMaxHttpBodyBytes, " bytes"));
    }
    if (error_ == http::error::partial_message || error_ == http::error::end_of_stream) {
      return absl::UnavailableError(
          absl::StrCat(Place(), " closed the connection before its answer was complete"));
    }
    const std::string text = absl::StrCat(Place(), ": ", error_.message(), " (", step_, ")");
    if (error_.category() == make_error_code(http::error::bad_version).category()) {
      return absl::DataLossError(absl::StrCat(text, ": this is not an answer in HTTP"));
    }
    return absl::UnavailableError(text);
  }

  const HttpUrl& url_;
  asio::io_context io_;
  tcp::resolver resolver_;
  beast::tcp_stream stream_;
  http::request<http::string_body> request_;
  beast::flat_buffer buffer_;
  http::response_parser<http::string_body> parser_;
  error_code error_, write_error_;
  const char* step_ = "";
  bool done_ = false;
};

}  // namespace

absl::StatusOr<HttpUrl> ParseHttpUrl(std::string_view url) {
  const std::string text(url);
  const auto invalid = [&](const std::string& why) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" is not http://host[:port][/path]", why));
  };
  if (absl::AsciiStrToLower(text.substr(0, 8)) == "https://") {
    return absl::UnimplementedError(
        absl::StrCat("\"", text,
                     "\": https is not supported; give the plain http address of the server, or "
                     "of a proxy or tunnel to it"));
  }
  if (absl::AsciiStrToLower(text.substr(0, 7)) != "http://") return invalid("");
  for (const char c : text) {
    if (absl::ascii_isspace(static_cast<unsigned char>(c)) ||
        absl::ascii_iscntrl(static_cast<unsigned char>(c))) {
      return invalid(": it has a space or control character");
    }
  }
  const size_t slash = std::min(text.find('/', 7), text.size());
  std::string authority = text.substr(7, slash - 7);
  HttpUrl result{.host = "", .path = text.substr(slash)};
  if (result.path.find_first_of("?#") != std::string::npos) {
    return invalid(": it has a query or a fragment");
  }
  while (result.path.ends_with('/')) result.path.pop_back();
  if (authority.find('@') != std::string::npos) {
    return invalid(": give the key in OPENAI_API_KEY, not in the address");
  }
  const size_t bracket = authority.find(']');
  if (authority.find(':', bracket == std::string::npos ? 0 : bracket) == std::string::npos) {
    absl::StrAppend(&authority, ":80");
  }
  const absl::StatusOr<Endpoint> endpoint = ParseEndpoint(authority);
  if (!endpoint.ok() || endpoint->is_unix()) return invalid("");
  result.host = endpoint->host;
  result.port = absl::StrCat(endpoint->port);
  return result;
}

absl::StatusOr<HttpResponse> SendHttp(const HttpUrl& url, const HttpRequest& request,
                                      std::chrono::milliseconds timeout,
                                      const std::atomic<bool>* cancel) {
  return Exchange(url, request).Run(timeout, cancel);
}

}  // namespace infllm::services
