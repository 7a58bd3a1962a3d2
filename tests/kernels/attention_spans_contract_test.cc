// Spans of one call of Backend::Attention do not notice each other: what a span comes to is the
// same alone and in any company, on any number of threads, bit for bit. On every backend.
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/kernels/attention_problem.h"
#include "tests/kernels/backends_under_test.h"
#include "tests/support/status_matchers.h"

namespace infllm::kernels {
namespace {

using ::infllm::testing::AttentionProblem;
using ::infllm::testing::AttentionShape;
using ::infllm::testing::BackendName;
using ::infllm::testing::BackendsUnderTest;
using ::infllm::testing::CutsOf;
using ::infllm::testing::SpanResult;
using ::infllm::testing::SpanShape;

class AttentionSpansContract : public testing::BackendTest {
 protected:
  void SetUp() override {
    BackendTest::SetUp();
    if (IsSkipped()) return;
    INFLLM_NEEDS_OP("Attention");
  }

  static AttentionShape ShapeOf(DType dtype) {
    return {.q_heads = 4,
            .kv_heads = 2,
            .head_dim = 32,
            .window = 700,
            .dtype = dtype,
            .block_bias = 0.25f};
  }

  // 32 spans: decode over short and long windows (the latter split over keys), and prefill.
  static std::vector<SpanShape> Spans() {
    std::mt19937 random(7);
    std::vector<SpanShape> spans;
    for (uint32_t i = 0; i < 32; ++i) {
      SpanShape span;
      span.rows = i % 8 == 5 ? 130 : i % 8 == 6 ? 20 : 1;
      span.first_position = 40 + static_cast<int64_t>(random() % 1500);
      const int64_t begin = std::max<int64_t>(0, span.first_position - 700);
      span.near = CutsOf(begin, span.first_position + span.rows, 128);
      if (begin > 0) span.far = CutsOf(0, std::min<int64_t>(begin, 50), 64);
      if (begin > 64) span.blocks = CutsOf(50, begin, 64);
      span.near_mass = i % 3 == 0;
      span.block_mass = i % 3 == 1;
      span.seed = i + 1;
      spans.push_back(span);
    }
    return spans;
  }

  static void ExpectIdentical(const SpanResult& got, const SpanResult& want) {
    EXPECT_EQ(got.out, want.out);
    EXPECT_EQ(got.near_mass, want.near_mass);
    EXPECT_EQ(got.block_mass, want.block_mass);
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, AttentionSpansContract, ::testing::ValuesIn(BackendsUnderTest()),
                         BackendName);

TEST_P(AttentionSpansContract, ASpanIsTheSameAloneAndAmongOthers) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const std::vector<SpanShape> spans = Spans();
    AttentionProblem together(*backend_, ShapeOf(dtype), spans);
    ASSERT_OK(together.Run());
    for (size_t i = 0; i < spans.size(); ++i) {
      SCOPED_TRACE(std::string(Name(dtype)) + " span " + std::to_string(i));
      AttentionProblem alone(*backend_, ShapeOf(dtype), {spans[i]});
      ASSERT_OK(alone.Run());
      ExpectIdentical(together.result(i), alone.result());
    }
  }
}

TEST_P(AttentionSpansContract, TheNumberOfThreadsChangesNothing) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const std::vector<SpanShape> spans = Spans();
    AttentionProblem first(*backend_, ShapeOf(dtype), spans);
    ASSERT_OK(first.Run());
    for (const int threads : {1, 2, 5}) {
      ThreadPool pool(threads);
      ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Backend> backend, GetParam().make(pool));
      AttentionProblem again(*backend, ShapeOf(dtype), spans);
      ASSERT_OK(again.Run());
      for (size_t i = 0; i < spans.size(); ++i) {
        SCOPED_TRACE(std::to_string(threads) + " threads, span " + std::to_string(i));
        ExpectIdentical(again.result(i), first.result(i));
      }
    }
  }
}

TEST_P(AttentionSpansContract, EachSpanEqualsTheReference) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const std::vector<SpanShape> spans = Spans();
    AttentionProblem actual(*backend_, ShapeOf(dtype), spans);
    AttentionProblem expected(*reference_, ShapeOf(dtype), spans);
    ASSERT_OK(actual.Run());
    ASSERT_OK(expected.Run());
    for (size_t i = 0; i < spans.size(); ++i) {
      const std::vector<float> rounding =
          testing::RoundingOfWeights(GetParam(), ShapeOf(dtype), spans[i]);
      testing::ExpectNear(actual.result(i).out, expected.result(i).out,
                          [&](size_t e) { return 1e-4 + rounding[e]; });
    }
  }
}

}  // namespace
}  // namespace infllm::kernels
