// Where a daemon listens and a client connects.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace infllm::services {

// Either a Unix socket (`path` is not empty) or a TCP host and port.
struct Endpoint {
  std::string path;
  std::string host;  // a name or an address, IPv6 without brackets
  uint16_t port = 0;

  bool is_unix() const { return !path.empty(); }
  // As ParseEndpoint() reads it: "unix:/run/x.sock", "127.0.0.1:7077", "[::1]:7077".
  std::string ToString() const;
};

// INVALID_ARGUMENT shows what is accepted: `host:port`, `[ipv6]:port` or `unix:/path`. Port 0 is
// accepted: a listener then picks a free one.
absl::StatusOr<Endpoint> ParseEndpoint(std::string_view text);

// Where a daemon listens unless it is told: the Unix socket memstore.sock in a directory infllm of
// the user's own, which is below $XDG_RUNTIME_DIR, else /run for root, else /tmp (infllm-UID).
Endpoint DefaultEndpoint();

// Makes sure that `endpoint` can be listened on, so that the reason can be told if not. A Unix
// socket that nobody listens on any more is removed; the directory of DefaultEndpoint() is made,
// for its user alone.
//   ALREADY_EXISTS       somebody listens there
//   FAILED_PRECONDITION  the path exists and is no socket, or the directory of DefaultEndpoint() is
//                        not its user's alone
//   INVALID_ARGUMENT     the host does not resolve
//   PERMISSION_DENIED, NOT_FOUND (the path's directory), UNAVAILABLE: by errno
absl::Status PrepareToListen(const Endpoint& endpoint);

}  // namespace infllm::services
