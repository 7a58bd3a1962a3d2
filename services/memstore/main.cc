// infllm-memstore: keeps the blocks of contexts for workers in other processes.
#include <pthread.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kernels/backend.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/thread_pool.h"
#include "services/common/byte_size.h"
#include "services/common/endpoint.h"
#include "services/common/malloc_tuning.h"
#include "services/common/store_factory.h"
#include "services/memstore/check.h"
#include "services/memstore/daemon_events.h"
#include "services/memstore/log.h"
#include "services/memstore/metrics.h"
#include "services/memstore/server.h"

namespace infllm::services {
namespace {

constexpr int kExitError = 1;
constexpr int kExitUsage = 2;
// How long running calls may take to end when the daemon is asked to.
constexpr absl::Duration kDrain = absl::Seconds(10);

struct Options {
  Endpoint listen = DefaultEndpoint();
  ServerSecurity security;
  StoreOptions store;
  int lease_seconds = 10;
  int threads = 0;
  std::optional<Endpoint> metrics_listen;  // none: no metrics
  LogFormat log_format = LogFormat::kText;
  LogLevel log_level = LogLevel::kInfo;
  bool check = false;
};

// A CLI11 check that parses, too, so that a bad value is refused by the flag's name.
template <typename T, typename Parse>
CLI::Validator Into(T& out, Parse parse) {
  return CLI::Validator(
      [&out, parse](std::string& text) {
        auto parsed = parse(text);
        if (!parsed.ok()) return std::string(parsed.status().message());
        out = *std::move(parsed);
        return std::string();
      },
      "");
}

// Of Into: the value that goes by a name.
template <typename T>
auto OneOf(std::map<std::string, T> values) {
  return [values = std::move(values)](const std::string& text) -> absl::StatusOr<T> {
    if (const auto found = values.find(text); found != values.end()) return found->second;
    std::string names;
    for (const auto& [name, value] : values)
      absl::StrAppend(&names, names.empty() ? "" : ", ", name);
    return absl::InvalidArgumentError(absl::StrCat("is \"", text, "\", must be one of ", names));
  };
}

void AddSecurityFlags(CLI::App& app, ServerSecurity& security) {
  const auto file = [&](const char* name, std::string& path, const char* help) {
    app.add_option(name, path, help)->type_name("FILE")->group("Who may connect");
  };
  file(
      "--tls-cert", security.tls_cert,
      "PEM certificate of this daemon, with those that lead to its CA; read again when it changes");
  file("--tls-key", security.tls_key, "PEM key of --tls-cert; nobody else may read it");
  file("--tls-client-ca", security.tls_client_ca,
       "PEM certificates of the CAs that sign those of clients. A client without one is refused; "
       "the "
       "URI in it, else the DNS name, else the common name is its tenant");
  file("--tokens-file", security.tokens_file,
       "Lines of a tenant and its token (- is the default tenant); read again when it changes. A "
       "client without a token is refused");
  app.add_flag(
         "--insecure", security.insecure,
         "Listen on TCP although clients need not prove who they are, or show their tokens to "
         "the network")
      ->group("Who may connect");
}

void AddFlags(CLI::App& app, Options& options) {
  // The texts live as long as the flags only show them; the values are in `options`.
  static std::string listen, ram_bytes, metrics_listen, log_format, log_level;
  listen = options.listen.ToString();
  ram_bytes = FormatByteSize(options.store.ram_bytes);
  app.add_option("--listen", listen,
                 "Where to listen: unix:/path, which only this user can connect to, host:port or "
                 "[ipv6]:port; port 0 picks a free one")
      ->type_name("ADDRESS")
      ->check(Into(options.listen, ParseEndpoint))
      ->capture_default_str();
  AddSecurityFlags(app, options.security);
  app.add_option(
         "--ram-bytes", ram_bytes,
         "Memory for blocks, for the representatives of all, and for what is kept of each; "
         "bytes, or with a unit as in 512MiB or 4GiB. Calls in flight and the disk's buffers "
         "come on top")
      ->type_name("SIZE")
      ->check(Into(options.store.ram_bytes, ParseByteSize))
      ->capture_default_str();
  app.add_option("--data-dir", options.store.data_dir,
                 "Directory of its own for committed contexts, which outlive the daemon, and for "
                 "the blocks that RAM has no room for. Default: nothing can be committed, and "
                 "blocks go to a fresh directory below $TMPDIR or /var/tmp, removed at exit")
      ->type_name("DIR");
  app.add_flag(
      "--check", options.check,
      "Serve nothing, but read all that is committed in --data-dir, check it, and say what "
      "is damaged; changes nothing. Exit status: 0 all is whole, 1 there is damage, 2 it "
      "cannot be checked");
  app.add_option("--lease-seconds", options.lease_seconds,
                 "How long contexts that are not committed outlive the client that made them, in "
                 "seconds")
      ->type_name("N")
      ->check(CLI::Range(2, 86400))
      ->capture_default_str();
  app.add_option("--metrics-listen", metrics_listen,
                 "Where to serve metrics for Prometheus, without credentials, at "
                 "http://ADDRESS/metrics: host:port or [ipv6]:port. Default: nowhere")
      ->type_name("ADDRESS")
      ->check(Into(options.metrics_listen, ParseEndpoint));
  app.add_option("--log-format", log_format,
                 "Form of the log's lines, which go to stderr: text or json")
      ->type_name("FORMAT")
      ->check(Into(options.log_format,
                   OneOf<LogFormat>({{"text", LogFormat::kText}, {"json", LogFormat::kJson}})))
      ->default_str("text");
  app.add_option("--log-level", log_level,
                 "What is logged: info: start, stop, commits, dropped contexts and every failed "
                 "call, as often as the rate limit allows; warning: calls that failed for want of "
                 "room or of the disk; error: damage and defects")
      ->type_name("LEVEL")
      ->check(Into(options.log_level, OneOf<LogLevel>({{"info", LogLevel::kInfo},
                                                       {"warning", LogLevel::kWarning},
                                                       {"error", LogLevel::kError}})))
      ->default_str("info");
  app.add_option("--threads", options.threads,
                 "Threads that score blocks; 0: all vCPUs up to two, else one less")
      ->type_name("N")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
}

sigset_t StopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  struct sigaction hangup {};
  ::sigaction(SIGHUP, nullptr, &hangup);
  if (hangup.sa_handler != SIG_IGN) sigaddset(&signals, SIGHUP);  // ignored: nohup
  return signals;
}

absl::Status Serve(const Options& options) {
  // Blocked here and so in every thread to come: they are waited for below.
  const sigset_t signals = StopSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  // Nobody need read what we print, nor stay connected.
  std::signal(SIGPIPE, SIG_IGN);

  Log log(options.log_format, options.log_level, stderr);
  std::optional<Metrics> metrics;
  if (options.metrics_listen.has_value()) metrics.emplace(INFLLM_VERSION);
  DaemonEvents events(log, metrics.has_value() ? &*metrics : nullptr);
  kernels::ThreadPool pool(options.threads);
  const std::unique_ptr<kernels::Backend> backend = kernels::NewCpuBackend(pool);
  INFLLM_ASSIGN_OR_RETURN(const std::unique_ptr<memstore::MemoryStore> store,
                          OpenStore(options.store, *backend));
  INFLLM_ASSIGN_OR_RETURN(
      const std::unique_ptr<MemstoreServer> server,
      MemstoreServer::Start(options.listen, *store, absl::Seconds(options.lease_seconds),
                            options.security, &events));
  if (options.security.insecure && !options.listen.is_unix()) {
    std::cerr << "infllm-memstore: warning: --insecure: whoever reaches "
              << server->endpoint().ToString() << " may read and delete what is here\n";
  }
  std::unique_ptr<MetricsServer> metrics_server;
  if (metrics.has_value()) {
    INFLLM_ASSIGN_OR_RETURN(metrics_server,
                            MetricsServer::Start(*options.metrics_listen, *metrics, *store,
                                                 [&] { return server->leases(); }));
  }
  log.Write(
      LogLevel::kInfo, "start",
      {{"version", INFLLM_VERSION},
       {"pid", int64_t{::getpid()}},
       {"listen", server->endpoint().ToString()},
       {"metrics_listen", metrics_server == nullptr ? "" : metrics_server->endpoint().ToString()},
       {"ram_bytes", options.store.ram_bytes},
       {"data_dir", options.store.data_dir},
       {"lease_seconds", int64_t{options.lease_seconds}},
       {"threads", int64_t{options.threads}}});
  std::cout << "infllm-memstore: listening on " << server->endpoint().ToString() << " (RAM tier "
            << FormatByteSize(options.store.ram_bytes) << ")" << std::endl;

  int signal = 0;
  sigwait(&signals, &signal);
  std::cout << "infllm-memstore: stopping, waiting up to " << absl::ToInt64Seconds(kDrain)
            << " s for running calls" << std::endl;
  log.Write(LogLevel::kInfo, "drain",
            {{"signal", ::strsignal(signal)}, {"patience_seconds", absl::ToInt64Seconds(kDrain)}});
  // From here on a second signal ends the process at once.
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  const absl::Time began = absl::Now();
  server->Shutdown(kDrain);
  log.Write(LogLevel::kInfo, "stop", {{"seconds", absl::ToDoubleSeconds(absl::Now() - began)}});
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  TuneMallocForMessages();
  CLI::App app(
      "Keeps blocks of keys and values for infllm workers: in RAM, and on disk beyond that. Serves "
      "infllm.v1.MemoryStore with gRPC health and reflection. Committed contexts outlive it, the "
      "others end with it; SIGTERM, SIGHUP or ^C drains running calls first, a second one ends "
      "at once.",
      "infllm-memstore");
  Options options;
  AddFlags(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (app.exit(error) != 0) return kExitUsage;
    if (std::cout.flush()) return 0;
    std::cerr << "infllm-memstore: the help cannot be written to stdout\n";
    return kExitError;
  }
  options.store.memory_bytes = options.store.ram_bytes;
  if (options.check) return CheckDataDir(options.store.data_dir);
  const absl::Status status = Serve(options);
  if (!status.ok()) {
    std::cerr << "infllm-memstore: " << status.message() << "\n";
    return status.code() == absl::StatusCode::kInvalidArgument ? kExitUsage : kExitError;
  }
  return 0;
}

}  // namespace
}  // namespace infllm::services

int main(int argc, char** argv) { return infllm::services::Main(argc, argv); }
