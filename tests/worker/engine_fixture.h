// A small trained model, an engine for it, and a store that fails on demand.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "memstore/cold_store.h"
#include "memstore/in_process_store.h"
#include "tests/support/forwarding_store.h"
#include "tests/support/status_matchers.h"
#include "tests/worker/golden_common.h"
#include "worker/engine/engine.h"

namespace infllm::worker {

// Forwards to another store. Fetch and Select of the chosen contexts fail; without `views` it is as
// remote as a store can be.
class FaultyStore final : public ::infllm::testing::ForwardingStore {
 public:
  using ForwardingStore::ForwardingStore;
  bool views = true;
  int64_t selects = 0;  // calls
  std::function<absl::Status(const memstore::ContextId&)> fault = [](const auto&) {
    return absl::OkStatus();
  };
  std::function<void(const memstore::ContextId&)> on_append = [](const auto&) {};  // may throw
  // In the order of their making.
  std::vector<memstore::ContextId> contexts;

  absl::Status Create(const memstore::ContextId& id,
                      const memstore::ContextOptions& options) override {
    contexts.push_back(id);
    return base().Create(id, options);
  }
  absl::Status Append(const memstore::ContextId& context, int32_t layer, int64_t first_block,
                      std::span<const std::span<const std::byte>> payloads) override {
    on_append(context);
    return base().Append(context, layer, first_block, payloads);
  }
  absl::StatusOr<std::vector<memstore::Selection>> Select(
      const memstore::SelectRequest& request) override {
    ++selects;
    auto selections = base().Select(request);
    if (!selections.ok()) return selections;
    for (size_t i = 0; i < selections->size(); ++i) {
      if (absl::Status status = fault(request.queries[i].context); !status.ok()) {
        (*selections)[i] = {.status = status};
      }
    }
    return selections;
  }
  absl::StatusOr<memstore::IndexView> View(const memstore::ContextId& context,
                                           int32_t layer) override {
    if (!views) return absl::UnimplementedError("as if it were remote");
    return base().View(context, layer);
  }
  absl::StatusOr<std::vector<memstore::BlockHandle>> Fetch(
      const memstore::ContextId& context, int32_t layer, std::span<const int64_t> blocks) override {
    if (absl::Status status = fault(context); !status.ok()) return status;
    return base().Fetch(context, layer, blocks);
  }
  absl::Status Fork(std::span<const memstore::ForkPart> parts,
                    const memstore::ContextId& child) override {
    contexts.push_back(child);
    return base().Fork(parts, child);
  }
};

inline AttentionOptions SmallEngineOptions(PolicyKind policy) {
  AttentionOptions options;
  options.policy = policy;
  options.n_init = 6;
  options.n_local = 40;
  options.block_tokens = 8;
  options.top_k = 3;
  options.repr_top_k = 2;
  options.exec_block = 16;
  options.cache_blocks = 12;
  return options;
}

// The model on one backend, with a store and an engine.
struct EngineWorld {
  EngineWorld(const AttentionOptions& options, kernels::DType dtype, int threads,
              std::function<std::unique_ptr<kernels::Backend>(std::unique_ptr<kernels::Backend>)>
                  wrap = nullptr,
              int64_t kv_bytes = int64_t{64} << 20, bool remote = false,
              std::unique_ptr<memstore::ColdStore> cold = nullptr)
      : pool(threads),
        backend(kernels::NewCpuBackend(pool)),
        store_backend(kernels::NewCpuBackend(pool)) {
    if (wrap) backend = wrap(std::move(backend));
    auto loaded = LoadModel(DataPath("stories260K"), *backend, dtype);
    EXPECT_OK(loaded);
    model = std::move(loaded).value();
    base_store =
        memstore::NewInProcessStore({}, remote ? *store_backend : *backend, std::move(cold))
            .value();
    store = std::make_unique<FaultyStore>(*base_store);
    store->views = !remote;
    auto made = Engine::New(*model, *backend, pool, store.get(),
                            {.attention = options, .kv_dtype = dtype, .kv_bytes = kv_bytes});
    EXPECT_OK(made);
    engine = std::move(made).value();
  }
  SequenceId NewSequence() {
    auto sequence = engine->NewSequence();
    EXPECT_OK(sequence);
    return *sequence;
  }
  SequenceId Fork(SequenceId from) {
    auto sequence = engine->Fork(from);
    EXPECT_OK(sequence);
    return *sequence;
  }
  // One step of one item, which must succeed; its logits.
  std::vector<float> Read(SequenceId sequence, std::span<const int32_t> tokens) {
    StepItem item{.sequence = sequence, .tokens = tokens, .want = StepItem::Want::kLogits};
    EXPECT_OK(engine->Step({&item, 1}));
    EXPECT_OK(item.status);
    return item.logits;
  }
  // Reads in steps of `chunk` tokens; the logits of all.
  std::vector<float> ReadAll(SequenceId sequence, std::span<const int32_t> tokens, size_t chunk) {
    std::vector<float> logits;
    for (size_t at = 0; at < tokens.size(); at += chunk) {
      const auto part = Read(sequence, tokens.subspan(at, std::min(chunk, tokens.size() - at)));
      logits.insert(logits.end(), part.begin(), part.end());
    }
    return logits;
  }

  kernels::ThreadPool pool;
  std::unique_ptr<kernels::Backend> backend;
  std::unique_ptr<kernels::Backend> store_backend;  // of a store in another process
  std::unique_ptr<LoadedModel> model;
  std::unique_ptr<memstore::MemoryStore> base_store;
  std::unique_ptr<FaultyStore> store;
  std::unique_ptr<Engine> engine;
};

// Ids of the model's vocabulary.
inline std::vector<int32_t> RandomTokens(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(3 + random() % 500);
  return tokens;
}

}  // namespace infllm::worker
