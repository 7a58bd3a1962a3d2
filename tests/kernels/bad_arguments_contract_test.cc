// Every backend refuses bad arguments alike: INVALID_ARGUMENT with op, value and limit, before it
// touches memory. And no backend claims, or forgets to claim, an op that it does not have.
#include <memory>
#include <string>
#include <string_view>
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
using ::infllm::testing::kMain;
using ::infllm::testing::SharedArray;
using ::testing::AllOf;
using ::testing::HasSubstr;

class BackendContract : public testing::BackendTest {
 protected:
  // Valid arguments of the ops over one small array; a test spoils one of them.
  static constexpr int64_t kFloats = 4096;
  void SetUp() override {
    testing::BackendTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    array_ = std::make_unique<DeviceArray<float>>(*backend_, std::vector<float>(kFloats));
    float* const p = array_->data();
    rms_norm_ = {.x = p, .weight = p, .y = p, .rows = 1, .width = 8, .eps = 1e-5f};
    silu_mul_ = {.gate_up = p, .out = p + 100, .rows = 1, .width = 8};
    index_ = std::make_unique<SharedArray<int32_t>>(*backend_, std::vector<int32_t>(1));
    gather_ = {.x = p, .index = index_->data(), .out = p + 100, .rows = 1, .width = 8};
    pages_ = std::make_unique<SharedArray<std::byte*>>(
        *backend_, std::vector<std::byte*>{reinterpret_cast<std::byte*>(p + 2000)});
    slots_ = std::make_unique<SharedArray<int32_t>>(*backend_, std::vector<int32_t>(1));
    const PageShape page = {.kv_heads = 1, .head_dim = 8, .page_tokens = 4};
    store_ = {.qkv = p,
              .angles = p,
              .far_angle = p,
              .q_near = p + 100,
              .q_far = p + 200,
              .pages = pages_->data(),
              .slots = slots_->data(),
              .rows = 1,
              .q_heads = 2,
              .page = page};
    entry_ = std::make_unique<SharedArray<PageEntry>>(*backend_, std::vector<PageEntry>(1));
    entry() = {.page = reinterpret_cast<std::byte*>(p), .tokens = 1};
    spans_ = std::make_unique<SharedArray<AttentionSpan>>(*backend_, std::vector<AttentionSpan>(1));
    span() = {.rows = 1, .near = entry_->data(), .near_pages = 1};
    attention_ = {.q_near = p,
                  .q_far = p,
                  .out = p + 1000,
                  .spans = spans_->data(),
                  .span_count = 1,
                  .q_heads = 2,
                  .page = page,
                  .window = 4};
  }
  PageEntry& entry() { return *entry_->data(); }
  AttentionSpan& span() { return *spans_->data(); }

  absl::StatusOr<Weight> Pack() {
    static constexpr float kWeight[4] = {};
    const WeightSource source = {kWeight, DType::kF32, 2};
    return backend_->PackWeight({&source, 1}, 2, DType::kF32);
  }

  // What an op says of its valid arguments with one spoilt.
  template <typename Args, typename Spoil>
  absl::Status With(absl::Status (Backend::*op)(Stream, const Args&), Args args, Spoil spoil) {
    spoil(args);
    return (backend_.get()->*op)(kMain, args);
  }

  static auto Refused(const std::string& op, const std::string& what) {
    return testing::StatusIs(absl::StatusCode::kInvalidArgument,
                             AllOf(HasSubstr(op), HasSubstr(what)));
  }

  std::unique_ptr<DeviceArray<float>> array_;
  std::unique_ptr<SharedArray<int32_t>> index_, slots_;
  std::unique_ptr<SharedArray<std::byte*>> pages_;
  std::unique_ptr<SharedArray<PageEntry>> entry_;
  std::unique_ptr<SharedArray<AttentionSpan>> spans_;
  RmsNormArgs rms_norm_;
  SiluMulArgs silu_mul_;
  GatherRowsArgs gather_;
  RotateAndStoreArgs store_;
  AttentionArgs attention_;
};
INSTANTIATE_TEST_SUITE_P(Backends, BackendContract, ::testing::ValuesIn(BackendsUnderTest()),
                         BackendName);

TEST_P(BackendContract, HasExactlyTheOpsItIsListedWith) {
#define INFLLM_EXPECT_LISTED(Name) \
  EXPECT_EQ(absl::IsUnimplemented(backend_->Name(kMain, {})), Missing(#Name)) << #Name;
  INFLLM_KERNEL_OPS(INFLLM_EXPECT_LISTED)
#undef INFLLM_EXPECT_LISTED
  EXPECT_EQ(absl::IsUnimplemented(Pack().status()), Missing("PackWeight"));
  EXPECT_OK(backend_->Synchronize(kMain));
}

TEST_P(BackendContract, RmsNorm) {
  INFLLM_NEEDS_OP("RmsNorm");
  const auto with = [&](auto spoil) { return With(&Backend::RmsNorm, rms_norm_, spoil); };
  EXPECT_OK(with([](auto&) {}));
  EXPECT_THAT(with([](auto& a) { a.rows = -1; }), Refused("RmsNorm", "rows is -1"));
  EXPECT_THAT(with([](auto& a) { a.width = 0; }), Refused("RmsNorm", "width is 0"));
  EXPECT_THAT(with([](auto& a) { a.x = nullptr; }), Refused("RmsNorm", "x is null"));
  EXPECT_THAT(with([](auto& a) { a.weight = nullptr; }), Refused("RmsNorm", "weight is null"));
  EXPECT_THAT(with([](auto& a) { a.y = nullptr; }), Refused("RmsNorm", "y is null"));
  EXPECT_THAT(with([](auto& a) { a.x_dtype = DType::kF16; }), Refused("RmsNorm", "x_dtype"));
  EXPECT_THAT(with([](auto& a) { a.y_dtype = DType::kF16; }), Refused("RmsNorm", "y_dtype"));
}

TEST_P(BackendContract, SiluMul) {
  INFLLM_NEEDS_OP("SiluMul");
  const auto with = [&](auto spoil) { return With(&Backend::SiluMul, silu_mul_, spoil); };
  float* const p = array_->data();
  EXPECT_OK(with([](auto&) {}));
  EXPECT_THAT(with([](auto& a) { a.rows = -1; }), Refused("SiluMul", "rows is -1"));
  EXPECT_THAT(with([](auto& a) { a.width = 0; }), Refused("SiluMul", "width is 0"));
  EXPECT_THAT(with([p](auto& a) { a.out = p + 15; }), Refused("SiluMul", "out overlaps gate_up"));
  EXPECT_THAT(with([](auto& a) { a.gate_up = nullptr; }), Refused("SiluMul", "gate_up is null"));
  EXPECT_THAT(with([](auto& a) { a.out_dtype = DType::kF16; }), Refused("SiluMul", "out_dtype"));
}

TEST_P(BackendContract, GatherRows) {
  INFLLM_NEEDS_OP("GatherRows");
  const auto with = [&](auto spoil) { return With(&Backend::GatherRows, gather_, spoil); };
  EXPECT_OK(with([](auto&) {}));
  EXPECT_THAT(with([](auto& a) { a.rows = -1; }), Refused("GatherRows", "rows is -1"));
  EXPECT_THAT(with([](auto& a) { a.width = 0; }), Refused("GatherRows", "width is 0"));
  EXPECT_THAT(with([](auto& a) { a.index = nullptr; }), Refused("GatherRows", "index is null"));
  EXPECT_THAT(with([](auto& a) { a.dtype = DType::kF16; }), Refused("GatherRows", "dtype is f16"));
}

TEST_P(BackendContract, RotateAndStore) {
  INFLLM_NEEDS_OP("RotateAndStore");
  const std::string op = "RotateAndStore";
  const auto with = [&](auto spoil) { return With(&Backend::RotateAndStore, store_, spoil); };
  float* const p = array_->data();
  EXPECT_OK(with([](auto&) {}));
  EXPECT_OK(with([](auto& a) { a.far_angle = nullptr, a.q_far = nullptr; }));
  EXPECT_THAT(with([](auto& a) { a.page.dtype = DType::kF16; }), Refused(op, "page.dtype is f16"));
  EXPECT_THAT(with([](auto& a) { a.page.head_dim = 7; }), Refused(op, "page.head_dim is 7"));
  EXPECT_THAT(with([](auto& a) { a.page.kv_heads = 0; }), Refused(op, "page.kv_heads is 0"));
  EXPECT_THAT(with([](auto& a) { a.page.page_tokens = 0; }), Refused(op, "page.page_tokens is 0"));
  EXPECT_THAT(with([](auto& a) { a.q_heads = 0; }), Refused(op, "q_heads is 0"));
  EXPECT_THAT(with([](auto& a) { a.rows = -1; }), Refused(op, "rows is -1"));
  EXPECT_THAT(with([](auto& a) { a.layer_offset = -4; }), Refused(op, "layer_offset is -4"));
  EXPECT_THAT(with([](auto& a) { a.qkv = nullptr; }), Refused(op, "qkv is null"));
  EXPECT_THAT(with([](auto& a) { a.angles = nullptr; }), Refused(op, "angles is null"));
  EXPECT_THAT(with([](auto& a) { a.q_far = nullptr; }), Refused(op, "q_far is null"));
  EXPECT_THAT(with([](auto& a) { a.pages = nullptr; }), Refused(op, "pages is null"));
  EXPECT_THAT(with([](auto& a) { a.slots = nullptr; }), Refused(op, "slots is null"));
  EXPECT_THAT(with([p](auto& a) { a.q_near = p + 31; }), Refused(op, "q_near overlaps qkv"));
  EXPECT_THAT(with([p](auto& a) { a.q_far = p; }), Refused(op, "q_far overlaps qkv"));
  EXPECT_THAT(with([](auto& a) { a.activation_dtype = DType::kF16; }),
              Refused(op, "activation_dtype"));
}

TEST_P(BackendContract, Attention) {
  INFLLM_NEEDS_OP("Attention");
  const std::string op = "Attention";
  const auto with = [&](auto spoil) { return With(&Backend::Attention, attention_, spoil); };
  EXPECT_OK(with([](auto&) {}));
  EXPECT_THAT(with([](auto& a) { a.page.dtype = DType::kF16; }), Refused(op, "page.dtype is f16"));
  EXPECT_THAT(with([](auto& a) { a.page.head_dim = 0; }), Refused(op, "page.head_dim is 0"));
  EXPECT_THAT(with([](auto& a) { a.page.kv_heads = 0; }), Refused(op, "page.kv_heads is 0"));
  EXPECT_THAT(with([](auto& a) { a.page.page_tokens = 0; }), Refused(op, "page.page_tokens is 0"));
  EXPECT_THAT(with([](auto& a) { a.q_heads = 3, a.page.kv_heads = 2; }),
              Refused(op, "q_heads is 3, must be a multiple of page.kv_heads = 2"));
  EXPECT_THAT(with([](auto& a) { a.window = -1; }), Refused(op, "window is -1"));
  EXPECT_THAT(with([](auto& a) { a.scale = 0; }),
              Refused(op, "scale is 0, must be finite and above 0"));
  EXPECT_THAT(with([](auto& a) { a.scale = HUGE_VALF; }), Refused(op, "scale is inf"));
  EXPECT_THAT(with([](auto& a) { a.block_bias = NAN; }), Refused(op, "block_bias is nan"));
  EXPECT_THAT(with([](auto& a) { a.span_count = -1; }), Refused(op, "span_count is -1"));
  EXPECT_THAT(with([](auto& a) { a.spans = nullptr; }), Refused(op, "spans is null"));
  EXPECT_THAT(with([](auto& a) { a.out = nullptr; }), Refused(op, "out is null"));
  EXPECT_THAT(with([](auto& a) { a.layer_offset = -1; }), Refused(op, "layer_offset is -1"));
  EXPECT_THAT(with([](auto& a) { a.q_dtype = DType::kF16; }), Refused(op, "q_dtype"));
  EXPECT_THAT(with([](auto& a) { a.out_dtype = DType::kF16; }), Refused(op, "out_dtype"));
}

// Devices do not look into lists, which may not be written yet when an operation is enqueued.
TEST_P(BackendContract, ListsOfTheHost) {
  if (!backend_->host_accessible()) GTEST_SKIP() << "lists are read by the device alone";
  const auto gather = [&] { return backend_->GatherRows(kMain, gather_); };
  *index_->data() = -1;
  EXPECT_THAT(gather(), Refused("GatherRows", "index[i] is -1"));

  const auto store = [&] { return backend_->RotateAndStore(kMain, store_); };
  *slots_->data() = 4;
  EXPECT_THAT(store(), Refused("RotateAndStore", "slots[i] is 4, must be at most"));
  *slots_->data() = -1;
  EXPECT_THAT(store(), Refused("RotateAndStore", "slots[i] is -1"));
  *slots_->data() = 0;
  *pages_->data() = nullptr;
  EXPECT_THAT(store(), Refused("RotateAndStore", "pages[i] is null"));

  const auto attend = [&](auto spoil) {
    const AttentionSpan span_before = span();
    const PageEntry entry_before = entry();
    spoil(span(), entry());
    const absl::Status status = backend_->Attention(kMain, attention_);
    span() = span_before;
    entry() = entry_before;
    return status;
  };
  EXPECT_OK(attend([](auto&, auto&) {}));
  EXPECT_THAT(attend([](auto& s, auto&) { s.rows = -1; }), Refused("Attention", "span.rows is -1"));
  EXPECT_THAT(attend([](auto& s, auto&) { s.first_row = -1; }),
              Refused("Attention", "span.first_row is -1"));
  EXPECT_THAT(attend([](auto& s, auto&) { s.near = nullptr; }),
              Refused("Attention", "span.near is null"));
  EXPECT_THAT(attend([](auto& s, auto&) { s.far_pages = 1; }),
              Refused("Attention", "span.far is null"));
  EXPECT_THAT(attend([](auto& s, auto&) { s.block_count = -1; }),
              Refused("Attention", "span.block_count is -1"));
  EXPECT_THAT(attend([](auto&, auto& e) { e.first = -1; }),
              Refused("Attention near", "entry.first is -1"));
  EXPECT_THAT(attend([](auto&, auto& e) { e.first = 2, e.tokens = 3; }),
              Refused("Attention near", "entry.first + entry.tokens is 5, must be at most"));
  EXPECT_THAT(attend([](auto& s, auto& e) {
                s.blocks = s.near, s.block_count = 1, s.near_pages = 0, e.page = nullptr;
              }),
              Refused("Attention blocks", "entry.page is null"));
  EXPECT_OK(attend([](auto&, auto& e) { e.page = nullptr, e.tokens = 0; }));
  span().blocks = span().near;
  span().block_count = 1;
  attention_.q_far = nullptr;
  EXPECT_THAT(backend_->Attention(kMain, attention_), Refused("Attention", "q_far is null"));
}

TEST_P(BackendContract, PackWeightAndLinear) {
  INFLLM_NEEDS_OP("PackWeight");
  INFLLM_NEEDS_OP("Linear");
  const float weights[4] = {};
  const auto pack = [&](WeightSource source, int64_t in, DType compute) {
    return backend_->PackWeight({&source, 1}, in, compute).status();
  };
  EXPECT_THAT(pack({weights, DType::kF32, 2}, 0, DType::kF32),
              Refused("PackWeight", "in_features is 0"));
  EXPECT_THAT(pack({weights, DType::kF32, 0}, 2, DType::kF32),
              Refused("PackWeight", "out_features is 0"));
  EXPECT_THAT(pack({nullptr, DType::kF32, 2}, 2, DType::kF32),
              Refused("PackWeight", "host is null"));
  EXPECT_THAT(pack({weights, DType::kF32, 2}, 2, DType::kF16),
              Refused("PackWeight", "compute is f16, must be f32 or bf16"));
  EXPECT_THAT(backend_->PackWeight({}, 2, DType::kF32),
              Refused("PackWeight", "number of sources is 0"));

  ASSERT_OK_AND_ASSIGN(const Weight weight, Pack());
  float* const p = array_->data();
  const LinearArgs valid = {.x = p, .weight = weight.packed, .y = p + 8, .rows = 1};
  const auto with = [&](auto spoil) { return With(&Backend::Linear, valid, spoil); };
  EXPECT_OK(with([](auto&) {}));
  EXPECT_THAT(with([](auto& a) { a.weight = {}; }), Refused("Linear", "weight.data is null"));
  EXPECT_THAT(with([](auto& a) { a.rows = -1; }), Refused("Linear", "rows is -1"));
  EXPECT_THAT(with([](auto& a) { a.x = nullptr; }), Refused("Linear", "x is null"));
  EXPECT_THAT(with([p](auto& a) { a.y = p + 1; }), Refused("Linear", "y overlaps x"));
  EXPECT_THAT(with([](auto& a) { a.x_dtype = DType::kF16; }), Refused("Linear", "x_dtype"));
  EXPECT_THAT(with([](auto& a) { a.y_dtype = DType::kF16; }), Refused("Linear", "y_dtype"));
}

}  // namespace
}  // namespace infllm::kernels
