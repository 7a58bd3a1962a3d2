// Blocks whose bytes say which they are.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "memstore/memory_store.h"

namespace infllm::memstore {

// One page per payload: 2 * 2 * 32 * 8 * 4 bytes.
inline constexpr Geometry kGeometry = {.layers = 2,
                                       .q_heads = 4,
                                       .kv_heads = 2,
                                       .head_dim = 8,
                                       .block_tokens = 32,
                                       .representative = kernels::RepresentativeKind::kMeanKey};
inline constexpr int64_t kPayloadBytes = 4096;

inline ContextOptions Options() {
  return {.tenant = "tenant",
          .model = {.hi = 0x0123456789abcdef, .lo = 42},
          .recipe = "n_local=4096 block_tokens=32",
          .geometry = kGeometry};
}

inline uint64_t SplitMix(uint64_t& state) {
  uint64_t x = state += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// `count` payloads of one layer, back to back. `flavour` tells contexts apart.
inline std::vector<std::byte> Payloads(int64_t layer, int64_t first, int64_t count = 1,
                                       int64_t flavour = 0, const Geometry& geometry = kGeometry) {
  const size_t words = geometry.payload_bytes() / 8;
  std::vector<uint64_t> all;
  for (int64_t block = first; block < first + count; ++block) {
    uint64_t state = static_cast<uint64_t>((flavour * 1000 + layer) * 1'000'000 + block);
    for (size_t i = 0; i < words; ++i) all.push_back(SplitMix(state));
  }
  const auto bytes = std::as_bytes(std::span(all));
  return {bytes.begin(), bytes.end()};
}

// Where payloads that lie back to back begin.
inline std::vector<std::span<const std::byte>> Spans(std::span<const std::byte> payloads,
                                                     const Geometry& geometry = kGeometry) {
  std::vector<std::span<const std::byte>> spans;
  for (; !payloads.empty(); payloads = payloads.subspan(spans.back().size())) {
    spans.push_back(payloads.first(std::min(payloads.size(), geometry.payload_bytes())));
  }
  return spans;
}

// Small whole numbers: scores are exact in any order of summation, and the same in bf16.
inline std::vector<float> WholeNumbers(uint64_t seed, size_t count) {
  std::vector<float> values(count);
  for (float& value : values) {
    value = static_cast<float>(static_cast<int64_t>(SplitMix(seed) % 17) - 8);
  }
  return values;
}

// Puts the least and the largest keys of one block's bounds in their order.
inline void OrderBounds(std::span<float> bounds) {
  const size_t half = bounds.size() / 2;
  for (size_t i = 0; i < half; ++i) {
    if (bounds[i] > bounds[half + i]) std::swap(bounds[i], bounds[half + i]);
  }
}

// `count` representatives of one layer, back to back. `flavour` tells contexts apart.
inline std::vector<float> Representatives(int64_t layer, int64_t first, int64_t count = 1,
                                          int64_t flavour = 0,
                                          const Geometry& geometry = kGeometry) {
  std::vector<float> all;
  for (int64_t block = first; block < first + count; ++block) {
    const auto seed = static_cast<uint64_t>((flavour * 1000 + layer) * 7'000'000 + block);
    std::vector<float> one = WholeNumbers(seed, geometry.representative_floats());
    if (geometry.representative == kernels::RepresentativeKind::kBounds) OrderBounds(one);
    all.insert(all.end(), one.begin(), one.end());
  }
  return all;
}

inline std::vector<float> Query(int64_t seed, const Geometry& geometry = kGeometry) {
  return WholeNumbers(static_cast<uint64_t>(99 * 7'000'000 + seed), geometry.query_floats());
}

inline std::vector<std::byte> Bytes(const BlockHandle& handle) {
  return {handle.payload().begin(), handle.payload().end()};
}

// Whole numbers of up to ten bits, so that bf16 rounds most of them and scores are still exact.
// Bounds are in order.
inline std::vector<float> WideRepresentatives(uint64_t seed, int64_t count,
                                              const Geometry& geometry) {
  const size_t floats = geometry.representative_floats();
  std::vector<float> values(count * floats);
  for (float& value : values) {
    value = static_cast<float>(static_cast<int64_t>(SplitMix(seed) % 1999) - 999);
  }
  if (geometry.representative == kernels::RepresentativeKind::kBounds) {
    for (int64_t block = 0; block < count; ++block) {
      OrderBounds(std::span(values).subspan(block * floats, floats));
    }
  }
  return values;
}

inline kernels::Backend& TestBackend() {
  static const auto backend = kernels::NewReferenceBackend();
  return *backend;
}

}  // namespace infllm::memstore
