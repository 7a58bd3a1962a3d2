#include "services/common/endpoint.h"

#include <netdb.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"

namespace infllm::services {
namespace {

constexpr std::string_view kUnixPrefix = "unix:";
// One byte of sun_path is the terminator.
constexpr size_t kMaxUnixPath = sizeof(sockaddr_un{}.sun_path) - 1;

absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() {
    if (fd_ >= 0) ::close(fd_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

absl::Status ListenError(const Endpoint& endpoint, int error) {
  const std::string text =
      absl::StrCat("cannot listen on ", endpoint.ToString(), ": ", std::strerror(error));
  switch (error) {
    case EADDRINUSE:
      return absl::AlreadyExistsError(
          absl::StrCat("cannot listen on ", endpoint.ToString(),
                       ": the address is in use; stop the process that has it or choose another"));
    case EACCES:
    case EPERM:
      return absl::PermissionDeniedError(text);
    case ENOENT:
      return absl::NotFoundError(text);
    default:
      return absl::UnavailableError(text);
  }
}

std::string DirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

// In /tmp anybody may have made it.
absl::Status MakeOwnDirectory(const Endpoint& endpoint) {
  const std::string directory = DirectoryOf(endpoint.path);
  if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) {
    return ListenError(endpoint, errno);
  }
  struct stat info;
  if (::lstat(directory.c_str(), &info) != 0) return ListenError(endpoint, errno);
  if (S_ISDIR(info.st_mode) && info.st_uid == ::geteuid() && (info.st_mode & 077) == 0) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat("cannot listen on ", endpoint.ToString(), ": ", directory,
                   " must be a directory that belongs to this user, with mode 0700; or choose "
                   "another --listen"));
}

absl::Status PrepareUnix(const Endpoint& endpoint) {
  if (endpoint.path == DefaultEndpoint().path) {
    INFLLM_RETURN_IF_ERROR(MakeOwnDirectory(endpoint));
  }
  struct stat info;
  if (::lstat(endpoint.path.c_str(), &info) != 0) {
    // The socket is made by bind(); only its directory must be there.
    if (errno != ENOENT) return ListenError(endpoint, errno);
    const std::string directory = DirectoryOf(endpoint.path);
    if (::access(directory.c_str(), W_OK | X_OK) != 0) return ListenError(endpoint, errno);
    return absl::OkStatus();
  }
  if (!S_ISSOCK(info.st_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot listen on ", endpoint.ToString(),
                     ": the file exists and is not a socket; choose another path"));
  }
  const Socket probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (probe.fd() < 0) return ListenError(endpoint, errno);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, endpoint.path.data(), endpoint.path.size());
  // ECONNREFUSED: nobody listens. EAGAIN (a full queue) and success: somebody does.
  if (::connect(probe.fd(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 ||
      errno == EAGAIN) {
    return ListenError(endpoint, EADDRINUSE);
  }
  if (errno != ECONNREFUSED) return ListenError(endpoint, errno);
  if (::unlink(endpoint.path.c_str()) != 0) return ListenError(endpoint, errno);
  return absl::OkStatus();
}

absl::Status PrepareTcp(const Endpoint& endpoint) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* raw = nullptr;
  const std::string port = std::to_string(endpoint.port);
  const int resolved = ::getaddrinfo(endpoint.host.c_str(), port.c_str(), &hints, &raw);
  if (resolved != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot listen on ", endpoint.ToString(), ": ", ::gai_strerror(resolved)));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> addresses(raw, ::freeaddrinfo);
  for (const addrinfo* address = raw; address != nullptr; address = address->ai_next) {
    const Socket probe(::socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (probe.fd() < 0) continue;  // a family that this machine does not have
    const int on = 1;  // as the server does: connections of an earlier process may linger
    ::setsockopt(probe.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (::bind(probe.fd(), address->ai_addr, address->ai_addrlen) != 0 ||
        ::listen(probe.fd(), 1) != 0) {
      return ListenError(endpoint, errno);
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string Endpoint::ToString() const {
  if (is_unix()) return absl::StrCat(ToAbsl(kUnixPrefix), path);
  const bool ipv6 = host.find(':') != std::string::npos;
  return absl::StrCat(ipv6 ? "[" : "", host, ipv6 ? "]" : "", ":", port);
}

absl::StatusOr<Endpoint> ParseEndpoint(std::string_view text) {
  Endpoint endpoint;
  if (text.starts_with(kUnixPrefix)) {
    endpoint.path = text.substr(kUnixPrefix.size());
    if (endpoint.path.empty() || endpoint.path.size() > kMaxUnixPath ||
        endpoint.path.find('\0') != std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", ToAbsl(text), "\": the path of a Unix socket has ",
                       endpoint.path.size(), " bytes; 1 to ", kMaxUnixPath, " are possible"));
    }
    return endpoint;
  }
  const absl::Status malformed =
      absl::InvalidArgumentError(absl::StrCat("\"", ToAbsl(text),
                                              "\" is not an address: give host:port, [ipv6]:port "
                                              "(port 0 to 65535) or unix:/path"));
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return malformed;
  std::string_view host = text.substr(0, colon);
  const std::string_view port = text.substr(colon + 1);
  if (host.starts_with('[') && host.ends_with(']')) {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string_view::npos) {
    return malformed;
  }
  if (host.empty() || host.find_first_of("[]/ \t\n\0") != std::string_view::npos) return malformed;
  const auto [rest, error] = std::from_chars(port.data(), port.data() + port.size(), endpoint.port);
  if (error != std::errc() || rest != port.data() + port.size()) return malformed;
  endpoint.host = host;
  return endpoint;
}

Endpoint DefaultEndpoint() {
  const char* const runtime = std::getenv("XDG_RUNTIME_DIR");
  std::string directory;
  if (runtime != nullptr && *runtime == '/') {
    directory = absl::StrCat(runtime, "/infllm");
  } else if (::geteuid() == 0) {
    directory = "/run/infllm";
  } else {
    directory = absl::StrCat("/tmp/infllm-", ::geteuid());
  }
  return {.path = directory + "/memstore.sock"};
}

absl::Status PrepareToListen(const Endpoint& endpoint) {
  return endpoint.is_unix() ? PrepareUnix(endpoint) : PrepareTcp(endpoint);
}

}  // namespace infllm::services
