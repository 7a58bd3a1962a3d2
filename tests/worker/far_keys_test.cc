#include "worker/attention/far_keys.h"

#include <memory>
#include <vector>

#include "tests/support/status_matchers.h"

namespace infllm::worker {
namespace {

using ::infllm::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kHeads = 3, kDim = 4, kBlockTokens = 2, kSinks = 3, kWindow = 4, kBlocks = 5;
constexpr int64_t kTokens = kSinks + kBlocks * kBlockTokens + kWindow;

// A layer that has read kTokens, all blocks of which are published.
class FarKeysTest : public ::testing::TestWithParam<FarPositions> {
 protected:
  FarKeysTest() : window_(Window()), far_keys_(context_) {}

  PolicyContext Context() {
    ModelConfig model;
    model.q_heads = model.kv_heads = kHeads;
    model.head_dim = kDim;
    model.rope_theta = 100;
    AttentionOptions options;
    options.n_init = kSinks;
    options.n_local = kWindow;
    options.block_tokens = kBlockTokens;
    options.far_positions = GetParam();
    return {.model = model,
            .options = options,
            .kv_dtype = kernels::DType::kF32,
            .fingerprint = {},
            .backend = backend_.get(),
            .store = nullptr,
            .rope = Rope(model, options),
            .scale = 1,
            .far_angle = {}};
  }
  LayerWindow Window() {
    LayerWindow window(*backend_, {.sink_tokens = kSinks,
                                   .page_tokens = kBlockTokens,
                                   .q_heads = kHeads,
                                   .kv_heads = kHeads,
                                   .head_dim = kDim,
                                   .raw_pages = true,
                                   .raw_sinks = true});
    const std::vector<float> x(kTokens * kHeads * kDim, 1.0f);
    EXPECT_OK(window.Append(x.data(), x.data(), x.data(), kTokens));
    window.DropPagesBefore(kBlocks);
    return window;
  }
  absl::Status Collect(const memstore::Selection& selection) {
    record_.resize(2 * kHeads * kBlockTokens * kDim, 1.0f);
    const std::vector<const std::byte*> records(selection.blocks.size(),
                                                reinterpret_cast<const std::byte*>(record_.data()));
    return far_keys_.Collect(window_, selection, records, kTokens, scratch_);
  }

  std::unique_ptr<kernels::Backend> backend_ = kernels::NewReferenceBackend();
  PolicyContext context_ = Context();
  LayerWindow window_;
  AttentionScratch scratch_;
  std::vector<float> record_;  // ones
  FarKeys far_keys_;
};

TEST_P(FarKeysTest, ABlockHasOneSegmentOrOneForEachHeadThatSelectedIt) {
  memstore::Selection selection;
  selection.blocks = {{.index = 0, .kv_heads = 0b101},
                      {.index = 1, .kv_heads = 0b111},
                      {.index = 3, .kv_heads = 0b010},
                      {.index = 4, .kv_heads = ~uint64_t{0}}};
  ASSERT_OK(Collect(selection));
  std::vector<int64_t> heads, positions;
  for (const kernels::KvSegment& segment : far_keys_.segments()) {
    heads.push_back(segment.kv_head);
    positions.push_back(segment.position);
  }
  EXPECT_THAT(heads, ElementsAre(-1, 0, 2, -1, 1, -1));
  EXPECT_THAT(positions, ElementsAre(0, 3, 3, 5, 9, 11));  // the true ones: they say who is far
  std::vector<float> sums;
  far_keys_.SumByBlock(std::vector<float>{100, 1, 2, 4, 8, 16}, sums);
  EXPECT_THAT(sums, ElementsAre(3, 4, 8, 16));
}

// Keys that are all ones, rotated, tell where they stand.
TEST_P(FarKeysTest, KeysStandInARowBeforeTheWindowOrAreRaw) {
  memstore::Selection selection;
  selection.blocks = {{.index = 1, .kv_heads = ~uint64_t{0}}, {.index = 3, .kv_heads = 0b100}};
  ASSERT_OK(Collect(selection));
  ASSERT_EQ(far_keys_.segments().size(), 3u);
  const int64_t base = kSinks + kBlocks * kBlockTokens;  // of the window; 7 far tokens before it
  const int64_t first[] = {base - 7, base - 4, base - 2};
  for (size_t s = 0; s < 3; ++s) {
    const kernels::KvSegment& segment = far_keys_.segments()[s];
    for (int64_t head = 0; head < kHeads; ++head) {
      if (segment.kv_head >= 0 && segment.kv_head != head) continue;
      for (int64_t t = 0; t < segment.tokens; ++t) {
        std::vector<float> row(kDim);
        context_.rope.Fill(GetParam() == FarPositions::kSequential ? first[s] + t : 0, row);
        const float* k =
            static_cast<const float*>(segment.k) + head * segment.head_stride + t * kDim;
        EXPECT_FLOAT_EQ(k[0], row[0] - row[kDim / 2]) << s << " " << t;
        EXPECT_FLOAT_EQ(k[kDim / 2], row[0] + row[kDim / 2]) << s << " " << t;
      }
    }
  }
}

TEST_P(FarKeysTest, ABlockThatNobodySelectedIsAnError) {
  memstore::Selection selection;
  selection.blocks = {{.index = 2, .kv_heads = 0b1000}};  // not one of the 3 heads
  EXPECT_THAT(Collect(selection), StatusIs(absl::StatusCode::kInternal, HasSubstr("block 2")));
}

INSTANTIATE_TEST_SUITE_P(Positions, FarKeysTest,
                         ::testing::Values(FarPositions::kShared, FarPositions::kSequential),
                         [](const auto& info) { return std::string(Name(info.param)); });

}  // namespace
}  // namespace infllm::worker
