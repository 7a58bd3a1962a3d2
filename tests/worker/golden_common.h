// Golden files of tests/data, and a model of tests/data ready to be compared with them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "memstore/memory_store.h"
#include "worker/attention/attention_options.h"
#include "worker/engine/engine.h"
#include "worker/engine/loaded_model.h"

namespace infllm::worker {

std::string DataPath(std::string_view relative);

// <model>/logits.json, or the golden of paged-infer.
struct LogitsGolden {
  std::vector<int32_t> ids;
  std::vector<int64_t> positions;          // of the rows of `logits`
  std::vector<std::vector<float>> logits;  // [positions, vocab]
};
absl::StatusOr<LogitsGolden> ReadLogitsGolden(std::string_view model);

// A row of stories260K/greedy.jsonl.
struct GreedyGolden {
  std::string prompt;
  std::string text;          // the prompt included
  std::vector<int32_t> ids;  // BOS and the prompt included
  int64_t prompt_tokens = 0;
  bool ended_at_bos = false;  // rather than after as many tokens as were asked for
};
absl::StatusOr<std::vector<GreedyGolden>> ReadGreedyGoldens();

// A case of policies/<model>.json.
struct PolicyGolden {
  std::string name;
  AttentionOptions options;
  std::vector<int32_t> ids;
  std::vector<int32_t> argmax;     // [ids]
  std::vector<double> nll;         // [ids - 1]: of ids[t + 1], given those up to t
  std::vector<int64_t> near_ties;  // positions where argmax is too close to call
};
absl::StatusOr<std::vector<PolicyGolden>> ReadPolicyGoldens(std::string_view model);

// A model of tests/data in fp32 on one backend, and a memory store for it.
class GoldenModel {
 public:
  static absl::StatusOr<std::unique_ptr<GoldenModel>> Open(std::string_view model,
                                                           kernels::Backend& backend,
                                                           kernels::ThreadPool& pool);

  const LoadedModel& model() const { return *model_; }
  // An engine with one sequence. At most one may be alive.
  absl::StatusOr<std::unique_ptr<Engine>> NewEngine(const AttentionOptions& options);

 private:
  GoldenModel(kernels::Backend& backend, kernels::ThreadPool& pool)
      : backend_(backend), pool_(pool) {}

  kernels::Backend& backend_;
  kernels::ThreadPool& pool_;
  std::unique_ptr<LoadedModel> model_;
  std::unique_ptr<memstore::MemoryStore> store_;
};

// Reads `tokens` with a fresh sequence, in steps of `chunk` tokens at most (a multiple of
// exec_block), each with what is wanted of it: `visit(item)` after every step.
absl::Status ReadAll(Engine& engine, std::span<const int32_t> tokens, int64_t chunk,
                     StepItem::Want want, absl::FunctionRef<void(const StepItem&)> visit);

}  // namespace infllm::worker
