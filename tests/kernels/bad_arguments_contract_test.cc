// Every backend refuses bad arguments alike: INVALID_ARGUMENT with op, value and limit, before it
// touches memory. And no backend claims, or forgets to claim, an op that it does not have.
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/kernels/backends_under_test.h"
#include "tests/support/status_matchers.h"

namespace infllm::kernels {
namespace {

using ::infllm::testing::BackendName;
using ::infllm::testing::BackendsUnderTest;
using ::infllm::testing::DeviceArray;
using ::testing::AllOf;
using ::testing::HasSubstr;

class BackendContract : public testing::BackendTest {
 protected:
  // Valid arguments of every op over one small array; a test spoils one of them.
  static constexpr int64_t kFloats = 4096;
  void SetUp() override {
    testing::BackendTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    array_ = std::make_unique<DeviceArray<float>>(*backend_, std::vector<float>(kFloats));
    float* const p = array_->data();
    rms_norm_ = {p, p, p, 1, 8, 1e-5f};
    rope_ = {p, p, p, 1, 1, 8, 1};
    store_ = {p, p + 100, DType::kF32, 8, 1, 1, 8};
    segment_ = {.k = p, .v = p, .head_stride = 8, .position = 0, .tokens = 1, .mass_stride = 1};
    attention_ = {.q_near = p,
                  .q_far = p,
                  .out = p + 1000,
                  .near = {&segment_, 1},
                  .tokens = 1,
                  .q_heads = 2,
                  .kv_heads = 1,
                  .head_dim = 8,
                  .window = 4};
    representative_ = {.k = p,
                       .mass = p,
                       .out = p + 1000,
                       .head_stride = 32,
                       .mass_stride = 4,
                       .block_tokens = 4,
                       .q_heads = 2,
                       .kv_heads = 1,
                       .head_dim = 8,
                       .top = 2};
    mean_query_ = {p, p + 1000, 1, 2, 8};
    chunk_ = {p, 3};
    score_ = {.query = p,
              .chunks = {&chunk_, 1},
              .out = p + 1000,
              .q_heads = 2,
              .kv_heads = 1,
              .head_dim = 8};
  }

  // Each op called with valid arguments. Linear needs PackWeight to have worked.
  std::map<std::string, std::function<absl::Status()>> Ops() {
    float* const p = array_->data();
    return {
        {"PackWeight", [this] { return Pack().status(); }},
        {"Linear",
         [this, p]() -> absl::Status {
           auto weight = Pack();
           return backend_->Linear({.x = p,
                                    .weight = weight.ok() ? weight->get() : &placeholder_,
                                    .y = p + 100,
                                    .rows = 1});
         }},
        {"RmsNorm", [this] { return backend_->RmsNorm(rms_norm_); }},
        {"Rope", [this] { return backend_->Rope(rope_); }},
        {"SiluMul", [this, p] { return backend_->SiluMul(p, p + 100, 1, 8); }},
        {"CopyColumns", [this, p] { return backend_->CopyColumns(p, 8, 0, p + 100, 8, 0, 1, 8); }},
        {"StorePage", [this] { return backend_->StorePage(store_); }},
        {"Attention", [this] { return backend_->Attention(attention_); }},
        {"Representatives", [this] { return backend_->Representatives(representative_); }},
        {"MeanQuery", [this] { return backend_->MeanQuery(mean_query_); }},
        {"ScoreBlocks", [this] { return backend_->ScoreBlocks(score_); }},
        {"TopK",
         [this, p] {
           int64_t best[1];
           return backend_->TopK(p, 8, 1, best);
         }},
    };
  }

  absl::StatusOr<std::unique_ptr<PackedWeight>> Pack() {
    static constexpr float kWeight[4] = {};
    const Backend::WeightSource source = {kWeight, DType::kF32, 2};
    return backend_->PackWeight({&source, 1}, 2, DType::kF32);
  }

  static auto Refused(const std::string& op, const std::string& what) {
    return testing::StatusIs(absl::StatusCode::kInvalidArgument,
                             AllOf(HasSubstr(op), HasSubstr(what)));
  }

  struct PlaceholderWeight : PackedWeight {
    int64_t out_features() const override { return 2; }
    int64_t in_features() const override { return 2; }
    size_t size_bytes() const override { return 16; }
  } placeholder_;
  std::unique_ptr<DeviceArray<float>> array_;
  RmsNormArgs rms_norm_;
  RopeArgs rope_;
  StorePageArgs store_;
  KvSegment segment_;
  AttentionArgs attention_;
  RepresentativeArgs representative_;
  MeanQueryArgs mean_query_;
  RepresentativeChunk chunk_;
  ScoreBlocksArgs score_;
};
INSTANTIATE_TEST_SUITE_P(Backends, BackendContract, ::testing::ValuesIn(BackendsUnderTest()),
                         BackendName);

TEST_P(BackendContract, HasExactlyTheOpsItIsListedWith) {
  for (const auto& [op, call] : Ops()) {
    if (Missing(op)) {
      EXPECT_THAT(call(), testing::StatusIs(absl::StatusCode::kUnimplemented)) << op;
    } else {
      EXPECT_OK(call()) << op;
    }
  }
  EXPECT_OK(backend_->Synchronize());
}

TEST_P(BackendContract, RmsNorm) {
  INFLLM_NEEDS_OP("RmsNorm");
  const auto with = [&](auto spoil) {
    RmsNormArgs args = rms_norm_;
    spoil(args);
    return backend_->RmsNorm(args);
  };
  EXPECT_THAT(with([](auto& a) { a.rows = -1; }), Refused("RmsNorm", "rows is -1"));
  EXPECT_THAT(with([](auto& a) { a.width = 0; }), Refused("RmsNorm", "width is 0"));
  EXPECT_THAT(with([](auto& a) { a.x = nullptr; }), Refused("RmsNorm", "x is null"));
  EXPECT_THAT(with([](auto& a) { a.weight = nullptr; }), Refused("RmsNorm", "weight is null"));
  EXPECT_THAT(with([](auto& a) { a.y = nullptr; }), Refused("RmsNorm", "y is null"));
}

TEST_P(BackendContract, Rope) {
  INFLLM_NEEDS_OP("Rope");
  const auto with = [&](auto spoil) {
    RopeArgs args = rope_;
    spoil(args);
    return backend_->Rope(args);
  };
  EXPECT_THAT(with([](auto& a) { a.rows = -2; }), Refused("Rope", "rows is -2"));
  EXPECT_THAT(with([](auto& a) { a.heads = 0; }), Refused("Rope", "heads is 0"));
  EXPECT_THAT(with([](auto& a) { a.head_dim = 0; }), Refused("Rope", "head_dim is 0"));
  EXPECT_THAT(with([](auto& a) { a.head_dim = 7; }), Refused("Rope", "head_dim is 7"));
  EXPECT_THAT(with([](auto& a) { a.table_step = 2; }), Refused("Rope", "table_step is 2"));
  EXPECT_THAT(with([](auto& a) { a.table = nullptr; }), Refused("Rope", "table is null"));
}

TEST_P(BackendContract, SiluMulAndCopyColumns) {
  INFLLM_NEEDS_OP("SiluMul");
  INFLLM_NEEDS_OP("CopyColumns");
  float* const p = array_->data();
  EXPECT_THAT(backend_->SiluMul(p, p + 100, -1, 8), Refused("SiluMul", "rows is -1"));
  EXPECT_THAT(backend_->SiluMul(p, p + 100, 1, 0), Refused("SiluMul", "width is 0"));
  EXPECT_THAT(backend_->SiluMul(p, p + 15, 1, 8), Refused("SiluMul", "overlaps"));
  EXPECT_THAT(backend_->SiluMul(nullptr, p, 1, 8), Refused("SiluMul", "gate_up is null"));
  EXPECT_THAT(backend_->CopyColumns(p, 8, 5, p + 100, 8, 0, 1, 4),
              Refused("CopyColumns", "src_column is 5"));
  EXPECT_THAT(backend_->CopyColumns(p, 8, 0, p + 100, 8, 1, 1, 8),
              Refused("CopyColumns", "dst_column is 1"));
  EXPECT_THAT(backend_->CopyColumns(p, 8, -1, p + 100, 8, 0, 1, 8),
              Refused("CopyColumns", "src_column is -1"));
  EXPECT_THAT(backend_->CopyColumns(p, 8, 0, p + 100, 8, 0, 1, INT64_MAX),
              Refused("CopyColumns", "must be at most"));
  EXPECT_THAT(backend_->CopyColumns(p, 8, 0, nullptr, 8, 0, 1, 8),
              Refused("CopyColumns", "dst is null"));
}

TEST_P(BackendContract, StorePage) {
  INFLLM_NEEDS_OP("StorePage");
  const auto with = [&](auto spoil) {
    StorePageArgs args = store_;
    spoil(args);
    return backend_->StorePage(args);
  };
  EXPECT_THAT(with([](auto& a) { a.dtype = DType::kF16; }), Refused("StorePage", "dtype is f16"));
  EXPECT_THAT(with([](auto& a) { a.tokens = -1; }), Refused("StorePage", "tokens is -1"));
  EXPECT_THAT(with([](auto& a) { a.dst = nullptr; }), Refused("StorePage", "dst is null"));
  EXPECT_THAT(with([](auto& a) { a.heads = 2, a.tokens = 2; }),
              Refused("StorePage", "head_stride is 8, must be at least 16"));
}

TEST_P(BackendContract, Attention) {
  INFLLM_NEEDS_OP("Attention");
  const auto with = [&](auto spoil) {
    AttentionArgs args = attention_;
    spoil(args);
    return backend_->Attention(args);
  };
  EXPECT_THAT(with([](auto& a) { a.kv_dtype = DType::kF16; }), Refused("Attention", "f16"));
  EXPECT_THAT(with([](auto& a) { a.head_dim = 0; }), Refused("Attention", "head_dim is 0"));
  EXPECT_THAT(with([](auto& a) { a.kv_heads = 0; }), Refused("Attention", "kv_heads is 0"));
  EXPECT_THAT(with([](auto& a) { a.q_heads = 3, a.kv_heads = 2; }),
              Refused("Attention", "q_heads is 3, must be a multiple of kv_heads = 2"));
  EXPECT_THAT(with([](auto& a) { a.window = -1; }), Refused("Attention", "window is -1"));
  EXPECT_THAT(with([](auto& a) { a.q_near = nullptr; }), Refused("Attention", "q_near is null"));
  EXPECT_THAT(with([](auto& a) { a.far = a.near, a.q_far = nullptr; }),
              Refused("Attention", "q_far is null"));
  segment_.k = nullptr;
  EXPECT_THAT(backend_->Attention(attention_), Refused("Attention near", "segment.k is null"));
  segment_.k = segment_.v;
  segment_.tokens = 2;
  attention_.kv_heads = 2;
  EXPECT_THAT(backend_->Attention(attention_),
              Refused("Attention near", "segment.head_stride is 8, must be at least 16"));
}

TEST_P(BackendContract, RepresentativesAndMeanQuery) {
  INFLLM_NEEDS_OP("Representatives");
  INFLLM_NEEDS_OP("MeanQuery");
  const auto with = [&](auto spoil) {
    RepresentativeArgs args = representative_;
    spoil(args);
    return backend_->Representatives(args);
  };
  EXPECT_THAT(with([](auto& a) { a.top = 5; }),
              Refused("Representatives", "top is 5, must be at most block_tokens = 4"));
  EXPECT_THAT(with([](auto& a) { a.top = 0; }), Refused("Representatives", "top is 0"));
  EXPECT_THAT(with([](auto& a) { a.mass_stride = 3; }),
              Refused("Representatives", "mass_stride is 3"));
  EXPECT_THAT(with([](auto& a) { a.mass = nullptr; }), Refused("Representatives", "mass is null"));
  EXPECT_THAT(with([](auto& a) { a.out = nullptr; }), Refused("Representatives", "out is null"));
  EXPECT_THAT(with([](auto& a) { a.kind = static_cast<RepresentativeKind>(9); }),
              Refused("Representatives", "kind is 9"));
  // Bounds read neither the mass nor `top`.
  EXPECT_OK(with([](auto& a) {
    a.kind = RepresentativeKind::kBounds, a.mass = nullptr, a.mass_stride = 0, a.top = 0;
  }));
  EXPECT_THAT(with([](auto& a) { a.kind = RepresentativeKind::kBounds, a.k = nullptr; }),
              Refused("Representatives", "k is null"));
  mean_query_.tokens = 0;
  EXPECT_THAT(backend_->MeanQuery(mean_query_), Refused("MeanQuery", "tokens is 0"));
}

TEST_P(BackendContract, ScoreBlocks) {
  INFLLM_NEEDS_OP("ScoreBlocks");
  const auto with = [&](auto spoil) {
    ScoreBlocksArgs args = score_;
    spoil(args);
    return backend_->ScoreBlocks(args);
  };
  using Kind = RepresentativeKind;
  EXPECT_THAT(with([](auto& a) { a.kind = static_cast<Kind>(2); }),
              Refused("ScoreBlocks", "kind is 2"));
  EXPECT_THAT(with([](auto& a) { a.dtype = DType::kF16; }), Refused("ScoreBlocks", "dtype is f16"));
  EXPECT_THAT(with([](auto& a) { a.q_heads = 0; }), Refused("ScoreBlocks", "q_heads is 0"));
  EXPECT_THAT(with([](auto& a) { a.kv_heads = 0; }), Refused("ScoreBlocks", "kv_heads is 0"));
  EXPECT_THAT(with([](auto& a) { a.head_dim = 0; }), Refused("ScoreBlocks", "head_dim is 0"));
  EXPECT_THAT(with([](auto& a) { a.queries = 0; }), Refused("ScoreBlocks", "queries is 0"));
  EXPECT_THAT(with([](auto& a) { a.q_heads = 3, a.kv_heads = 2; }),
              Refused("ScoreBlocks", "q_heads is 3, must be a multiple of kv_heads = 2"));
  EXPECT_THAT(with([](auto& a) { a.query = nullptr; }), Refused("ScoreBlocks", "query is null"));
  EXPECT_THAT(with([](auto& a) { a.out = nullptr; }), Refused("ScoreBlocks", "out is null"));
}

TEST_P(BackendContract, ScoreBlocksAndTopK) {
  INFLLM_NEEDS_OP("ScoreBlocks");
  INFLLM_NEEDS_OP("TopK");
  chunk_.blocks = -1;
  EXPECT_THAT(backend_->ScoreBlocks(score_), Refused("ScoreBlocks", "chunk.blocks is -1"));
  chunk_ = {nullptr, 1};
  EXPECT_THAT(backend_->ScoreBlocks(score_), Refused("ScoreBlocks", "chunk.data is null"));
  std::vector<int64_t> out(2);
  EXPECT_THAT(backend_->TopK(array_->data(), 8, 3, out),
              Refused("TopK", "size of out_indices is 2, must be at least 3"));
  EXPECT_THAT(backend_->TopK(array_->data(), -1, 3, out), Refused("TopK", "n is -1"));
  EXPECT_THAT(backend_->TopK(nullptr, 8, 1, out), Refused("TopK", "scores is null"));
}

TEST_P(BackendContract, PackWeightAndLinear) {
  INFLLM_NEEDS_OP("PackWeight");
  INFLLM_NEEDS_OP("Linear");
  const float weights[4] = {};
  const auto pack = [&](Backend::WeightSource source, int64_t in, DType compute) {
    return backend_->PackWeight({&source, 1}, in, compute).status();
  };
  EXPECT_THAT(pack({weights, DType::kF32, 2}, 0, DType::kF32),
              Refused("PackWeight", "in_features is 0"));
  EXPECT_THAT(pack({weights, DType::kF32, 0}, 2, DType::kF32),
              Refused("PackWeight", "out_features is 0"));
  EXPECT_THAT(pack({nullptr, DType::kF32, 2}, 2, DType::kF32),
              Refused("PackWeight", "host is null"));
  EXPECT_THAT(pack({weights, DType::kF32, 2}, 2, DType::kF16),
              Refused("PackWeight", "dtype is f16, must be f32 or bf16"));
  EXPECT_THAT(backend_->PackWeight({}, 2, DType::kF32),
              Refused("PackWeight", "number of sources is 0"));

  ASSERT_OK_AND_ASSIGN(auto weight, Pack());
  float* const p = array_->data();
  EXPECT_THAT(backend_->Linear({.x = p, .y = p + 8, .rows = 1}),
              Refused("Linear", "weight is null"));
  EXPECT_THAT(backend_->Linear({.x = p, .weight = weight.get(), .y = p + 8, .rows = -1}),
              Refused("Linear", "rows is -1"));
  EXPECT_THAT(backend_->Linear({.weight = weight.get(), .y = p + 8, .rows = 1}),
              Refused("Linear", "x is null"));
  EXPECT_THAT(backend_->Linear({.x = p, .weight = weight.get(), .y = p + 1, .rows = 1}),
              Refused("Linear", "y overlaps x"));
}

}  // namespace
}  // namespace infllm::kernels
