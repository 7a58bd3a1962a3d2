// A model, options and a backend small enough to check attention policies against plain loops.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "memstore/cold_store.h"
#include "memstore/in_process_store.h"
#include "tests/support/deferring_backend.h"
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

// Devices that the policies are tested on: kDeferring does nothing until it is waited for, and does
// not let the host read its memory in place.
enum class TestDevice { kReference, kCpu, kDeferring };
inline std::string TestDeviceName(const ::testing::TestParamInfo<TestDevice>& info) {
  return info.param == TestDevice::kReference ? "reference"
         : info.param == TestDevice::kCpu     ? "cpu"
                                              : "deferring";
}

class AttentionPolicyTest : public ::testing::TestWithParam<TestDevice> {
 protected:
  AttentionPolicyTest() : pool_(2), backend_(MakeBackend()) { ResetStore(int64_t{64} << 20); }

  std::unique_ptr<kernels::Backend> MakeBackend() {
    switch (GetParam()) {
      case TestDevice::kReference:
        return kernels::NewReferenceBackend();
      case TestDevice::kCpu:
        return kernels::NewCpuBackend(pool_);
      case TestDevice::kDeferring:
        return std::make_unique<infllm::testing::DeferringBackend>(kernels::NewCpuBackend(pool_));
    }
    return nullptr;
  }

  void ResetStore(int64_t ram_bytes) {
    store_ = memstore::NewInProcessStore({.ram_capacity_bytes = ram_bytes}, *backend_,
                                         memstore::NewFakeColdStore())
                 .value();
  }

  std::unique_ptr<AttentionPolicy> Policy(const ModelConfig& model, const AttentionOptions& options,
                                          kernels::DType dtype = kernels::DType::kF32,
                                          int64_t kv_bytes = int64_t{64} << 20) {
    auto policy = AttentionPolicy::New(model, options,
                                       {.backend = backend_.get(),
                                        .pool = &pool_,
                                        .store = store_.get(),
                                        .kv_dtype = dtype,
                                        .fingerprint = {.hi = 1, .lo = 2},
                                        .kv_bytes = kv_bytes});
    EXPECT_OK(policy);
    return std::move(policy).value();
  }

  // The tokens [position, position + count) of a sequence, for a state that is at `position`.
  struct Feeding {
    AttentionState* state = nullptr;
    const Sequence* sequence = nullptr;
    int64_t count = 0;
  };
  // One step of all; the last layer's output of each feeding's tokens. Statuses must be OK.
  std::vector<std::vector<float>> FeedTogether(AttentionPolicy& policy, const ModelConfig& model,
                                               const std::vector<Feeding>& feedings) {
    const int64_t q_row = model.q_heads * model.head_dim, kv_row = model.kv_heads * model.head_dim;
    std::vector<StepPart> parts;
    std::vector<float> qkv;
    int64_t rows = 0;
    for (const Feeding& feeding : feedings) {
      const Sequence& s = *feeding.sequence;
      const int64_t begin = feeding.state->window.tokens();
      parts.push_back({.state = feeding.state, .tokens = feeding.count});
      for (int64_t t = begin; t < begin + feeding.count; ++t) {
        qkv.insert(qkv.end(), &s.q[size_t(t * q_row)], &s.q[size_t(t * q_row)] + q_row);
        qkv.insert(qkv.end(), &s.k[size_t(t * kv_row)], &s.k[size_t(t * kv_row)] + kv_row);
        qkv.insert(qkv.end(), &s.v[size_t(t * kv_row)], &s.v[size_t(t * kv_row)] + kv_row);
      }
      rows += feeding.count;
    }
    std::vector<float> out(size_t(rows * q_row));
    EXPECT_OK(policy.Plan(parts));
    const auto enqueue = [&](int64_t first) {
      for (int64_t layer = first; layer < model.layers; ++layer) {
        EXPECT_OK(policy.Attend(layer, qkv.data(), out.data()));
      }
      EXPECT_OK(policy.EnqueueEnd());
      EXPECT_OK(backend_->Synchronize(kernels::Backend::kMainStream));
    };
    enqueue(0);
    if (const int64_t layer = policy.FirstMissedLayer(); layer >= 0) {
      policy.RedoFrom(layer);
      enqueue(layer);
    }
    policy.End();
    std::vector<std::vector<float>> result;
    for (const StepPart& part : parts) {
      EXPECT_OK(part.status);
      result.emplace_back(out.begin() + part.first_row * q_row,
                          out.begin() + (part.first_row + part.tokens) * q_row);
    }
    return result;
  }

  // Feeds tokens [state.tokens, end) of the sequence in chunks; the last layer's output of them.
  std::vector<float> Feed(AttentionPolicy& policy, const ModelConfig& model, AttentionState& state,
                          const Sequence& s, int64_t begin, int64_t end, int64_t chunk) {
    EXPECT_EQ(state.window.tokens(), begin);
    std::vector<float> out;
    chunk = std::min(chunk, policy.max_part_tokens());
    for (int64_t at = begin; at < end; at += chunk) {
      const auto part =
          FeedTogether(policy, model, {{&state, &s, std::min(chunk, end - at)}}).front();
      out.insert(out.end(), part.begin(), part.end());
    }
    return out;
  }

  std::vector<float> Run(const ModelConfig& model, const AttentionOptions& options,
                         const Sequence& s, int64_t chunk) {
    const auto policy = Policy(model, options);
    auto state = policy->NewState();
    EXPECT_OK(state);
    return Feed(*policy, model, **state, s, 0, s.tokens, chunk);
  }

  kernels::ThreadPool pool_;
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<memstore::MemoryStore> store_;
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
