// Many clients of one daemon that is killed again and again: nothing that was committed is lost, no
// wrong byte is served, and in the end nothing is left. INFLLM_SOAK_SECONDS says how long (default
// 4); tests/soak gives it ten minutes.
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <thread>

#include "gtest/gtest.h"
#include "infllm/v1/memory_store.grpc.pb.h"
#include "services/memstore/remote_store.h"
#include "services/memstore/wire.h"
#include "tests/memstore/test_blocks.h"
#include "tests/support/status_matchers.h"
#include "tests/support/subprocess.h"
#include "tests/support/temp_dir.h"

namespace infllm::services {
namespace {

using ::infllm::testing::IsOk;
using ::infllm::testing::Subprocess;
using ::infllm::testing::TempDir;
using memstore::ContextId;
using memstore::kGeometry;
using Clock = std::chrono::steady_clock;

constexpr int kClients = 4;

int64_t SoakSeconds() {
  const char* const seconds = std::getenv("INFLLM_SOAK_SECONDS");
  return seconds == nullptr ? 4 : std::max(1, std::atoi(seconds));
}

// A daemon that is killed and started anew.
class Daemon {
 public:
  Daemon(std::string target, std::string data_dir)
      : target_(std::move(target)), data_dir_(std::move(data_dir)) {
    Start();
  }
  void Kill() {
    process_->Signal(SIGKILL);
    process_->Wait();
    Start();
  }
  int Stop() {
    process_->Signal(SIGTERM);
    return process_->Wait();
  }
  // Of the process: bytes, and what it has open beside the files of its data.
  int64_t rss() const {
    std::ifstream in(Proc() + "/statm");
    int64_t size = 0, resident = 0;
    in >> size >> resident;
    return resident * ::sysconf(_SC_PAGESIZE);
  }
  int64_t descriptors() const {
    int64_t open = 0;
    for (const auto& entry : std::filesystem::directory_iterator(Proc() + "/fd")) {
      std::error_code gone;
      const auto what = std::filesystem::read_symlink(entry, gone).string();
      if (!gone && !what.starts_with(data_dir_)) ++open;
    }
    return open;
  }

 private:
  std::string Proc() const { return "/proc/" + std::to_string(process_->pid()); }
  void Start() {
    process_ = std::make_unique<Subprocess>(
        std::vector<std::string>{INFLLM_MEMSTORE, "--listen", target_, "--ram-bytes", "32MiB",
                                 "--lease-seconds", "2", "--data-dir", data_dir_});
    ASSERT_TRUE(process_->WaitForOutput("listening")) << process_->err();
  }

  const std::string target_, data_dir_;
  std::unique_ptr<Subprocess> process_;
};

// What a block of a context was made from.
struct Content {
  std::vector<int64_t> flavours;  // of each block
};

// Does whatever comes to its mind, and knows what must be there. Its results do not depend on
// others: names and ids are its own.
class Client {
 public:
  Client(std::string target, int number)
      : target_(std::move(target)), number_(number), random_(static_cast<uint32_t>(number)) {
    Connect();
  }

  void Step() {
    switch (random_() % 12) {
      case 0:
        return Make();
      case 1:
      case 2:
      case 3:
        return Grow();
      case 4:
      case 5:
      case 6:
        return CheckSome();
      case 7:
      case 8:
        return Commit();
      case 9:
        return Fork();
      case 10:
        return Drop();
      default:
        if (random_() % 8 != 0) return CheckSome();
        // As if the process had ended: its lease takes what it has not committed.
        live_.clear();
        Connect();
    }
  }

  // All that was committed is there, to the byte.
  void CheckCommitted() {
    for (const auto& [name, content] : committed_) {
      const auto found = store_->FindCommitted("", name);
      ASSERT_OK(found) << name;
      EXPECT_EQ(found->blocks, static_cast<int64_t>(content.flavours.size())) << name;
      for (int64_t block = 0; block < found->blocks; ++block) {
        CheckBlock(found->id, content, block);
      }
    }
  }
  void DropAll() {
    for (const auto& [id, content] : live_) Settle(store_->Drop(id));
    live_.clear();
    for (const auto& [name, content] : committed_) {
      const auto found = store_->FindCommitted("", name);
      ASSERT_OK(found) << name;
      EXPECT_OK(store_->Drop(found->id));
    }
    committed_.clear();
  }
  int64_t steps() const { return steps_; }
  int64_t commits() const { return commits_; }

 private:
  static constexpr size_t kMostBlocks = 200, kMostContexts = 6;

  void Connect() {
    auto store = ConnectRemoteStore(target_, {.connect_timeout = absl::Seconds(30)});
    ASSERT_OK(store);
    store_ = *std::move(store);
  }

  // What a call may come to while daemons die: everything of before is gone, or there is no room.
  // Returns whether it is done.
  bool Settle(const absl::Status& status) {
    ++steps_;
    if (status.ok()) return true;
    if (absl::IsNotFound(status)) {
      live_.clear();
    } else {
      EXPECT_TRUE(absl::IsResourceExhausted(status) || absl::IsUnavailable(status)) << status;
    }
    return false;
  }

  ContextId AnyLive() {
    if (live_.empty()) return {};
    return std::next(live_.begin(), static_cast<int64_t>(random_() % live_.size()))->first;
  }

  void Make() {
    if (live_.size() >= kMostContexts) return Drop();
    const ContextId id = memstore::NewContextId();
    memstore::ContextOptions options = memstore::Options();
    options.tenant.clear();  // the daemon gives it
    if (Settle(store_->Create(id, options))) live_[id] = {};
  }

  void Grow() {
    const ContextId id = AnyLive();
    if (id == ContextId{}) return Make();
    Content& content = live_[id];
    if (content.flavours.size() >= kMostBlocks) return Drop();
    const auto first = static_cast<int64_t>(content.flavours.size());
    const int64_t count = 1 + static_cast<int64_t>(random_() % 40), flavour = random_() % 1000;
    for (int32_t layer = 0; layer < kGeometry.layers; ++layer) {
      const std::vector<std::byte> bytes = memstore::Payloads(layer, first, count, flavour);
      absl::Status status = store_->Append(id, layer, first, memstore::Spans(bytes));
      if (status.ok()) {
        status = store_->Publish(id, layer, first,
                                 memstore::Representatives(layer, first, count, flavour));
      }
      if (Settle(status)) continue;
      // Its layers differ now: it is of no use.
      if (live_.erase(id) > 0) store_->Drop(id).IgnoreError();
      return;
    }
    content.flavours.resize(static_cast<size_t>(first + count), flavour);
  }

  void CheckBlock(const ContextId& id, const Content& content, int64_t block) {
    const auto layer = static_cast<int32_t>(random_() % kGeometry.layers);
    const auto handles = store_->Fetch(id, layer, std::vector<int64_t>{block});
    if (!Settle(handles.status())) return;
    EXPECT_TRUE(std::ranges::equal(
        (*handles)[0].payload(),
        memstore::Payloads(layer, block, 1, content.flavours[static_cast<size_t>(block)])))
        << "block " << block;
  }

  void CheckSome() {
    const ContextId id = AnyLive();
    if (id == ContextId{} || live_[id].flavours.empty()) return;
    const Content content = live_[id];
    const auto blocks = static_cast<int64_t>(content.flavours.size());
    CheckBlock(id, content, static_cast<int64_t>(random_()) % blocks);
    const std::vector<float> query = memstore::Query(random_() % 100);
    const memstore::SelectQuery one{.context = id, .query = query, .k = 8};
    const auto answer = store_->Select({.layer = 0, .queries = {&one, 1}});
    if (!Settle(answer.ok() ? (*answer)[0].status : answer.status())) return;
    EXPECT_EQ((*answer)[0].blocks.size(), static_cast<size_t>(std::min<int64_t>(8, blocks)));
    for (const memstore::SelectedBlock& block : (*answer)[0].blocks) {
      EXPECT_TRUE(std::ranges::equal(
          block.block.payload(),
          memstore::Payloads(0, block.index, 1,
                             content.flavours[static_cast<size_t>(block.index)])));
    }
  }

  void Commit() {
    const ContextId id = AnyLive();
    if (id == ContextId{}) return Make();
    const std::string name =
        "client " + std::to_string(number_) + " " + std::to_string(random_() % kMostContexts);
    ContextId replaces;
    if (committed_.contains(name)) {
      const auto found = store_->FindCommitted("", name);
      if (absl::IsUnavailable(found.status())) return;
      ASSERT_OK(found) << name << " was committed";
      replaces = found->id;
    }
    const ContextId committed = memstore::NewContextId();
    const Content content = live_[id];
    const bool done =
        Settle(store_->Commit({.context = id,
                               .id = committed,
                               .name = name,
                               .replaces = replaces,
                               .blocks = static_cast<int64_t>(content.flavours.size())}));
    if (!done) {  // the daemon may have done it before it died
      const auto found = store_->FindCommitted("", name);
      if (!found.ok() || found->id != committed) return;
    }
    committed_[name] = content;
    ++commits_;
  }

  void Fork() {
    if (committed_.empty() || live_.size() >= kMostContexts) return Drop();
    const auto from =
        std::next(committed_.begin(), static_cast<int64_t>(random_() % committed_.size()));
    const auto found = store_->FindCommitted("", from->first);
    if (absl::IsUnavailable(found.status())) return;
    ASSERT_OK(found) << from->first << " was committed";
    const ContextId fork = memstore::NewContextId();
    if (Settle(store_->Fork(found->id, fork))) live_[fork] = from->second;
  }

  void Drop() {
    if (random_() % 3 != 0 || committed_.size() < kMostContexts / 2) {
      const ContextId id = AnyLive();
      if (id == ContextId{}) return;
      live_.erase(id);
      Settle(store_->Drop(id));
      return;
    }
    const auto gone =
        std::next(committed_.begin(), static_cast<int64_t>(random_() % committed_.size()));
    const auto found = store_->FindCommitted("", gone->first);
    if (absl::IsUnavailable(found.status())) return;
    ASSERT_OK(found) << gone->first << " was committed";
    const absl::Status status = store_->Drop(found->id);
    if (!status.ok() && store_->FindCommitted("", gone->first).ok()) return;
    committed_.erase(gone);
  }

  struct ByWords {
    bool operator()(const ContextId& a, const ContextId& b) const {
      return std::pair(a.hi, a.lo) < std::pair(b.hi, b.lo);
    }
  };
  const std::string target_;
  const int number_;
  std::mt19937 random_;
  std::unique_ptr<RemoteStore> store_;
  std::map<ContextId, Content, ByWords> live_;
  std::map<std::string, Content> committed_;  // by name
  int64_t steps_ = 0, commits_ = 0;
};

// Asks for more than it reads, and goes.
void ReadSlowly(const std::string& target, Clock::duration time) {
  const auto channel = grpc::CreateChannel(target, grpc::InsecureChannelCredentials());
  const auto stub = infllm::v1::MemoryStore::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + time);
  infllm::v1::ListCommittedRequest request;
  const auto reader = stub->ListCommitted(&context, request);
  infllm::v1::ListCommittedResponse response;
  std::this_thread::sleep_for(time);  // it does not read: that is what is tried
  reader->Finish();
}

TEST(SoakTest, NothingIsLostAndNothingIsLeft) {
  const TempDir dir;
  const std::string target = "unix:" + dir.file("store");
  Daemon daemon(target, dir.file("data"));
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < kClients; ++i) clients.push_back(std::make_unique<Client>(target, i));
  const auto work = [&](Clock::time_point end, bool kills) {
    std::vector<std::thread> threads;
    for (const auto& client : clients) {
      threads.emplace_back([&client, end] {
        while (Clock::now() < end && !::testing::Test::HasFailure()) client->Step();
      });
    }
    std::mt19937 random(7);
    while (Clock::now() < end) {
      ReadSlowly(target, std::chrono::milliseconds(200 + random() % 800));
      if (kills) daemon.Kill();
    }
    for (std::thread& thread : threads) thread.join();
  };

  const auto half = std::chrono::milliseconds(SoakSeconds() * 500);
  // First in peace: memory and descriptors stay where they were once all were at work.
  work(Clock::now() + half / 2, /*kills=*/false);
  const int64_t rss = daemon.rss(), descriptors = daemon.descriptors();
  work(Clock::now() + half / 2, /*kills=*/false);
  EXPECT_LE(daemon.descriptors(), descriptors + 8);
  EXPECT_LE(daemon.rss(), rss + rss / 4 + (int64_t{32} << 20));
  std::printf("in peace: %.0f MiB, %ld descriptors; before %.0f MiB, %ld\n",
              static_cast<double>(daemon.rss()) / (1 << 20), daemon.descriptors(),
              static_cast<double>(rss) / (1 << 20), descriptors);

  work(Clock::now() + half, /*kills=*/true);
  int64_t steps = 0, commits = 0;
  for (const auto& client : clients) {
    client->CheckCommitted();
    steps += client->steps();
    commits += client->commits();
  }
  daemon.Kill();
  for (const auto& client : clients) client->CheckCommitted();
  std::printf("%ld steps, %ld commits\n", steps, commits);
  EXPECT_GT(commits, 10);

  for (const auto& client : clients) client->DropAll();
  auto store = ConnectRemoteStore(target, {});
  ASSERT_OK(store);
  const auto stats = (*store)->Stats();
  ASSERT_OK(stats);
  EXPECT_EQ(stats->contexts, 0);
  EXPECT_EQ(stats->committed, 0);
  EXPECT_EQ(stats->blocks, 0);
  EXPECT_EQ(stats->corrupt_blocks, 0);
  EXPECT_EQ(daemon.Stop(), 0);
}

}  // namespace
}  // namespace infllm::services
