// Random inputs of Backend::Attention in the memory of a backend. What a span sees depends on its
// own seed and the positions of its keys only: not on the other spans, nor on how keys are cut into
// page table entries. Whatever a page holds beside the slots of its entry is NaN.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/core/dtype.h"
#include "tests/kernels/backends_under_test.h"

namespace infllm::testing {

// `tokens` consecutive keys from `position` on: a page table entry.
struct Cut {
  int64_t position = 0;
  int64_t tokens = 0;
};

// Keys [begin, end) in runs of `step`.
inline std::vector<Cut> CutsOf(int64_t begin, int64_t end, int64_t step) {
  std::vector<Cut> cuts;
  for (int64_t at = begin; at < end; at += step) cuts.push_back({at, std::min(step, end - at)});
  return cuts;
}

struct SpanShape {
  int64_t rows = 1;
  int64_t first_position = 0;
  std::vector<Cut> near, far, blocks;
  bool near_mass = false;
  bool block_mass = false;
  uint32_t seed = 1;
};

struct AttentionShape {
  int64_t q_heads = 1;
  int64_t kv_heads = 1;
  int64_t head_dim = 8;
  int64_t window = 1;
  kernels::DType dtype = kernels::DType::kF32;
  bool rotated_behind = true;
  bool far_rotated = false;
  bool far_unmasked = false;
  float block_bias = 0;
  float logit_scale = 1;  // on top of 1 / sqrt(head_dim)
  int64_t page_tokens = 200;
  bool absolute_values = false;  // values without their signs
  bool round_queries = true;     // to the dtype of the pages, as a model's that computes in it
};

// What one call writes for one span.
struct SpanResult {
  std::vector<float> out;         // [rows, q_heads, head_dim]
  std::vector<float> near_mass;   // [q_heads, keys of all near entries in their order]
  std::vector<float> block_mass;  // [blocks]
};

class AttentionProblem {
 public:
  AttentionProblem(kernels::Backend& backend, const AttentionShape& shape,
                   const std::vector<SpanShape>& spans)
      : backend_(backend), shape_(shape), shapes_(spans) {
    page_ = {shape.kv_heads, shape.head_dim, shape.page_tokens, shape.dtype, shape.rotated_behind};
    std::vector<float> q_near, q_far;
    for (const SpanShape& span : spans) {
      AddSpan(span, static_cast<int64_t>(q_near.size()) / RowSize());
      const std::vector<float> near = RandomNormal(span.rows * RowSize(), span.seed * 2);
      const std::vector<float> far = RandomNormal(span.rows * RowSize(), span.seed * 2 + 1);
      q_near.insert(q_near.end(), near.begin(), near.end());
      q_far.insert(q_far.end(), far.begin(), far.end());
    }
    if (shape.round_queries && shape.dtype == kernels::DType::kBF16) {
      for (float& q : q_near) q = static_cast<float>(kernels::BF16(q));
      for (float& q : q_far) q = static_cast<float>(kernels::BF16(q));
    }
    q_near_ = std::make_unique<DeviceArray<float>>(backend, q_near);
    q_far_ = std::make_unique<DeviceArray<float>>(backend, q_far);
    out_ =
        std::make_unique<DeviceArray<float>>(backend, std::vector<float>(q_near.size(), -1234.0f));
    list_ = std::make_unique<SharedArray<kernels::AttentionSpan>>(backend, spans_);
  }

  kernels::AttentionArgs args() const {
    kernels::AttentionArgs args;
    args.q_near = q_near_->data();
    args.q_far = q_far_->data();
    args.out = out_->data();
    args.spans = list_->data();
    args.span_count = list_->size();
    args.layer_offset = page_.page_bytes();  // layer 0 is there, too, and NaN
    args.mass_layer_offset = MassFloats() * static_cast<int64_t>(sizeof(float));
    args.q_heads = shape_.q_heads;
    args.page = page_;
    args.window = shape_.window;
    args.scale = shape_.logit_scale / std::sqrt(static_cast<float>(shape_.head_dim));
    args.block_bias = shape_.block_bias;
    args.far_rotated = shape_.far_rotated;
    args.far_unmasked = shape_.far_unmasked;
    return args;
  }
  absl::Status Run() { return Run(backend_); }
  // On another backend of the same memory.
  absl::Status Run(kernels::Backend& backend) {
    const absl::Status status = backend.Attention(kMain, args());
    return status.ok() ? backend.Synchronize(kMain) : status;
  }

  SpanResult result(size_t span = 0) const {
    SpanResult result;
    const std::vector<float> all = out_->Get();
    const auto first = all.begin() + spans_[span].first_row * RowSize();
    result.out.assign(first, first + spans_[span].rows * RowSize());
    const Tables& tables = *tables_[span];
    if (shapes_[span].near_mass) result.near_mass = NearMass(span);
    if (tables.block_mass != nullptr) result.block_mass = tables.block_mass->Get();
    return result;
  }
  // The near entry draws no mass.
  void LeaveOut(size_t span, size_t entry) { tables_[span]->near_mass->data()[entry] = nullptr; }

 private:
  using Entries = SharedArray<kernels::PageEntry>;
  struct Tables {
    std::vector<DeviceArray<uint8_t>> pages;
    std::vector<DeviceArray<float>> mass;
    std::unique_ptr<Entries> near, far, blocks;
    std::unique_ptr<SharedArray<float*>> near_mass;
    std::unique_ptr<DeviceArray<float>> block_mass;
  };

  int64_t RowSize() const { return shape_.q_heads * shape_.head_dim; }
  int64_t MassFloats() const { return shape_.q_heads * shape_.page_tokens; }

  void AddSpan(const SpanShape& shape, int64_t first_row) {
    tables_.push_back(std::make_unique<Tables>());
    Tables& tables = *tables_.back();
    tables.near = MakePages(shape, shape.near, 3, /*layers=*/2, tables);
    tables.far = MakePages(shape, shape.far, 4, /*layers=*/2, tables);
    tables.blocks = MakePages(shape, shape.blocks, 5, /*layers=*/1, tables);
    kernels::AttentionSpan span;
    span.first_row = first_row;
    span.rows = shape.rows;
    span.first_position = shape.first_position;
    span.near = tables.near->data();
    span.near_pages = tables.near->size();
    span.far = tables.far->data();
    span.far_pages = tables.far->size();
    span.blocks = tables.blocks->data();
    span.block_count = tables.blocks->size();
    if (shape.near_mass) {
      std::vector<float*> pointers;
      for (size_t i = 0; i < shape.near.size(); ++i) {
        tables.mass.emplace_back(backend_,
                                 std::vector<float>(static_cast<size_t>(2 * MassFloats())));
        pointers.push_back(tables.mass.back().data());
      }
      tables.near_mass = std::make_unique<SharedArray<float*>>(backend_, pointers);
      span.near_mass = tables.near_mass->data();
    }
    if (shape.block_mass) {
      tables.block_mass = std::make_unique<DeviceArray<float>>(
          backend_, std::vector<float>(shape.blocks.size(), 77.0f));  // is overwritten
      span.block_mass = tables.block_mass->data();
    }
    spans_.push_back(span);
  }

  // Entries start in different slots of their pages.
  int64_t FirstSlot(const Cut& cut, size_t index) const {
    return std::min<int64_t>(static_cast<int64_t>(index % 3) * 2, shape_.page_tokens - cut.tokens);
  }

  std::unique_ptr<Entries> MakePages(const SpanShape& span, const std::vector<Cut>& cuts,
                                     uint32_t stream, int64_t layers, Tables& tables) {
    std::vector<kernels::PageEntry> entries;
    const auto size = static_cast<int64_t>(kernels::SizeOf(shape_.dtype));
    for (size_t c = 0; c < cuts.size(); ++c) {
      const Cut& cut = cuts[c];
      const int64_t first = FirstSlot(cut, c), base = (layers - 1) * page_.page_bytes() / size;
      std::vector<uint8_t> page(static_cast<size_t>(layers * page_.page_bytes()));
      for (int64_t i = 0; i < layers * page_.page_bytes() / size; ++i) {
        Put(page, i, std::numeric_limits<float>::quiet_NaN());
      }
      for (int64_t i = 0; i < cut.tokens; ++i) {
        std::minstd_rand random(span.seed * 7919u + stream * 104729u +
                                static_cast<uint32_t>(cut.position + i) * 2654435761u);
        std::uniform_real_distribution<float> uniform(-1.7f, 1.7f);  // of variance one
        for (int64_t h = 0; h < shape_.kv_heads; ++h) {
          for (int64_t d = 0; d < shape_.head_dim; ++d) {
            Put(page, base + page_.key(h, first + i) + d, uniform(random));
            const float value = uniform(random);
            Put(page, base + page_.value(h, first + i) + d,
                shape_.absolute_values ? std::abs(value) : value);
            Put(page, base + page_.rotated_key(h, first + i) + d, uniform(random));
          }
        }
      }
      tables.pages.emplace_back(backend_, page);
      entries.push_back({reinterpret_cast<const std::byte*>(tables.pages.back().data()),
                         cut.position - first, static_cast<int32_t>(first),
                         static_cast<int32_t>(cut.tokens)});
    }
    return std::make_unique<Entries>(backend_, entries);
  }

  void Put(std::vector<uint8_t>& bytes, int64_t at, float value) const {
    if (shape_.dtype == kernels::DType::kBF16) {
      const kernels::BF16 rounded(value);
      std::memcpy(bytes.data() + at * 2, &rounded, 2);
    } else {
      std::memcpy(bytes.data() + at * 4, &value, 4);
    }
  }

  std::vector<float> NearMass(size_t span) const {
    std::vector<std::vector<float>> pages;
    for (const DeviceArray<float>& page : tables_[span]->mass) pages.push_back(page.Get());
    std::vector<float> mass;
    for (int64_t h = 0; h < shape_.q_heads; ++h) {
      for (size_t i = 0; i < pages.size(); ++i) {
        const Cut& cut = shapes_[span].near[i];
        const int64_t at = MassFloats() + h * shape_.page_tokens + FirstSlot(cut, i);
        mass.insert(mass.end(), pages[i].begin() + at, pages[i].begin() + at + cut.tokens);
      }
    }
    double all = 0, counted = 0;  // nothing went elsewhere
    for (const std::vector<float>& page : pages) {
      for (const float value : page) all += value;
    }
    for (const float value : mass) counted += value;
    EXPECT_NEAR(all, counted, 1e-3 * (1 + counted));
    return mass;
  }

  kernels::Backend& backend_;
  AttentionShape shape_;
  std::vector<SpanShape> shapes_;
  kernels::PageShape page_;
  std::vector<std::unique_ptr<Tables>> tables_;
  std::vector<kernels::AttentionSpan> spans_;
  std::unique_ptr<DeviceArray<float>> q_near_, q_far_, out_;
  std::unique_ptr<SharedArray<kernels::AttentionSpan>> list_;
};

// How far `out` may be off because the backend rounds the weights of the softmax to the 8 bits of
// bf16: sum_j p[j] |v[j]| / 256, or zero where it does not.
inline std::vector<float> RoundingOfWeights(const BackendUnderTest& backend, AttentionShape shape,
                                            const SpanShape& span) {
  const bool rounds = backend.rounds_attention_weights && shape.dtype == kernels::DType::kBF16;
  if (!rounds) {
    return std::vector<float>(static_cast<size_t>(span.rows * shape.q_heads * shape.head_dim));
  }
  const std::unique_ptr<Backend> reference = kernels::NewReferenceBackend();
  shape.absolute_values = true;
  AttentionProblem magnitude(*reference, shape, {span});
  EXPECT_OK(magnitude.Run());
  std::vector<float> bound = magnitude.result().out;
  for (float& value : bound) value /= 256;
  return bound;
}

}  // namespace infllm::testing
