// Random inputs of Backend::Attention in the memory of a backend, with the keys of a context cut
// into segments in any way: a key and its value depend on the seed and their position only.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "kernels/backend.h"
#include "kernels/core/dtype.h"
#include "tests/kernels/backends_under_test.h"

namespace infllm::testing {

// `tokens` consecutive keys from `position` on.
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

struct AttentionShape {
  int64_t tokens = 1;
  int64_t q_heads = 1;
  int64_t kv_heads = 1;
  int64_t head_dim = 8;
  int64_t first_position = 0;
  int64_t window = 1;
  kernels::DType kv_dtype = kernels::DType::kF32;
  bool far_unmasked = false;
  bool near_mass = false;
  bool far_mass = false;
  bool far_segment_mass = false;
  float logit_scale = 1;  // on top of 1 / sqrt(head_dim)
  uint32_t seed = 1;
};

// Owns every array of `args`, which stay valid while it is not moved.
class AttentionProblem {
 public:
  AttentionProblem(kernels::Backend& backend, const AttentionShape& shape,
                   const std::vector<Cut>& near, const std::vector<Cut>& far)
      : backend_(backend),
        shape_(shape),
        q_near_(backend, RandomNormal(QuerySize(), shape.seed * 2)),
        q_far_(backend, RandomNormal(QuerySize(), shape.seed * 2 + 1)),
        out_(backend, std::vector<float>(static_cast<size_t>(QuerySize()), -1234.0f)),
        far_segment_mass_(backend, std::vector<float>(far.size())) {
    near_ = MakeSegments(near, 3, shape.near_mass, near_pages_);
    far_ = MakeSegments(far, 4, shape.far_mass, far_pages_);
  }
  AttentionProblem(const AttentionProblem&) = delete;
  AttentionProblem& operator=(const AttentionProblem&) = delete;

  kernels::AttentionArgs args() const {
    kernels::AttentionArgs args;
    args.q_near = q_near_.data();
    args.q_far = q_far_.data();
    args.out = out_.data();
    args.near = near_;
    args.far = far_;
    if (shape_.far_segment_mass) args.far_segment_mass = far_segment_mass_.data();
    args.tokens = shape_.tokens;
    args.q_heads = shape_.q_heads;
    args.kv_heads = shape_.kv_heads;
    args.head_dim = shape_.head_dim;
    args.first_position = shape_.first_position;
    args.window = shape_.window;
    args.scale = shape_.logit_scale / std::sqrt(static_cast<float>(shape_.head_dim));
    args.kv_dtype = shape_.kv_dtype;
    args.far_unmasked = shape_.far_unmasked;
    return args;
  }

  std::vector<float> out() const { return out_.Get(); }
  std::vector<float> far_segment_mass() const { return far_segment_mass_.Get(); }
  // [q_heads, keys of all near (or far) segments in their order]; empty if not asked for.
  std::vector<float> near_mass() const { return MassOf(near_, near_pages_); }
  std::vector<float> far_mass() const { return MassOf(far_, far_pages_); }

 private:
  struct Page {
    std::unique_ptr<DeviceArray<uint8_t>> k, v;
    std::unique_ptr<DeviceArray<float>> mass;
  };

  int64_t QuerySize() const { return shape_.tokens * shape_.q_heads * shape_.head_dim; }

  std::vector<kernels::KvSegment> MakeSegments(const std::vector<Cut>& cuts, uint32_t stream,
                                               bool with_mass, std::vector<Page>& pages) {
    std::vector<kernels::KvSegment> segments;
    for (const Cut& cut : cuts) {
      // A page has room for more than the segment, so that strides differ from sizes.
      const int64_t head_stride =
          (cut.tokens + static_cast<int64_t>(segments.size() % 3)) * shape_.head_dim;
      const size_t bytes =
          static_cast<size_t>(shape_.kv_heads * head_stride) * kernels::SizeOf(shape_.kv_dtype);
      std::vector<uint8_t> k(bytes), v(bytes);
      for (int64_t i = 0; i < cut.tokens; ++i) {
        std::minstd_rand random(shape_.seed * 7919u + stream * 104729u +
                                static_cast<uint32_t>(cut.position + i) * 2654435761u);
        std::uniform_real_distribution<float> uniform(-1.7f, 1.7f);  // of variance one
        for (int64_t h = 0; h < shape_.kv_heads; ++h) {
          for (int64_t d = 0; d < shape_.head_dim; ++d) {
            const int64_t at = h * head_stride + i * shape_.head_dim + d;
            Put(k, at, uniform(random));
            Put(v, at, uniform(random));
          }
        }
      }
      const int64_t mass_stride = cut.tokens + 5;
      Page page;
      page.k = std::make_unique<DeviceArray<uint8_t>>(backend_, k);
      page.v = std::make_unique<DeviceArray<uint8_t>>(backend_, v);
      if (with_mass) {
        page.mass = std::make_unique<DeviceArray<float>>(
            backend_, std::vector<float>(static_cast<size_t>(shape_.q_heads * mass_stride)));
      }
      segments.push_back({page.k->data(), page.v->data(), head_stride, cut.position, cut.tokens,
                          with_mass ? page.mass->data() : nullptr, mass_stride});
      pages.push_back(std::move(page));
    }
    return segments;
  }

  void Put(std::vector<uint8_t>& bytes, int64_t at, float value) const {
    if (shape_.kv_dtype == kernels::DType::kBF16) {
      const kernels::BF16 rounded(value);
      std::memcpy(bytes.data() + at * 2, &rounded, 2);
    } else {
      std::memcpy(bytes.data() + at * 4, &value, 4);
    }
  }

  std::vector<float> MassOf(const std::vector<kernels::KvSegment>& segments,
                            const std::vector<Page>& pages) const {
    std::vector<std::vector<float>> of_segment;
    for (const Page& page : pages) {
      of_segment.push_back(page.mass == nullptr ? std::vector<float>() : page.mass->Get());
    }
    std::vector<float> mass;
    for (int64_t h = 0; h < shape_.q_heads; ++h) {
      for (size_t s = 0; s < segments.size(); ++s) {
        if (of_segment[s].empty()) continue;
        const auto row = of_segment[s].begin() + h * segments[s].mass_stride;
        mass.insert(mass.end(), row, row + segments[s].tokens);
      }
    }
    return mass;
  }

  kernels::Backend& backend_;
  AttentionShape shape_;
  DeviceArray<float> q_near_, q_far_, out_, far_segment_mass_;
  std::vector<Page> near_pages_, far_pages_;
  std::vector<kernels::KvSegment> near_, far_;
};

}  // namespace infllm::testing
