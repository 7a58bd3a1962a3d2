// Whatever a client sends, it gets the right code and a text that helps, and the server goes on.
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <cmath>
#include <functional>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "infllm/v1/memory_store.grpc.pb.h"
#include "memstore/in_process_store.h"
#include "services/memstore/server.h"
#include "services/memstore/wire.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace infllm::services {
namespace {

namespace pb = infllm::v1;
using ::infllm::testing::TempDir;
using memstore::ContextId;
using ::testing::HasSubstr;

constexpr memstore::Geometry kGeometry = {.layers = 2,
                                          .q_heads = 2,
                                          .kv_heads = 1,
                                          .head_dim = 4,
                                          .block_tokens = 8,
                                          .dtype = kernels::DType::kF32};

constexpr ContextId kContext{.hi = 3, .lo = 4};
constexpr ContextId kUnknown{.hi = 0, .lo = 999};
constexpr const char* kUnknownText = "context 000000000000000000000000000003e7 does not exist";
constexpr int64_t kMaxIndex = std::numeric_limits<int64_t>::max();

class BadRequestTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto server = MemstoreServer::Start({.path = dir_.file("s")}, *store_);
    ASSERT_OK(server);
    server_ = *std::move(server);
    grpc::ChannelArguments arguments;
    arguments.SetMaxSendMessageSize(-1);
    stub_ = pb::MemoryStore::NewStub(grpc::CreateCustomChannel(
        server_->endpoint().ToString(), grpc::InsecureChannelCredentials(), arguments));
    ASSERT_TRUE(Create(GoodCreate()).ok());
    ASSERT_TRUE(Append(GoodAppend()).ok());
    ASSERT_TRUE(Publish(GoodPublish()).ok());
  }

  grpc::Status Create(const pb::CreateRequest& request) {
    grpc::ClientContext call;
    pb::CreateResponse response;
    return stub_->Create(&call, request, &response);
  }
  grpc::Status Append(const pb::AppendRequest& request) {
    grpc::ClientContext call;
    pb::AppendResponse response;
    return stub_->Append(&call, request, &response);
  }
  grpc::Status Publish(const pb::PublishRequest& request) {
    grpc::ClientContext call;
    pb::PublishResponse response;
    return stub_->Publish(&call, request, &response);
  }
  grpc::Status Select(const pb::SelectRequest& request) {
    grpc::ClientContext call;
    const auto reader = stub_->Select(&call, request);
    pb::SelectResponse response;
    while (reader->Read(&response)) {
    }
    return reader->Finish();
  }
  grpc::Status Fetch(const pb::FetchRequest& request) {
    grpc::ClientContext call;
    const auto reader = stub_->Fetch(&call, request);
    pb::FetchResponse response;
    while (reader->Read(&response)) {
    }
    return reader->Finish();
  }

  pb::CreateRequest GoodCreate() const {
    pb::CreateRequest request;
    request.set_context(wire::ToProto(kContext));
    *request.mutable_geometry() = wire::ToProto(kGeometry);
    return Seal(std::move(request));
  }
  // Two blocks, stored by SetUp().
  pb::AppendRequest GoodAppend() const {
    pb::AppendRequest request;
    request.set_context(wire::ToProto(kContext));
    request.mutable_payloads()->assign(2 * kGeometry.payload_bytes(), '\7');
    return Seal(std::move(request));
  }
  pb::PublishRequest GoodPublish() const {
    pb::PublishRequest request;
    request.set_context(wire::ToProto(kContext));
    request.mutable_representatives()->Resize(
        static_cast<int>(2 * kGeometry.representative_floats()), 0.5f);
    return Seal(std::move(request));
  }
  pb::SelectRequest GoodSelect() const {
    pb::SelectRequest request;
    request.set_scoring(pb::SCORING_MEAN);
    pb::SelectRequest::Query& query = *request.add_queries();
    query.set_context(wire::ToProto(kContext));
    query.set_k(2);
    query.set_end_block(kMaxIndex);
    query.mutable_query()->Resize(static_cast<int>(kGeometry.query_floats()), 1.0f);
    return Seal(std::move(request));
  }
  pb::FetchRequest GoodFetch() const {
    pb::FetchRequest request;
    request.set_context(wire::ToProto(kContext));
    request.add_blocks(1);
    return request;
  }

  // Makes the checksums fit whatever the message now says: a wrong field, not a damaged one.
  static pb::AppendRequest Seal(pb::AppendRequest request) {
    SealBlocks(request, std::as_bytes(wire::AsSpan(request.payloads())), kGeometry.payload_bytes());
    return request;
  }
  static pb::PublishRequest Seal(pb::PublishRequest request) {
    SealBlocks(request, std::as_bytes(wire::AsSpan(request.representatives())),
               kGeometry.representative_floats() * sizeof(float));
    return request;
  }
  static pb::SelectRequest Seal(pb::SelectRequest request) {
    request.set_crc32c(wire::Checksum(request));
    return request;
  }
  static pb::CreateRequest Seal(pb::CreateRequest request) {
    request.set_crc32c(wire::Checksum(request));
    return request;
  }
  static pb::ForkRequest Seal(pb::ForkRequest request) {
    request.set_crc32c(wire::Checksum(request));
    return request;
  }
  template <typename Request>
  static void SealBlocks(Request& request, std::span<const std::byte> content, size_t bytes) {
    request.clear_crc32c();
    for (size_t i = 0; (i + 1) * bytes <= content.size(); ++i) {
      request.add_crc32c(wire::BlockChecksum(
          {wire::ContextFromProto("context", request.context()).value_or(ContextId()),
           request.layer(), wire::Later(request.first_block(), i)},
          content.subspan(i * bytes, bytes)));
    }
  }

  const TempDir dir_;
  const std::unique_ptr<kernels::Backend> backend_ = kernels::NewReferenceBackend();
  const std::unique_ptr<memstore::MemoryStore> store_ =
      memstore::NewInProcessStore({.ram_capacity_bytes = 1 << 20}, *backend_, nullptr).value();
  std::unique_ptr<MemstoreServer> server_;
  std::unique_ptr<pb::MemoryStore::Stub> stub_;
};

// One row per way to be wrong: what is changed in a good request, and what comes back.
template <typename Request>
struct Row {
  const char* name;
  std::function<void(Request&)> change;
  grpc::StatusCode code;
  const char* text;
};

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

TEST_F(BadRequestTest, Create) {
  const Row<pb::CreateRequest> rows[] = {
      {"no geometry", [](auto& r) { r.clear_geometry(); }, grpc::INVALID_ARGUMENT, "geometry"},
      {"no dtype", [](auto& r) { r.mutable_geometry()->clear_dtype(); }, grpc::INVALID_ARGUMENT,
       "geometry.dtype"},
      {"unknown dtype", [](auto& r) { r.mutable_geometry()->set_dtype(pb::DType(77)); },
       grpc::INVALID_ARGUMENT, "geometry.dtype is 77"},
      {"no kind of representative", [](auto& r) { r.mutable_geometry()->clear_representative(); },
       grpc::INVALID_ARGUMENT, "geometry.representative is 0"},
      {"unknown kind of representative",
       [](auto& r) { r.mutable_geometry()->set_representative(pb::RepresentativeKind(-1)); },
       grpc::INVALID_ARGUMENT, "geometry.representative is -1"},
      {"no layers", [](auto& r) { r.mutable_geometry()->set_layers(0); }, grpc::INVALID_ARGUMENT,
       "layers is 0"},
      {"negative heads", [](auto& r) { r.mutable_geometry()->set_q_heads(-8); },
       grpc::INVALID_ARGUMENT, "q_heads is -8"},
      {"heads that do not divide", [](auto& r) { r.mutable_geometry()->set_kv_heads(2147483647); },
       grpc::INVALID_ARGUMENT, "kv_heads"},
      {"a block larger than a message",
       [](auto& r) {
         r.mutable_geometry()->set_q_heads(1024);
         r.mutable_geometry()->set_kv_heads(1024);
         r.mutable_geometry()->set_head_dim(1024);
         r.mutable_geometry()->set_block_tokens(8192);
       },
       grpc::INVALID_ARGUMENT, "bytes of a block"},
      {"a block larger than the RAM tier",
       [](auto& r) { r.mutable_geometry()->set_block_tokens(8192 * 4); }, grpc::INVALID_ARGUMENT,
       "block_tokens"},
      {"a long recipe", [](auto& r) { r.set_recipe(std::string(1025, 'x')); },
       grpc::INVALID_ARGUMENT, "1025"},
      {"no context", [](auto& r) { r.clear_context(); }, grpc::INVALID_ARGUMENT,
       "context has 0 bytes, must have 16"},
      {"another recipe", [](auto& r) { r.set_recipe("other"); }, grpc::ALREADY_EXISTS,
       "other options"},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.name);
    pb::CreateRequest request = GoodCreate();
    row.change(request);
    const grpc::Status status = Create(Seal(request));
    EXPECT_EQ(status.error_code(), row.code) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(row.text));
  }
  EXPECT_TRUE(Create(GoodCreate()).ok());
}

TEST_F(BadRequestTest, Append) {
  const size_t block = kGeometry.payload_bytes();
  const Row<pb::AppendRequest> rows[] = {
      {"unknown context", [](auto& r) { r.set_context(wire::ToProto(kUnknown)); }, grpc::NOT_FOUND,
       kUnknownText},
      {"short context", [](auto& r) { r.set_context("short"); }, grpc::INVALID_ARGUMENT,
       "context has 5 bytes, must have 16"},
      {"layer too large", [](auto& r) { r.set_layer(2); }, grpc::OUT_OF_RANGE, "layer is 2"},
      {"negative layer", [](auto& r) { r.set_layer(-1); }, grpc::OUT_OF_RANGE, "layer is -1"},
      {"another geometry", [](auto& r) { r.mutable_payloads()->pop_back(); },
       grpc::INVALID_ARGUMENT, "not a multiple of the 256"},
      {"gap", [](auto& r) { r.set_first_block(3); }, grpc::FAILED_PRECONDITION, "gap"},
      {"far gap", [](auto& r) { r.set_first_block(kMaxIndex); }, grpc::FAILED_PRECONDITION, "gap"},
      {"negative block", [](auto& r) { r.set_first_block(-1); }, grpc::INVALID_ARGUMENT, "-1"},
      {"other bytes", [](auto& r) { r.mutable_payloads()->back() = '\1'; }, grpc::ALREADY_EXISTS,
       "block 1"},
      {"more than the store holds",
       [&](auto& r) { r.mutable_payloads()->resize((2 << 20) / block * block, '\7'); },
       grpc::RESOURCE_EXHAUSTED, "--ram-bytes"},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.name);
    pb::AppendRequest request = GoodAppend();
    row.change(request);
    const grpc::Status status = Append(Seal(request));
    EXPECT_EQ(status.error_code(), row.code) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(row.text));
  }
  pb::AppendRequest request = GoodAppend();
  request.mutable_crc32c()->RemoveLast();
  const grpc::Status status = Append(request);
  EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("1 entries for 2 blocks"));
  EXPECT_TRUE(Append(GoodAppend()).ok());
}

TEST_F(BadRequestTest, OversizedMessage) {
  pb::AppendRequest request = GoodAppend();
  request.mutable_payloads()->resize(wire::kMaxMessageBytes);
  const grpc::Status status = Append(request);
  EXPECT_EQ(status.error_code(), grpc::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr(std::to_string(wire::kMaxMessageBytes)));
}

TEST_F(BadRequestTest, Publish) {
  const Row<pb::PublishRequest> rows[] = {
      {"unknown context", [](auto& r) { r.set_context(wire::ToProto(kUnknown)); }, grpc::NOT_FOUND,
       kUnknownText},
      {"short context", [](auto& r) { r.set_context("short"); }, grpc::INVALID_ARGUMENT,
       "context has 5 bytes, must have 16"},
      {"layer too large", [](auto& r) { r.set_layer(2); }, grpc::OUT_OF_RANGE, "layer is 2"},
      {"another geometry", [](auto& r) { r.mutable_representatives()->RemoveLast(); },
       grpc::INVALID_ARGUMENT, "not a multiple of the 8"},
      {"not finite", [](auto& r) { r.set_representatives(3, kNaN); }, grpc::INVALID_ARGUMENT,
       "nan"},
      {"no payload yet", [](auto& r) { r.set_first_block(1); }, grpc::FAILED_PRECONDITION,
       "only 2 are stored"},
      {"gap", [](auto& r) { r.set_first_block(kMaxIndex); }, grpc::FAILED_PRECONDITION, "gap"},
      {"others", [](auto& r) { r.set_representatives(0, -2); }, grpc::ALREADY_EXISTS, "block 0"},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.name);
    pb::PublishRequest request = GoodPublish();
    row.change(request);
    const grpc::Status status = Publish(Seal(request));
    EXPECT_EQ(status.error_code(), row.code) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(row.text));
  }
  EXPECT_TRUE(Publish(GoodPublish()).ok());
}

TEST_F(BadRequestTest, Select) {
  const Row<pb::SelectRequest> rows[] = {
      {"no scoring", [](auto& r) { r.clear_scoring(); }, grpc::INVALID_ARGUMENT, "scoring is 0"},
      {"unknown scoring", [](auto& r) { r.set_scoring(pb::Scoring(9)); }, grpc::INVALID_ARGUMENT,
       "scoring is 9"},
      {"too many queries",
       [](auto& r) {
         while (r.queries_size() < 4097) *r.add_queries() = r.queries(0);
       },
       grpc::INVALID_ARGUMENT, "4097; at most 4096"},
      {"short context", [](auto& r) { r.add_queries()->set_context("short"); },
       grpc::INVALID_ARGUMENT, "context of query 1 has 5 bytes, must have 16"},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.name);
    pb::SelectRequest request = GoodSelect();
    row.change(request);
    const grpc::Status status = Select(Seal(request));
    EXPECT_EQ(status.error_code(), row.code) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(row.text));
  }
  pb::SelectRequest damaged = GoodSelect();
  damaged.mutable_queries(0)->set_k(1);
  EXPECT_EQ(Select(damaged).error_code(), grpc::ABORTED);
  EXPECT_TRUE(Select(GoodSelect()).ok());
}

TEST_F(BadRequestTest, ABadQueryIsAnsweredForItself) {
  using Query = pb::SelectRequest::Query;
  const Row<Query> rows[] = {
      {"unknown context", [](auto& q) { q.set_context(wire::ToProto(kUnknown)); }, grpc::NOT_FOUND,
       kUnknownText},
      {"short query", [](auto& q) { q.mutable_query()->RemoveLast(); }, grpc::INVALID_ARGUMENT,
       "query has 7"},
      {"no query", [](auto& q) { q.clear_query(); }, grpc::INVALID_ARGUMENT, "query has 0"},
      {"query not finite", [](auto& q) { q.set_query(5, -INFINITY); }, grpc::INVALID_ARGUMENT,
       "-inf at float 5"},
      {"negative k", [](auto& q) { q.set_k(-1); }, grpc::INVALID_ARGUMENT, "k is -1"},
      {"k too large", [](auto& q) { q.set_k(65537); }, grpc::INVALID_ARGUMENT, "65536"},
      {"have not ascending",
       [](auto& q) {
         q.add_have(1);
         q.add_have(0);
       },
       grpc::INVALID_ARGUMENT, "ascending"},
  };
  pb::SelectRequest request = GoodSelect();
  for (const auto& row : rows) {
    row.change(*request.add_queries() = request.queries(0));
  }
  *request.add_queries() = request.queries(0);
  grpc::ClientContext call;
  const auto reader = stub_->Select(&call, Seal(request));
  pb::SelectResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_TRUE(reader->Finish().ok());
  ASSERT_EQ(response.answers_size(), request.queries_size());
  for (size_t i = 0; i < std::size(rows); ++i) {
    SCOPED_TRACE(rows[i].name);
    const pb::SelectResponse::Answer& answer = response.answers(static_cast<int>(i) + 1);
    EXPECT_EQ(answer.code(), rows[i].code);
    EXPECT_THAT(answer.message(), HasSubstr(rows[i].text));
  }
  for (const int good : {0, response.answers_size() - 1}) {
    EXPECT_EQ(response.answers(good).code(), 0);
    EXPECT_EQ(response.answers(good).blocks_size(), 2);
  }
  EXPECT_EQ(response.payloads_size(), 2) << "of both good queries together";
}

TEST_F(BadRequestTest, Fetch) {
  const Row<pb::FetchRequest> rows[] = {
      {"unknown context", [](auto& r) { r.set_context(wire::ToProto(kUnknown)); }, grpc::NOT_FOUND,
       kUnknownText},
      {"short context", [](auto& r) { r.set_context("short"); }, grpc::INVALID_ARGUMENT,
       "context has 5 bytes, must have 16"},
      {"layer too large", [](auto& r) { r.set_layer(2); }, grpc::OUT_OF_RANGE, "layer is 2"},
      {"not stored", [](auto& r) { r.add_blocks(2); }, grpc::OUT_OF_RANGE, "block 2"},
      {"negative", [](auto& r) { r.add_blocks(-1); }, grpc::OUT_OF_RANGE, "block -1"},
      {"too many", [](auto& r) { r.mutable_blocks()->Resize(65537, 0); }, grpc::INVALID_ARGUMENT,
       "65537 blocks; at most 65536"},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.name);
    pb::FetchRequest request = GoodFetch();
    row.change(request);
    const grpc::Status status = Fetch(request);
    EXPECT_EQ(status.error_code(), row.code) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(row.text));
  }
  EXPECT_TRUE(Fetch(GoodFetch()).ok());
}

TEST_F(BadRequestTest, UnknownContextsOfAllOtherCalls) {
  const auto check = [](const grpc::Status& status) {
    EXPECT_EQ(status.error_code(), grpc::NOT_FOUND);
    EXPECT_THAT(status.error_message(), HasSubstr(kUnknownText));
  };
  {
    pb::DescribeRequest request;
    request.set_context(wire::ToProto(kUnknown));
    pb::DescribeResponse response;
    grpc::ClientContext call;
    check(stub_->Describe(&call, request, &response));
  }
  {
    pb::ForkRequest request;
    request.add_parts()->set_context(wire::ToProto(kUnknown));
    request.set_child(wire::ToProto({.hi = 5, .lo = 5}));
    pb::ForkResponse response;
    grpc::ClientContext call;
    check(stub_->Fork(&call, Seal(request), &response));
  }
  {
    pb::DropRequest request;
    request.set_context(wire::ToProto(kUnknown));
    pb::DropResponse response;
    grpc::ClientContext call;
    check(stub_->Drop(&call, request, &response));
  }
}

}  // namespace
}  // namespace infllm::services
