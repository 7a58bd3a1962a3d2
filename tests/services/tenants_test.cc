// Tenants are kept apart: what one has is to another as if it had never been.
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "memstore/cold_store.h"
#include "memstore/in_process_store.h"
#include "services/memstore/remote_store.h"
#include "services/memstore/server.h"
#include "services/memstore/tenant_store.h"
#include "tests/memstore/test_blocks.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::services {
namespace {

using ::infllm::testing::IsOk;
using ::infllm::testing::StatusIs;
using ::infllm::testing::TempDir;
using memstore::ContextId;
using memstore::MemoryStore;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr const char* kTokenA = "a-token-of-32-characters-exactly";
constexpr const char* kTokenB = "b-token-of-32-characters-exactly";
constexpr const char* kTokenDefault = "the-token-of-the-default-tenant!";

memstore::ContextOptions OwnOptions() {
  memstore::ContextOptions options = memstore::Options();
  options.tenant.clear();
  return options;
}

// How two tenants get at the same store: side by side in process, or over the wire.
struct Setup {
  const char* name;
  bool remote;
};

class TenantsTest : public ::testing::TestWithParam<Setup> {
 protected:
  void SetUp() override {
    if (!GetParam().remote) {
      a_ = std::make_unique<TenantStore>(*store_, Caller{.tenant = "a", .one_of_many = true});
      b_ = std::make_unique<TenantStore>(*store_, Caller{.tenant = "b", .one_of_many = true});
      return;
    }
    const std::string tokens = Secret("tokens", std::string("# tenant token\na ") + kTokenA +
                                                    "\n\nb\t" + kTokenB + "\n- " + kTokenDefault);
    auto server = MemstoreServer::Start({.path = dir_.file("s")}, *store_, absl::Seconds(10),
                                        {.tokens_file = tokens});
    ASSERT_OK(server);
    server_ = *std::move(server);
    a_ = Connect("a-token", kTokenA);
    b_ = Connect("b-token", kTokenB);
  }

  std::string Secret(const std::string& name, const std::string& text) {
    const std::string path = dir_.Write(name, text);
    ::chmod(path.c_str(), 0600);
    return path;
  }
  std::unique_ptr<MemoryStore> Connect(const std::string& file, const std::string& token) {
    auto client = ConnectRemoteStore(server_->endpoint().ToString(),
                                     {.retry = {.unavailable_patience = absl::ZeroDuration(),
                                                .exhausted_patience = absl::ZeroDuration(),
                                                .damaged_patience = absl::ZeroDuration()},
                                      .security = {.token_file = Secret(file, token + "\n")}});
    EXPECT_OK(client);
    return *std::move(client);
  }

  // A context of `store` with four published blocks.
  ContextId NewContext(MemoryStore& store) {
    const ContextId id = memstore::NewContextId();
    EXPECT_OK(store.Create(id, OwnOptions()));
    for (int32_t layer = 0; layer < memstore::kGeometry.layers; ++layer) {
      const std::vector<std::byte> payloads = memstore::Payloads(layer, 0, 4);
      std::vector<std::span<const std::byte>> blocks;
      for (size_t i = 0; i < 4; ++i) {
        blocks.push_back(
            std::span(payloads).subspan(i * memstore::kPayloadBytes, memstore::kPayloadBytes));
      }
      EXPECT_OK(store.Append(id, layer, 0, blocks));
      EXPECT_OK(store.Publish(id, layer, 0, Representatives()));
    }
    return id;
  }
  static std::vector<float> Representatives() {
    return std::vector<float>(4 * memstore::kGeometry.representative_floats(), 0.5f);
  }
  ContextId Committed(MemoryStore& store, const std::string& name) {
    const ContextId id = memstore::NewContextId();
    EXPECT_OK(store.Commit(CommitOf(NewContext(store), id, name)));
    return id;
  }
  memstore::CommitRequest CommitOf(const ContextId& context, const ContextId& id,
                                   const std::string& name) {
    return {.context = context, .id = id, .name = name, .blocks = 4, .tokens = tokens_};
  }

  // The text of an error, but for the number of the call.
  static std::string WithoutRequest(const absl::Status& status) {
    const std::string text(status.message());
    return text.substr(0, text.find(" (request "));
  }

  // What every call that takes a context answers about `id`, by the name of the call.
  std::map<std::string, absl::Status> AllAnswers(MemoryStore& store, const ContextId& id) {
    const std::vector<std::byte> payload(memstore::kPayloadBytes);
    const std::vector<std::span<const std::byte>> payloads(1, payload);
    const std::vector<float> query(memstore::kGeometry.query_floats(), 1.0f);
    const std::vector<int64_t> blocks = {0};
    const memstore::SelectQuery queries[] = {{.context = id, .query = query, .k = 2}};
    const auto select = [&]() -> absl::Status {
      const auto selections = store.Select({.layer = 0, .queries = queries});
      if (!selections.ok()) return selections.status();
      EXPECT_THAT((*selections)[0].blocks, IsEmpty());
      return (*selections)[0].status;
    };
    return {
        {"Describe", store.Describe(id).status()},
        {"Append", store.Append(id, 0, 4, payloads)},
        {"Append, wrong layer", store.Append(id, 99, 4, payloads)},
        {"Append, gap", store.Append(id, 0, 40, payloads)},
        {"Publish", store.Publish(id, 0, 0, Representatives())},
        {"Select", select()},
        {"View", store.View(id, 0).status()},
        {"Fetch", store.Fetch(id, 0, blocks).status()},
        {"Fetch, wrong layer", store.Fetch(id, 99, blocks).status()},
        {"Fork", store.Fork(id, memstore::NewContextId(), memstore::kAllBlocks)},
        {"Commit", store.Commit(CommitOf(id, memstore::NewContextId(), "x"))},
        {"ReadCheckpoint", store.ReadCheckpoint(id).status()},
        {"Drop", store.Drop(id)},
    };
  }

  const TempDir dir_;
  const std::vector<int32_t> tokens_ = {1, 2, 3};
  const std::unique_ptr<MemoryStore> store_ =
      memstore::NewInProcessStore({.ram_capacity_bytes = 1 << 20}, memstore::TestBackend(),
                                  memstore::NewFakeColdStore())
          .value();
  std::unique_ptr<MemstoreServer> server_;
  std::unique_ptr<MemoryStore> a_, b_;
};

TEST_P(TenantsTest, AnothersContextIsAsUnknownToEveryCall) {
  for (const ContextId& id : {NewContext(*a_), Committed(*a_, "name")}) {
    const ContextId unknown = memstore::NewContextId();
    const auto of_anothers = AllAnswers(*b_, id), of_unknown = AllAnswers(*b_, unknown);
    for (const auto& [call, status] : of_anothers) {
      SCOPED_TRACE(call);
      const absl::Status& other = of_unknown.at(call);
      EXPECT_FALSE(status.ok());
      EXPECT_EQ(status.code(), other.code());
      // The same text, but for the id that was asked for.
      std::string text = WithoutRequest(status), expected = WithoutRequest(other);
      const size_t at = expected.find(ToString(unknown));
      if (at != std::string::npos) expected.replace(at, 32, ToString(id));
      EXPECT_EQ(text, expected);
      if (call != "View" || !GetParam().remote) {
        EXPECT_THAT(status, StatusIs(absl::StatusCode::kNotFound));
      }
    }
    EXPECT_OK(a_->Describe(id)) << "and nothing has happened to it";
  }
}

TEST_P(TenantsTest, OneSelectAnswersEachQueryAsItsContextIs) {
  const ContextId own = NewContext(*b_), anothers = NewContext(*a_);
  const std::vector<float> query(memstore::kGeometry.query_floats(), 1.0f);
  const memstore::SelectQuery queries[] = {{.context = own, .query = query, .k = 2},
                                           {.context = anothers, .query = query, .k = 2},
                                           {.context = anothers, .query = query, .k = 2},
                                           {.context = own, .query = query, .k = 2}};
  ASSERT_OK_AND_ASSIGN(const auto selections, b_->Select({.layer = 0, .queries = queries}));
  EXPECT_THAT(selections[0].blocks, SizeIs(2));
  for (const size_t i : {1, 2}) {
    EXPECT_THAT(selections[i].status,
                StatusIs(absl::StatusCode::kNotFound, HasSubstr(ToString(anothers))));
    EXPECT_THAT(selections[i].blocks, IsEmpty());
  }
  EXPECT_THAT(selections[3].blocks, SizeIs(2));
}

TEST_P(TenantsTest, NamesAreEachTenantsOwn) {
  const ContextId of_a = Committed(*a_, "name");
  EXPECT_THAT(b_->FindCommitted("", "name"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("\"name\"")));
  EXPECT_THAT(b_->ListCommitted("").value(), IsEmpty());
  const ContextId of_b = Committed(*b_, "name");
  EXPECT_EQ(a_->FindCommitted("", "name")->id, of_a);
  EXPECT_EQ(b_->FindCommitted("", "name")->id, of_b);
  ASSERT_OK(b_->Drop(of_b));
  EXPECT_THAT(a_->ListCommitted("").value(), SizeIs(1));
}

TEST_P(TenantsTest, APrefixIsFoundAmongTheOwnOnly) {
  const std::vector<int32_t> tokens(8, 7);
  memstore::CommitRequest request = CommitOf(NewContext(*a_), memstore::NewContextId(), "a's");
  request.tokens = tokens;
  request.reusable = {.exec_block = 4, .tokens = 8};
  ASSERT_OK(a_->Commit(request));
  EXPECT_EQ(a_->FindPrefix(OwnOptions(), 4, tokens)->tokens, 8);
  EXPECT_THAT(b_->FindPrefix(OwnOptions(), 4, tokens), StatusIs(absl::StatusCode::kNotFound));
}

TEST_P(TenantsTest, AForkTakesNoPartOfAnothers) {
  const ContextId own = NewContext(*b_), anothers = NewContext(*a_);
  for (const bool first : {true, false}) {
    const memstore::ForkPart parts[] = {{.context = first ? anothers : own},
                                        {.context = first ? own : anothers}};
    EXPECT_THAT(b_->Fork(parts, memstore::NewContextId()),
                StatusIs(absl::StatusCode::kNotFound, HasSubstr(ToString(anothers))));
  }
}

TEST_P(TenantsTest, AnIdThatIsTakenTellsNothingOfWhatHasIt) {
  const ContextId own = NewContext(*b_);
  const ContextId live = NewContext(*a_), committed = Committed(*a_, "secret-name");
  const ContextId fork = memstore::NewContextId();
  ASSERT_OK(a_->Fork(live, fork, 2));
  for (const ContextId& id : {live, committed, fork}) {
    const std::string text =
        "context " + ToString(id) + " exists already with other options: take another id";
    const auto taken = [&](const absl::Status& status) {
      EXPECT_THAT(status, StatusIs(absl::StatusCode::kAlreadyExists));
      EXPECT_EQ(WithoutRequest(status), text);
    };
    taken(b_->Create(id, OwnOptions()));
    taken(b_->Fork(own, id));
    // Also where the same commit of the same tenant's would be a repetition.
    taken(b_->Commit(CommitOf(own, id, "secret-name")));
    EXPECT_OK(a_->Describe(id));
  }
  memstore::CommitRequest replacing = CommitOf(own, memstore::NewContextId(), "secret-name");
  replacing.replaces = committed;
  const absl::Status refused = b_->Commit(replacing);
  replacing.replaces = memstore::NewContextId();
  const absl::Status expected = b_->Commit(replacing);
  EXPECT_EQ(refused.code(), expected.code());
  EXPECT_EQ(WithoutRequest(refused), WithoutRequest(expected)) << "as if nobody had it";
}

TEST_P(TenantsTest, StatsTellOnlyWhatTheStoreWasMadeWith) {
  NewContext(*a_);
  ASSERT_OK_AND_ASSIGN(const memstore::StoreStats stats, b_->Stats());
  EXPECT_EQ(stats.ram_capacity_bytes, 1 << 20);
  EXPECT_EQ(stats.contexts, 0);
  EXPECT_EQ(stats.blocks, 0);
  EXPECT_EQ(stats.ram_bytes, 0);
  EXPECT_EQ(stats.selects, 0);
  EXPECT_EQ(store_->Stats()->contexts, 1);
}

INSTANTIATE_TEST_SUITE_P(Tenants, TenantsTest,
                         ::testing::Values(Setup{"in_process", false}, Setup{"by_token", true}),
                         [](const auto& info) { return info.param.name; });

class TokensTest : public TenantsTest {
 protected:
  std::unique_ptr<RemoteStoreOptions> Options(const std::string& token) {
    auto options = std::make_unique<RemoteStoreOptions>();
    if (!token.empty()) options->security.token_file = Secret("other-token", token);
    return options;
  }
  absl::Status Try(const std::string& token) {
    return ConnectRemoteStore(server_->endpoint().ToString(), *Options(token)).status();
  }
};

TEST_P(TokensTest, WithoutATokenThatIsKnownThereIsNothing) {
  EXPECT_THAT(Try(""), StatusIs(absl::StatusCode::kUnauthenticated, HasSubstr("--token-file")));
  const std::string wrong = "another-token-of-32-characters!!";
  const absl::Status status = Try(wrong);
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnauthenticated, HasSubstr("none that")));
  EXPECT_EQ(status.message().find(wrong), std::string::npos) << "no text names a token";
  EXPECT_OK(Try(kTokenA));
}

TEST_P(TokensTest, TheDefaultTenantHasATokenToo) {
  const ContextId id = NewContext(*Connect("default", kTokenDefault));
  EXPECT_THAT(a_->Describe(id), StatusIs(absl::StatusCode::kNotFound));
}

TEST_P(TokensTest, AnEmptyEnvironmentVariableIsNone) {
  ::setenv("INFLLM_TOKEN", kTokenB, 1);
  EXPECT_OK(Try(""));
  ::unsetenv("INFLLM_TOKEN");
  EXPECT_THAT(Try(""), StatusIs(absl::StatusCode::kUnauthenticated));
}

TEST_P(TokensTest, AFileThatChangesIsReadAgain) {
  const std::string fresh = "the-new-token-of-tenant-a-is-it!";
  Secret("tokens.new", "a " + fresh + "\nb " + kTokenB);
  std::filesystem::rename(dir_.file("tokens.new"), dir_.file("tokens"));
  while (!Try(fresh).ok()) {  // within a second; the test's timeout bounds it
  }
  EXPECT_THAT(Try(kTokenA), StatusIs(absl::StatusCode::kUnauthenticated));
  EXPECT_THAT(a_->Stats(), StatusIs(absl::StatusCode::kUnauthenticated));
  EXPECT_OK(b_->Stats());
  // A client's own file, too.
  Secret("token.new", fresh);
  std::filesystem::rename(dir_.file("token.new"), dir_.file("a-token"));
  while (!a_->Stats().ok()) {
  }
}

TEST_P(TokensTest, AFileThatIsWrongLeavesWhatWas) {
  ::testing::internal::CaptureStderr();
  Secret("tokens.new", "a short");
  std::filesystem::rename(dir_.file("tokens.new"), dir_.file("tokens"));
  std::string told;
  while (told.find("stay as they were") == std::string::npos) {
    EXPECT_OK(b_->Stats());
    told += ::testing::internal::GetCapturedStderr();
    ::testing::internal::CaptureStderr();
  }
  ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(told, HasSubstr("line 1"));
  EXPECT_OK(Try(kTokenA));
}

TEST_P(TokensTest, LeasesAreEachTenantsOwn) {
  const ContextId of_a = NewContext(*a_), of_b = NewContext(*b_);
  a_.reset();
  EXPECT_OK(b_->Describe(of_b));
  EXPECT_THAT(b_->Drop(of_a), StatusIs(absl::StatusCode::kNotFound));
}

INSTANTIATE_TEST_SUITE_P(Tenants, TokensTest, ::testing::Values(Setup{"by_token", true}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace infllm::services
