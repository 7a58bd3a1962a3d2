// What an operator sees of the real infllm-memstore: metrics and log.
#include <arpa/inet.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "infllm/v1/memory_store.grpc.pb.h"
#include "nlohmann/json.hpp"
#include "services/memstore/remote_store.h"
#include "services/memstore/wire.h"
#include "tests/support/status_matchers.h"
#include "tests/support/subprocess.h"
#include "tests/support/temp_dir.h"

namespace infllm::services {
namespace {

using ::infllm::testing::StatusIs;
using ::infllm::testing::Subprocess;
using ::infllm::testing::TempDir;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr memstore::Geometry kGeometry = {.layers = 1,
                                          .q_heads = 2,
                                          .kv_heads = 2,
                                          .head_dim = 64,
                                          .block_tokens = 64,
                                          .dtype = kernels::DType::kF32};

// The body of GET /metrics on this port of this machine.
std::string Scrape(const std::string& port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(std::stoi(port)));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  const std::string request = "GET /metrics HTTP/1.0\r\n\r\n";
  EXPECT_EQ(::send(fd, request.data(), request.size(), 0), static_cast<ssize_t>(request.size()));
  std::string answer;
  char buffer[4096];
  for (ssize_t n; (n = ::recv(fd, buffer, sizeof(buffer), 0)) > 0;) answer.append(buffer, n);
  ::close(fd);
  EXPECT_TRUE(absl::StartsWith(answer, "HTTP/1.1 200")) << answer.substr(0, 100);
  const size_t body = answer.find("\r\n\r\n");
  return body == std::string::npos ? "" : answer.substr(body + 4);
}

// Prometheus' text format 0.0.4, as strictly as its parser takes it, and its conventions of names.
class Exposition {
 public:
  explicit Exposition(const std::string& text) {
    EXPECT_TRUE(text.ends_with("\n"));
    for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
      Add(std::string(line));
    }
  }

  // By name and labels.
  const std::map<std::string, double>& samples() const { return samples_; }
  double at(const std::string& sample) const {
    const auto found = samples_.find(sample);
    EXPECT_NE(found, samples_.end()) << sample;
    return found == samples_.end() ? std::numeric_limits<double>::quiet_NaN() : found->second;
  }
  bool IsCounter(const std::string& sample) const {
    const auto found = types_.find(sample.substr(0, sample.find('{')));
    return found != types_.end() && found->second == "counter";
  }

 private:
  void Add(const std::string& line) {
    static const std::regex help("# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)");
    static const std::regex type(
        "# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge|histogram|summary)");
    static const std::regex sample(
        R"re(([a-zA-Z_:][a-zA-Z0-9_:]*)(\{[a-zA-Z_]\w*="[^"\\]*"(,[a-zA-Z_]\w*="[^"\\]*")*\})? (\S+))re");
    std::smatch match;
    if (std::regex_match(line, match, help)) {
      EXPECT_TRUE(helps_.insert(match[1]).second) << line;
    } else if (std::regex_match(line, match, type)) {
      EXPECT_TRUE(types_.emplace(match[1], match[2]).second) << line;
    } else if (std::regex_match(line, match, sample)) {
      const std::string name = match[1];
      const std::string family = FamilyOf(name);
      EXPECT_TRUE(helps_.contains(family)) << "no HELP before " << line;
      ASSERT_TRUE(types_.contains(family)) << "no TYPE before " << line;
      EXPECT_EQ(types_[family] == "counter", name.ends_with("_total")) << line;
      double value = 0;
      EXPECT_TRUE(absl::SimpleAtod(match[4].str(), &value)) << line;
      EXPECT_TRUE(samples_.emplace(name + match[2].str(), value).second) << "twice: " << line;
    } else {
      ADD_FAILURE() << "malformed: " << line;
    }
  }
  std::string FamilyOf(const std::string& name) const {
    for (const char* suffix : {"_bucket", "_sum", "_count"}) {
      if (!name.ends_with(suffix)) continue;
      const std::string family = name.substr(0, name.size() - std::string_view(suffix).size());
      if (types_.contains(family)) return family;
    }
    return name;
  }

  std::set<std::string> helps_;
  std::map<std::string, std::string> types_;
  std::map<std::string, double> samples_;
};

class DaemonWatchTest : public ::testing::Test {
 protected:
  void Start(std::vector<std::string> arguments) {
    std::vector<std::string> argv = {
        INFLLM_MEMSTORE_BINARY, "--listen", target_, "--ram-bytes", "1MiB", "--threads", "1"};
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    daemon_ = std::make_unique<Subprocess>(std::move(argv));
    ASSERT_TRUE(daemon_->WaitForOutput("listening on")) << daemon_->err();
    ASSERT_TRUE(daemon_->WaitForOutput("start")) << daemon_->err();
  }
  void Connect() {
    auto store = ConnectRemoteStore(target_, {});
    ASSERT_OK(store);
    store_ = *std::move(store);
  }
  // What stands behind metrics_listen="127.0.0.1: in the first line of the log.
  std::string MetricsPort() const {
    const std::string log = daemon_->err();
    constexpr std::string_view kBefore = "metrics_listen=\"127.0.0.1:";
    const size_t at = log.find(kBefore) + kBefore.size();
    return log.substr(at, log.find('"', at) - at);
  }
  absl::Status Append(const memstore::ContextId& id, int64_t first, int64_t blocks) {
    const std::vector<std::byte> payload(kGeometry.payload_bytes());
    return store_->Append(id, 0, first,
                          std::vector<std::span<const std::byte>>(blocks, std::span(payload)));
  }

  const TempDir dir_;
  const std::string target_ = "unix:" + dir_.file("s");
  std::unique_ptr<Subprocess> daemon_;
  std::unique_ptr<RemoteStore> store_;
};

TEST_F(DaemonWatchTest, MetricsAreWellFormedAndMoveWithTheWork) {
  ASSERT_NO_FATAL_FAILURE(
      Start({"--metrics-listen", "127.0.0.1:0", "--data-dir", dir_.file("data")}));
  const Exposition before(Scrape(MetricsPort()));
  const auto& service = *infllm::v1::StatsRequest::descriptor()->file()->service(0);
  for (int i = 0; i < service.method_count(); ++i) {
    EXPECT_EQ(before.at(absl::StrCat("infllm_memstore_requests_total{code=\"OK\",method=\"",
                                     service.method(i)->name(), "\"}")),
              0);
  }
  EXPECT_EQ(before.at("infllm_memstore_build_info{version=\"0.1.0\"}"), 1);

  ASSERT_NO_FATAL_FAILURE(Connect());
  const memstore::ContextId id = memstore::NewContextId();
  ASSERT_OK(store_->Create(id, {.geometry = kGeometry}));
  constexpr int64_t kBlocks = 64;  // 4 MiB, four times the RAM tier
  ASSERT_OK(Append(id, 0, kBlocks));
  for (int64_t block = 0; block < kBlocks; ++block) {
    ASSERT_OK(store_->Fetch(id, 0, {&block, 1}).status());
  }
  EXPECT_THAT(store_->Fetch(id, 0, std::vector<int64_t>{kBlocks}),
              StatusIs(absl::StatusCode::kOutOfRange));
  const std::vector<float> representatives(kGeometry.representative_floats());
  ASSERT_OK(store_->Publish(id, 0, 0, representatives));
  const std::vector<float> query(2 * 64);
  const memstore::SelectQuery queries[] = {{.context = id, .query = query, .k = 1},
                                           {.context = id, .query = query, .k = -1}};
  ASSERT_OK_AND_ASSIGN(const auto selections, store_->Select({.layer = 0, .queries = queries}));
  EXPECT_OK(selections[0].status);
  EXPECT_THAT(selections[1].status, StatusIs(absl::StatusCode::kInvalidArgument));

  const Exposition after(Scrape(MetricsPort()));
  const std::string requests = "infllm_memstore_requests_total";
  EXPECT_EQ(after.at(requests + "{code=\"OK\",method=\"Create\"}"), 1);
  EXPECT_EQ(after.at(requests + "{code=\"OK\",method=\"Fetch\"}"), kBlocks);
  EXPECT_EQ(after.at(requests + "{code=\"OUT_OF_RANGE\",method=\"Fetch\"}"), 1);
  const std::string durations = "infllm_memstore_request_duration_seconds";
  EXPECT_EQ(after.at(durations + "_count{code=\"OK\",method=\"Fetch\"}"), kBlocks);
  EXPECT_EQ(after.at(durations + "_bucket{code=\"OK\",method=\"Fetch\",le=\"+Inf\"}"), kBlocks);
  EXPECT_GT(after.at(durations + "_sum{code=\"OK\",method=\"Fetch\"}"), 0);
  EXPECT_EQ(after.at("infllm_memstore_failed_queries_total{code=\"INVALID_ARGUMENT\"}"), 1);
  EXPECT_EQ(after.at("infllm_memstore_contexts"), 1);
  EXPECT_EQ(after.at("infllm_memstore_committed_contexts"), 0);
  EXPECT_EQ(after.at("infllm_memstore_leases"), 1);
  EXPECT_EQ(after.at("infllm_memstore_blocks"), kBlocks);
  const double in_ram = after.at("infllm_memstore_tier_blocks{tier=\"ram\"}");
  const double cold = after.at("infllm_memstore_tier_blocks{tier=\"cold\"}");
  const auto block_bytes = static_cast<double>(kGeometry.payload_bytes());
  EXPECT_GE(in_ram + cold, kBlocks);
  EXPECT_EQ(after.at("infllm_memstore_tier_bytes{tier=\"ram\"}"), in_ram * block_bytes);
  EXPECT_EQ(after.at("infllm_memstore_tier_bytes{tier=\"cold\"}"), cold * block_bytes);
  EXPECT_EQ(after.at("infllm_memstore_ram_capacity_bytes"), 1 << 20);
  EXPECT_EQ(after.at("infllm_memstore_demotions_total"), cold);
  EXPECT_GE(after.at("infllm_memstore_evictions_total"), kBlocks - in_ram);
  EXPECT_GT(after.at("infllm_memstore_hits_total{tier=\"cold\"}"), 0);
  EXPECT_EQ(after.at("infllm_memstore_hits_total{tier=\"ram\"}") +
                after.at("infllm_memstore_hits_total{tier=\"cold\"}"),
            kBlocks + 1);
  EXPECT_EQ(after.at("infllm_memstore_spill_queue_bytes"), (kBlocks - cold) * block_bytes);
  EXPECT_EQ(after.at("infllm_memstore_corrupt_blocks_total"), 0);
  EXPECT_GT(after.at("infllm_memstore_representative_bytes"), 0);
  EXPECT_GT(after.at("infllm_memstore_disk_free_bytes"), 0);
  EXPECT_GT(after.at("process_resident_memory_bytes"), 1 << 20);

  for (const auto& [sample, value] : before.samples()) {
    if (before.IsCounter(sample)) {
      EXPECT_GE(after.at(sample), value) << sample;
    }
  }
  // Nothing that clients choose becomes a label.
  for (const auto& [sample, value] : after.samples()) {
    EXPECT_THAT(sample, Not(HasSubstr(ToString(id))));
  }
}

// Each takes a page in RAM, a header on disk and bookkeeping beside its four bytes.
TEST_F(DaemonWatchTest, TinyBlocksDoNotTakeMoreThanRamBytes) {
  ASSERT_NO_FATAL_FAILURE(Start({"--metrics-listen", "127.0.0.1:0"}));
  ASSERT_NO_FATAL_FAILURE(Connect());
  constexpr memstore::Geometry kTiny = {.layers = 1,
                                        .q_heads = 1,
                                        .kv_heads = 1,
                                        .head_dim = 1,
                                        .block_tokens = 1,
                                        .dtype = kernels::DType::kBF16};
  const memstore::ContextId id = memstore::NewContextId();
  ASSERT_OK(store_->Create(id, {.geometry = kTiny}));
  const double before = Exposition(Scrape(MetricsPort())).at("process_resident_memory_bytes");
  const std::vector<std::byte> payload(kTiny.payload_bytes());
  const std::vector<std::span<const std::byte>> many(100'000, std::span(payload));
  EXPECT_THAT(
      store_->Append(id, 0, 0, many),
      StatusIs(absl::StatusCode::kResourceExhausted,
               AllOf(HasSubstr("of 1048576 bytes of all memory"), HasSubstr("--ram-bytes"))));
  const Exposition after(Scrape(MetricsPort()));
  EXPECT_LE(after.at("infllm_memstore_tier_bytes{tier=\"ram\"}") +
                after.at("infllm_memstore_representative_bytes") +
                after.at("infllm_memstore_bookkeeping_bytes"),
            1 << 20);
  // What RocksDB buffers, and the call, are on top.
  EXPECT_LT(after.at("process_resident_memory_bytes") - before, 32 << 20);
}

TEST_F(DaemonWatchTest, MetricsNeedAPortOfTheirOwn) {
  ASSERT_NO_FATAL_FAILURE(Start({"--metrics-listen", "127.0.0.1:0"}));
  const std::string taken = "127.0.0.1:" + MetricsPort();
  Subprocess second(
      {INFLLM_MEMSTORE_BINARY, "--listen", "unix:" + dir_.file("t"), "--metrics-listen", taken});
  EXPECT_EQ(second.Wait(), 1);
  EXPECT_THAT(second.err(), AllOf(HasSubstr(taken), HasSubstr("in use")));
  Subprocess third({INFLLM_MEMSTORE_BINARY, "--listen", "unix:" + dir_.file("t"),
                    "--metrics-listen", "unix:" + dir_.file("m")});
  EXPECT_EQ(third.Wait(), 2);
  EXPECT_THAT(third.err(), HasSubstr("--metrics-listen"));
}

// The lines of a log in JSON; each must parse.
std::vector<nlohmann::json> Lines(const std::string& log) {
  std::vector<nlohmann::json> lines;
  for (const absl::string_view line : absl::StrSplit(log, '\n', absl::SkipEmpty())) {
    lines.push_back(nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false));
    EXPECT_FALSE(lines.back().is_discarded()) << line;
  }
  return lines;
}

std::vector<nlohmann::json> Events(const std::string& log, const std::string& event) {
  std::vector<nlohmann::json> lines = Lines(log);
  std::erase_if(lines, [&](const nlohmann::json& line) { return line["event"] != event; });
  return lines;
}

TEST_F(DaemonWatchTest, TheLogTellsTheDaemonsLifeAndFindsTheErrorOfAClient) {
  ASSERT_NO_FATAL_FAILURE(
      Start({"--log-format", "json", "--data-dir", dir_.file("data"), "--lease-seconds", "2"}));
  ASSERT_NO_FATAL_FAILURE(Connect());
  const memstore::ContextId id = memstore::NewContextId(), committed = memstore::NewContextId();
  ASSERT_OK(store_->Create(id, {.geometry = kGeometry}));
  ASSERT_OK(Append(id, 0, 1));
  ASSERT_OK(store_->Publish(id, 0, 0, std::vector<float>(kGeometry.representative_floats())));
  const std::vector<int32_t> tokens = {1, 2, 3};
  ASSERT_OK(store_->Commit(
      {.context = id, .id = committed, .name = "a \"name\"", .blocks = 1, .tokens = tokens}));
  const absl::Status failed = Append(id, 5, 1);
  EXPECT_THAT(failed, StatusIs(absl::StatusCode::kFailedPrecondition));
  store_.reset();
  ASSERT_TRUE(daemon_->WaitForOutput("lease_ended"));
  daemon_->Signal(SIGTERM);
  EXPECT_EQ(daemon_->Wait(), 0);

  const std::string log = daemon_->err();
  const std::vector<nlohmann::json> lines = Lines(log);
  ASSERT_EQ(lines.size(), 6u) << log;
  EXPECT_EQ(lines[0]["event"], "start");
  EXPECT_EQ(lines[0]["version"], "0.1.0");
  EXPECT_EQ(lines[0]["ram_bytes"], 1 << 20);
  EXPECT_EQ(lines[0]["data_dir"], dir_.file("data"));
  EXPECT_EQ(lines[1]["event"], "commit");
  EXPECT_EQ(lines[1]["name"], "a \"name\"");
  EXPECT_EQ(lines[1]["context"], ToString(committed));
  EXPECT_EQ(lines[1]["tokens"], 3);
  EXPECT_EQ(lines[2]["event"], "call_failed");
  EXPECT_EQ(lines[2]["level"], "info");
  EXPECT_EQ(lines[2]["method"], "Append");
  EXPECT_EQ(lines[2]["code"], "FAILED_PRECONDITION");
  EXPECT_THAT(std::string(failed.message()),
              HasSubstr(absl::StrCat("(request ", lines[2]["request_id"].get<std::string>(), ")")));
  EXPECT_EQ(lines[3]["event"], "lease_ended");
  EXPECT_EQ(lines[3]["dropped_context"], ToString(id));
  EXPECT_EQ(lines[4]["event"], "drain");
  EXPECT_EQ(lines[5]["event"], "stop");
}

TEST_F(DaemonWatchTest, CheckSaysWhatIsDamaged) {
  const std::string data = dir_.file("data");
  const auto check = [&](int status) {
    Subprocess process({INFLLM_MEMSTORE_BINARY, "--check", "--data-dir", data});
    EXPECT_EQ(process.Wait(), status) << process.out() << process.err();
    return process.out() + process.err();
  };
  EXPECT_THAT(check(2), HasSubstr(data));
  ASSERT_NO_FATAL_FAILURE(Start({"--data-dir", data}));
  EXPECT_THAT(check(2), AllOf(HasSubstr(data), HasSubstr("in use")));
  ASSERT_NO_FATAL_FAILURE(Connect());
  const memstore::ContextId id = memstore::NewContextId();
  ASSERT_OK(store_->Create(id, {.geometry = kGeometry}));
  ASSERT_OK(Append(id, 0, 3));
  ASSERT_OK(
      store_->Commit({.context = id, .id = memstore::NewContextId(), .name = "a", .blocks = 3}));
  daemon_->Signal(SIGTERM);
  EXPECT_EQ(daemon_->Wait(), 0);
  EXPECT_THAT(check(0), AllOf(HasSubstr("1 committed context, 3 blocks"), HasSubstr("0 orphans"),
                              HasSubstr("damage: none")));
  for (const auto& entry : std::filesystem::directory_iterator(data + "/blocks")) {
    if (entry.path().extension() != ".sst" || entry.file_size() < kGeometry.payload_bytes()) {
      continue;
    }
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(kGeometry.payload_bytes() / 2));
    file.put('x');
  }
  EXPECT_THAT(check(1), AllOf(HasSubstr("damaged: context \"a\", layer 0, block 0"),
                              HasSubstr("damage: 1 piece, in 1 context")));
  Subprocess no_directory({INFLLM_MEMSTORE_BINARY, "--check"});
  EXPECT_EQ(no_directory.Wait(), 2);
  EXPECT_THAT(no_directory.err(), HasSubstr("--data-dir"));
}

TEST_F(DaemonWatchTest, ARequestIdOfAClientIsKeptAndCannotForgeLines) {
  ASSERT_NO_FATAL_FAILURE(Start({"--log-format", "json"}));
  const auto stub = infllm::v1::MemoryStore::NewStub(
      grpc::CreateChannel(target_, grpc::InsecureChannelCredentials()));
  const auto describe = [&](const std::string& id) {
    grpc::ClientContext context;
    if (!id.empty()) context.AddMetadata("x-request-id", id);
    infllm::v1::DescribeRequest request;
    request.set_context(wire::ToProto(memstore::NewContextId()));
    infllm::v1::DescribeResponse response;
    EXPECT_EQ(stub->Describe(&context, request, &response).error_code(), grpc::NOT_FOUND);
  };
  describe("trace-7");
  describe("x\" \\ y=");
  describe(std::string(200, 'z'));
  describe("");
  daemon_->Signal(SIGTERM);
  EXPECT_EQ(daemon_->Wait(), 0);
  const auto failed = Events(daemon_->err(), "call_failed");
  ASSERT_EQ(failed.size(), 4u);
  EXPECT_EQ(failed[0]["request_id"], "trace-7");
  EXPECT_EQ(failed[1]["request_id"], "x____y_");
  EXPECT_EQ(failed[2]["request_id"], std::string(64, 'z'));
  EXPECT_EQ(failed[3]["request_id"].get<std::string>().size(), 16u);
}

TEST_F(DaemonWatchTest, AHostileClientDoesNotFillTheLog) {
  ASSERT_NO_FATAL_FAILURE(Start({"--log-format", "json"}));
  ASSERT_NO_FATAL_FAILURE(Connect());
  for (int i = 0; i < 500; ++i) {
    EXPECT_FALSE(store_->Drop(memstore::NewContextId()).ok());
  }
  daemon_->Signal(SIGTERM);
  EXPECT_EQ(daemon_->Wait(), 0);
  // Five at once, then one in ten seconds; the calls take less than that, even on a slow machine.
  const auto failed = Events(daemon_->err(), "call_failed");
  EXPECT_GE(failed.size(), 5u);
  EXPECT_LE(failed.size(), 20u);
}

}  // namespace
}  // namespace infllm::services
