// A model, options and a backend small enough to check attention policies against plain loops.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "memstore/cold_store.h"
#include "memstore/in_process_store.h"
#include "tests/support/status_matchers.h"
#include "tests/worker/attention_oracle.h"
#include "worker/attention/attention_policy.h"

namespace infllm::worker {

inline constexpr double kTolerance = 2e-5;

inline ModelConfig TinyModel(int64_t q_heads = 4, int64_t kv_heads = 2, int64_t head_dim = 16) {
  ModelConfig model;
  model.model_type = "llama";
  model.layers = 2;
  model.q_heads = q_heads;
  model.kv_heads = kv_heads;
  model.head_dim = head_dim;
  model.hidden_size = q_heads * head_dim;
  model.rope_theta = 10000;
  return model;
}

// The paper's method, small.
inline AttentionOptions SmallOptions(PolicyKind policy) {
  AttentionOptions options;
  options.policy = policy;
  options.n_init = 4;
  options.n_local = 24;
  options.block_tokens = 8;
  options.top_k = 3;
  options.repr_top_k = 2;
  options.exec_block = 8;
  options.cache_blocks = 5;
  options.representative = kernels::RepresentativeKind::kMeanKey;
  return options;
}

// The parameter says whether the backend is the reference.
class AttentionPolicyTest : public ::testing::TestWithParam<bool> {
 protected:
  AttentionPolicyTest()
      : pool_(2),
        backend_(GetParam() ? kernels::NewReferenceBackend() : kernels::NewCpuBackend(pool_)) {
    ResetStore(int64_t{64} << 20);
  }

  void ResetStore(int64_t ram_bytes) {
    store_ = memstore::NewInProcessStore({.ram_capacity_bytes = ram_bytes}, *backend_,
                                         memstore::NewFakeColdStore());
  }

  std::unique_ptr<AttentionPolicy> Policy(const ModelConfig& model, const AttentionOptions& options,
                                          kernels::DType dtype = kernels::DType::kF32) {
    auto policy =
        NewAttentionPolicy(model, options, dtype, {.hi = 1, .lo = 2}, *backend_, store_.get());
    EXPECT_OK(policy);
    return std::move(policy).value();
  }

  // Feeds tokens [state.tokens, end) of the sequence in chunks to every layer; the last layer's
  // output of those tokens.
  std::vector<float> Feed(const ModelConfig& model, AttentionState& state, const Sequence& s,
                          int64_t begin, int64_t end, int64_t chunk) {
    const int64_t q_row = model.q_heads * model.head_dim, kv_row = model.kv_heads * model.head_dim;
    std::vector<float> out(static_cast<size_t>((end - begin) * q_row));
    for (int64_t at = begin; at < end; at += chunk) {
      for (int64_t layer = 0; layer < model.layers; ++layer) {
        EXPECT_OK(state.Attend({.layer = layer,
                                .first_position = at,
                                .tokens = std::min(chunk, end - at),
                                .q = s.q.data() + at * q_row,
                                .k = s.k.data() + at * kv_row,
                                .v = s.v.data() + at * kv_row,
                                .out = out.data() + (at - begin) * q_row},
                               scratch_));
      }
    }
    return out;
  }

  std::vector<float> Run(const ModelConfig& model, const AttentionOptions& options,
                         const Sequence& s, int64_t chunk) {
    const auto policy = Policy(model, options);
    auto state = policy->NewState();
    EXPECT_OK(state);
    return Feed(model, **state, s, 0, s.tokens, chunk);
  }

  kernels::ThreadPool pool_;
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<memstore::MemoryStore> store_;
  AttentionScratch scratch_;
};

template <typename A, typename B>
double MaxDifference(const A& a, const B& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    worst = std::max(worst, std::abs(double(a[i]) - double(b[i])));
  }
  return worst;
}

inline Distance TrueDistance() {
  return [](int64_t i, int64_t j) { return std::optional<int64_t>(i - j); };
}

}  // namespace infllm::worker
