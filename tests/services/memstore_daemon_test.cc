// The real infllm-memstore in a process of its own: how it starts, what it answers, how it ends.
#include <fcntl.h>
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/sync_stream.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "infllm/v1/memory_store.grpc.pb.h"
#include "services/memstore/remote_store.h"
#include "services/memstore/wire.h"
#include "tests/services/fake_retry_clock.h"
#include "tests/services/raw_client.h"
#include "tests/support/scoped_env.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

extern char** environ;

namespace infllm::services {
namespace {

using ::infllm::testing::CallRaw;
using ::infllm::testing::FakeRetryClock;
using ::infllm::testing::kServing;
using ::infllm::testing::ScopedEnv;
using ::infllm::testing::StatusIs;
using ::infllm::testing::TempDir;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;
using ::testing::StartsWith;

constexpr memstore::Geometry kGeometry = {.layers = 1,
                                          .q_heads = 2,
                                          .kv_heads = 2,
                                          .head_dim = 64,
                                          .block_tokens = 64,
                                          .dtype = kernels::DType::kF32};

// Back to back, as blocks of kGeometry.
std::vector<std::span<const std::byte>> Split(std::span<const std::byte> payloads) {
  std::vector<std::span<const std::byte>> blocks;
  for (size_t begin = 0; begin < payloads.size(); begin += kGeometry.payload_bytes()) {
    blocks.push_back(payloads.subspan(begin, kGeometry.payload_bytes()));
  }
  return blocks;
}

// One run of the daemon. Killed, if it still runs, when the object goes.
class Daemon {
 public:
  explicit Daemon(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), INFLLM_MEMSTORE_BINARY);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    int out[2], err[2];
    EXPECT_EQ(::pipe2(out, O_CLOEXEC), 0);
    EXPECT_EQ(::pipe2(err, O_CLOEXEC), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    posix_spawn_file_actions_adddup2(&actions, err[1], 2);
    EXPECT_EQ(::posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    ::close(out[1]);
    ::close(err[1]);
    out_ = ::fdopen(out[0], "r");
    err_ = ::fdopen(err[0], "r");
  }
  ~Daemon() {
    if (pid_ > 0) {
      Signal(SIGKILL);
      Wait();
    }
    CloseOutput();
    std::fclose(err_);
  }

  // From now on what it prints is lost.
  void CloseOutput() {
    if (out_ != nullptr) std::fclose(out_);
    out_ = nullptr;
  }

  // The next line of its output; empty if it has ended.
  std::string ReadLine() {
    std::string line;
    for (int c; (c = std::fgetc(out_)) != EOF && c != '\n';) line += static_cast<char>(c);
    return line;
  }
  // The rest of its output, and its errors, up to its end.
  std::string Output() { return ReadAll(out_); }
  std::string Errors() { return ReadAll(err_); }
  void Signal(int signal) { ::kill(pid_, signal); }
  // Its exit code, or minus the signal that ended it.
  int Wait() {
    int status = 0;
    EXPECT_EQ(::waitpid(pid_, &status, 0), pid_);
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  // Waits until it serves; the address that it says it listens on.
  std::string Ready() {
    const std::string line = ReadLine();
    constexpr std::string_view kPrefix = "infllm-memstore: listening on ";
    EXPECT_THAT(line, StartsWith(kPrefix));
    if (!line.starts_with(kPrefix)) return "";
    return line.substr(kPrefix.size(), line.find(' ', kPrefix.size()) - kPrefix.size());
  }

 private:
  static std::string ReadAll(FILE* file) {
    std::string text;
    for (int c; (c = std::fgetc(file)) != EOF;) text += static_cast<char>(c);
    return text;
  }

  pid_t pid_ = 0;
  FILE* out_ = nullptr;
  FILE* err_ = nullptr;
};

std::string CheckHealth(const std::string& target, std::string_view service) {
  return ::infllm::testing::CheckHealth(
      grpc::CreateChannel(target, grpc::InsecureChannelCredentials()), service);
}

// grpc.reflection.v1alpha: ServerReflectionRequest{list_services = 7}.
std::string ListServices(const std::string& target) {
  const auto answer = CallRaw(grpc::CreateChannel(target, grpc::InsecureChannelCredentials()),
                              "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                              std::string_view("\x3a\x00", 2));
  EXPECT_TRUE(answer.status.ok());
  EXPECT_THAT(answer.messages, SizeIs(1));
  return answer.messages.empty() ? "" : answer.messages[0];
}

class MemstoreDaemonTest : public ::testing::Test {
 protected:
  std::string Socket(std::string_view name) const { return "unix:" + dir_.file(name); }
  const TempDir dir_;
};

TEST_F(MemstoreDaemonTest, ServesOverTcpWithHealthAndReflectionAndEndsOnSigterm) {
  Daemon daemon(
      {"--listen", "127.0.0.1:0", "--insecure", "--ram-bytes", "64MiB", "--threads", "1"});
  const std::string target = daemon.Ready();
  ASSERT_THAT(target, StartsWith("127.0.0.1:"));
  EXPECT_NE(target, "127.0.0.1:0");
  EXPECT_EQ(CheckHealth(target, ""), kServing);
  EXPECT_EQ(CheckHealth(target, "infllm.v1.MemoryStore"), kServing);
  EXPECT_THAT(CheckHealth(target, "other"), StartsWith("error"));
  EXPECT_THAT(ListServices(target),
              AllOf(HasSubstr("infllm.v1.MemoryStore"), HasSubstr("grpc.health.v1.Health")));
  ASSERT_OK_AND_ASSIGN(const auto store, ConnectRemoteStore(target, {}));
  ASSERT_OK_AND_ASSIGN(const memstore::StoreStats stats, store->Stats());
  EXPECT_EQ(stats.ram_capacity_bytes, 64 << 20);
  daemon.Signal(SIGTERM);
  EXPECT_EQ(daemon.Wait(), 0);
  EXPECT_THAT(daemon.Errors(),
              AllOf(HasSubstr("infllm-memstore: warning: --insecure: whoever reaches " + target +
                              " may read and delete what is here\n"),
                    Not(HasSubstr(" error "))));
}

TEST_F(MemstoreDaemonTest, KeepsBlocksOnDisk) {
  const std::string cold = dir_.file("cold");
  Daemon daemon({"--listen", Socket("s"), "--ram-bytes", "1MiB", "--data-dir", cold});
  ASSERT_EQ(daemon.Ready(), Socket("s"));
  ASSERT_OK_AND_ASSIGN(const auto store, ConnectRemoteStore(Socket("s"), {}));
  const memstore::ContextId id = memstore::NewContextId();
  ASSERT_OK(store->Create(id, {.geometry = kGeometry}));
  // 8 MiB in all: eight times the RAM tier.
  constexpr int64_t kBlocks = 128;
  std::vector<std::byte> payloads(kBlocks * kGeometry.payload_bytes());
  for (size_t i = 0; i < payloads.size(); ++i) payloads[i] = std::byte((i * 2654435761u) >> 24);
  ASSERT_OK(store->Append(id, 0, 0, Split(payloads)));
  for (int64_t block = 0; block < kBlocks; ++block) {
    ASSERT_OK_AND_ASSIGN(const auto handles, store->Fetch(id, 0, {&block, 1}));
    EXPECT_TRUE(std::ranges::equal(
        handles[0].payload(),
        std::span(payloads).subspan(static_cast<size_t>(block) * kGeometry.payload_bytes(),
                                    kGeometry.payload_bytes())));
  }
  ASSERT_OK_AND_ASSIGN(const memstore::StoreStats stats, store->Stats());
  EXPECT_GT(stats.cold_hits, 0);
  EXPECT_LE(stats.ram_bytes, 1 << 20);
  EXPECT_TRUE(std::filesystem::exists(cold + "/INFLLM_MEMSTORE"));
  daemon.Signal(SIGINT);
  EXPECT_EQ(daemon.Wait(), 0);
  EXPECT_FALSE(std::filesystem::exists(dir_.file("s")));
}

TEST_F(MemstoreDaemonTest, HangupAndALostReaderLeaveNothingBehind) {
  ::signal(SIGHUP, SIG_DFL);  // inherited by the daemon; this test may run under nohup
  const std::string cold = dir_.file("cold");
  std::filesystem::create_directory(cold);
  const ScopedEnv tmpdir("TMPDIR", cold);
  Daemon daemon({"--listen", Socket("s"), "--ram-bytes", "1MiB"});
  ASSERT_EQ(daemon.Ready(), Socket("s"));
  daemon.CloseOutput();
  daemon.Signal(SIGHUP);
  EXPECT_EQ(daemon.Wait(), 0);
  EXPECT_TRUE(std::filesystem::is_empty(cold));
  EXPECT_FALSE(std::filesystem::exists(dir_.file("s")));
}

TEST_F(MemstoreDaemonTest, IgnoresTheHangupThatNohupIgnores) {
  const auto before = ::signal(SIGHUP, SIG_IGN);
  Daemon daemon({"--listen", Socket("s"), "--ram-bytes", "1MiB"});
  ::signal(SIGHUP, before);
  ASSERT_EQ(daemon.Ready(), Socket("s"));
  daemon.Signal(SIGHUP);
  EXPECT_OK(ConnectRemoteStore(Socket("s"), {}).status());
  daemon.Signal(SIGTERM);
  EXPECT_THAT(daemon.ReadLine(), HasSubstr("stopping"));
  EXPECT_EQ(daemon.Wait(), 0);
}

TEST_F(MemstoreDaemonTest, SecondSignalDoesNotWaitForRunningCalls) {
  Daemon daemon({"--listen", Socket("s"), "--ram-bytes", "64MiB"});
  ASSERT_EQ(daemon.Ready(), Socket("s"));
  ASSERT_OK_AND_ASSIGN(const auto store, ConnectRemoteStore(Socket("s"), {}));
  const memstore::ContextId id = memstore::NewContextId();
  ASSERT_OK(store->Create(id, {.geometry = kGeometry}));
  constexpr int kBlocks = 512;  // 32 MiB
  const std::vector<std::byte> payloads(kBlocks * kGeometry.payload_bytes());
  ASSERT_OK(store->Append(id, 0, 0, Split(payloads)));
  // A call that cannot end: nobody reads its answer.
  infllm::v1::FetchRequest request;
  request.set_context(wire::ToProto(id));
  for (int i = 0; i < kBlocks; ++i) request.add_blocks(i);
  for (int i = 0; i < kBlocks; ++i) request.add_blocks(i);
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  const auto stub = infllm::v1::MemoryStore::NewStub(
      grpc::CreateCustomChannel(Socket("s"), grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  const auto reader = stub->Fetch(&context, request);
  infllm::v1::FetchResponse response;
  ASSERT_TRUE(reader->Read(&response));

  daemon.Signal(SIGTERM);
  EXPECT_THAT(daemon.ReadLine(), HasSubstr("stopping"));
  daemon.Signal(SIGTERM);
  EXPECT_EQ(daemon.Wait(), -SIGTERM);
  context.TryCancel();
  reader->Finish();
}

TEST_F(MemstoreDaemonTest, KilledDaemonIsUnavailableAndItsSocketIsTakenOver) {
  Daemon first({"--listen", Socket("s"), "--ram-bytes", "1MiB"});
  ASSERT_EQ(first.Ready(), Socket("s"));
  FakeRetryClock clock;
  ASSERT_OK_AND_ASSIGN(const auto store, ConnectRemoteStore(Socket("s"), {.clock = &clock}));
  const memstore::ContextId id = memstore::NewContextId();
  ASSERT_OK(store->Create(id, {.geometry = kGeometry}));
  first.Signal(SIGKILL);
  EXPECT_EQ(first.Wait(), -SIGKILL);
  EXPECT_THAT(store->Append(id, 0, 0, {}), StatusIs(absl::StatusCode::kUnavailable));
  ASSERT_TRUE(std::filesystem::exists(dir_.file("s")));

  Daemon second({"--listen", Socket("s"), "--ram-bytes", "1MiB"});
  ASSERT_EQ(second.Ready(), Socket("s"));
  // It starts empty: contexts of the first are unknown, not somebody else's.
  ASSERT_OK_AND_ASSIGN(const auto again, ConnectRemoteStore(Socket("s"), {}));
  EXPECT_THAT(again->Drop(id), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(MemstoreDaemonTest, RefusesAnAddressInUse) {
  for (const std::string& listen : {Socket("s"), std::string("127.0.0.1:0")}) {
    Daemon first({"--listen", listen, "--insecure", "--ram-bytes", "1MiB"});
    const std::string address = first.Ready();
    Daemon second({"--listen", address, "--insecure", "--ram-bytes", "1MiB"});
    EXPECT_EQ(second.Wait(), 1);
    EXPECT_THAT(second.Errors(), AllOf(StartsWith("infllm-memstore: cannot listen on " + address),
                                       HasSubstr("in use")));
    EXPECT_EQ(CheckHealth(address, ""), kServing) << "the first is left alone";
  }
}

TEST_F(MemstoreDaemonTest, RefusesADataDirectoryInUse) {
  Daemon first({"--listen", Socket("a"), "--data-dir", dir_.path()});
  ASSERT_EQ(first.Ready(), Socket("a"));
  Daemon second({"--listen", Socket("b"), "--data-dir", dir_.path()});
  EXPECT_EQ(second.Wait(), 1);
  EXPECT_THAT(second.Errors(), HasSubstr("is in use by another store"));
}

TEST_F(MemstoreDaemonTest, ListensOnASocketOfItsUsersOwnUnlessTold) {
  const ScopedEnv runtime("XDG_RUNTIME_DIR", dir_.path());
  const std::string directory = dir_.file("infllm");
  {
    Daemon daemon({"--ram-bytes", "1MiB"});
    ASSERT_EQ(daemon.Ready(), "unix:" + directory + "/memstore.sock");
    struct stat info;
    ASSERT_EQ(::stat(directory.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 07777, 0700u);
    ASSERT_EQ(::stat((directory + "/memstore.sock").c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 077, 0u);
    EXPECT_OK(ConnectRemoteStore("unix:" + directory + "/memstore.sock", {}).status());
    daemon.Signal(SIGTERM);
    EXPECT_EQ(daemon.Wait(), 0);
    EXPECT_THAT(daemon.Errors(), Not(HasSubstr("warning")));
  }
  std::filesystem::permissions(directory, std::filesystem::perms(0755));
  Daemon daemon({"--ram-bytes", "1MiB"});
  EXPECT_EQ(daemon.Wait(), 1);
  EXPECT_THAT(daemon.Errors(), HasSubstr(directory + " must be a directory that belongs to this"));
}

TEST_F(MemstoreDaemonTest, TokensSayWhoACallerIsAndAreInNoOutput) {
  const std::string token = "a-token-of-32-characters-exactly";
  const std::string tokens = dir_.Write("tokens", "tenant " + token + "\n");
  const std::string own = dir_.Write("token", token);
  for (const std::string& file : {tokens, own}) {
    std::filesystem::permissions(file, std::filesystem::perms(0600));
  }
  Daemon daemon({"--listen", Socket("s"), "--ram-bytes", "1MiB", "--tokens-file", tokens});
  ASSERT_EQ(daemon.Ready(), Socket("s"));
  EXPECT_EQ(CheckHealth(Socket("s"), ""), kServing) << "whoever asks";
  EXPECT_THAT(ConnectRemoteStore(Socket("s"), {}),
              StatusIs(absl::StatusCode::kUnauthenticated, HasSubstr("wants a token")));
  EXPECT_OK(ConnectRemoteStore(Socket("s"), {.security = {.token_file = own}}).status());
  daemon.Signal(SIGTERM);
  EXPECT_EQ(daemon.Wait(), 0);
  EXPECT_EQ((daemon.Output() + daemon.Errors()).find(token), std::string::npos);
}

TEST_F(MemstoreDaemonTest, ExplainsBadFlags) {
  const std::pair<std::vector<std::string>, const char*> cases[] = {
      {{"--ram-bytes", "lots"}, "\"lots\" is not a size"},
      {{"--ram-bytes", "0"}, "ram-bytes is 0"},
      {{"--listen", "7077"}, "\"7077\" is not an address"},
      {{"--threads", "-1"}, "--threads"},
      {{"--listen", "127.0.0.1:0"}, "--insecure allows it"},
      {{"--listen", "127.0.0.1:0", "--tls-cert", "x"}, "--tls-cert is given without --tls-key"},
      {{"--nonsense"}, "--nonsense"},
  };
  for (const auto& [arguments, text] : cases) {
    SCOPED_TRACE(text);
    Daemon daemon(arguments);
    EXPECT_EQ(daemon.Wait(), 2);
    EXPECT_THAT(daemon.Errors(), HasSubstr(text));
  }
}

TEST_F(MemstoreDaemonTest, HelpStatesUnitsAndDefaults) {
  Daemon daemon({"--help"});
  EXPECT_THAT(daemon.Output(),
              AllOf(HasSubstr("memstore.sock"), HasSubstr("--tokens-file"), HasSubstr("4 GiB"),
                    HasSubstr("512MiB"), HasSubstr("--data-dir"), HasSubstr("--threads")));
  EXPECT_EQ(daemon.Wait(), 0);
}

}  // namespace
}  // namespace infllm::services
