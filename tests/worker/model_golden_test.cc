// Logits and greedy texts of small models, against transformers and llama2.c.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/backend.h"
#include "tests/support/status_matchers.h"
#include "tests/worker/golden_common.h"
#include "worker/engine/scheduler.h"

namespace infllm::worker {
namespace {

constexpr float kLogitsTolerance = 1e-4f;

AttentionOptions Full() {
  AttentionOptions options;
  options.policy = PolicyKind::kFull;
  return options;
}

class ModelGoldenTest : public ::testing::TestWithParam<std::string_view> {
 protected:
  ModelGoldenTest() : pool_(2) {}

  // Every row that the golden has, on one backend.
  void CheckLogits(kernels::Backend& backend) {
    SCOPED_TRACE(std::string(backend.name()));
    ASSERT_OK_AND_ASSIGN(const LogitsGolden golden, ReadLogitsGolden(GetParam()));
    ASSERT_OK_AND_ASSIGN(auto model, GoldenModel::Open(GetParam(), backend, pool_));
    ASSERT_OK_AND_ASSIGN(auto engine, model->NewEngine(Full()));
    const auto vocab = static_cast<size_t>(engine->config().vocab_size);
    std::vector<std::vector<float>> rows;
    ASSERT_OK(ReadAll(*engine, golden.ids, 512, StepItem::Want::kLogits, [&](const StepItem& item) {
      for (size_t at = 0; at < item.logits.size(); at += vocab) {
        rows.emplace_back(&item.logits[at], &item.logits[at] + vocab);
      }
    }));
    ASSERT_EQ(rows.size(), golden.ids.size());
    float worst = 0;
    for (size_t i = 0; i < golden.positions.size(); ++i) {
      const std::vector<float>& row = rows[static_cast<size_t>(golden.positions[i])];
      ASSERT_EQ(row.size(), golden.logits[i].size());
      for (size_t token = 0; token < row.size(); ++token) {
        ASSERT_TRUE(std::isfinite(row[token]));
        worst = std::max(worst, std::abs(row[token] - golden.logits[i][token]));
      }
    }
    EXPECT_LE(worst, kLogitsTolerance);
  }

  kernels::ThreadPool pool_;
};

TEST_P(ModelGoldenTest, ReferenceBackendGivesTheLogits) {
  CheckLogits(*kernels::NewReferenceBackend());
}

TEST_P(ModelGoldenTest, CpuBackendGivesTheLogitsWithEveryInstructionSet) {
  for (const kernels::Isa isa : kernels::SupportedIsas()) {
    CheckLogits(*kernels::NewCpuBackend(pool_, isa));
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ModelGoldenTest,
                         ::testing::Values("tiny-llama", "tiny-mistral", "tiny-qwen2",
                                           "paged-infer"),
                         [](const auto& info) {
                           std::string name(info.param);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(StoriesGoldenTest, GreedyTextsAreThoseOfLlama2c) {
  kernels::ThreadPool pool(2);
  const auto backend = kernels::NewCpuBackend(pool);
  ASSERT_OK_AND_ASSIGN(const std::vector<GreedyGolden> goldens, ReadGreedyGoldens());
  ASSERT_OK_AND_ASSIGN(auto golden_model, GoldenModel::Open("stories260K", *backend, pool));
  const LoadedModel& model = golden_model->model();
  ASSERT_NE(model.tokenizer, nullptr);
  for (const GreedyGolden& golden : goldens) {
    SCOPED_TRACE(golden.prompt);
    const std::vector<int32_t> prompt = model.EncodePrompt(golden.prompt);
    const std::vector<int32_t> expected_prompt(golden.ids.begin(),
                                               golden.ids.begin() + golden.prompt_tokens);
    ASSERT_EQ(prompt, expected_prompt);

    ASSERT_OK_AND_ASSIGN(auto engine, golden_model->NewEngine(Full()));
    ASSERT_OK_AND_ASSIGN(const SequenceId sequence, engine->NewSequence());
    // One more than wanted, where the story ended by itself.
    const int64_t wanted = static_cast<int64_t>(golden.ids.size()) - golden.prompt_tokens;
    std::vector<int32_t> generated;
    Outcome outcome;
    Scheduler scheduler(*engine, {});
    scheduler.Add({.sequence = sequence,
                   .tokens = prompt,
                   .max_tokens = wanted + (golden.ended_at_bos ? 1 : 0),
                   .stop_ids = model.StopIds(),
                   .on_token =
                       [&](int32_t token) {
                         generated.push_back(token);
                         return true;
                       },
                   .on_done = [&](const Outcome& done) { outcome = done; }});
    ASSERT_OK(scheduler.Run());
    ASSERT_OK(outcome.status);
    std::vector<int32_t> ids = prompt;
    ids.insert(ids.end(), generated.begin(), generated.end());
    EXPECT_EQ(ids, golden.ids);
    EXPECT_EQ(outcome.stopped, golden.ended_at_bos);
    EXPECT_EQ(model.tokenizer->Decode(ids), golden.text);
  }
}

}  // namespace
}  // namespace infllm::worker
