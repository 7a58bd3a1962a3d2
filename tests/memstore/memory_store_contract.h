// What every MemoryStore keeps to, wherever it runs. To hold an implementation to it, link
// infllm_memory_store_contract into the test and instantiate:
//   INSTANTIATE_TEST_SUITE_P(Grpc, MemoryStoreContract, ::testing::Values(StoreFactory{...}),
//                            StoreFactoryName);
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "memstore/cold_store.h"
#include "memstore/memory_store.h"
#include "tests/memstore/test_blocks.h"

namespace infllm::memstore {

struct StoreSetup {
  int64_t ram_capacity_bytes = 1000 * kPayloadBytes;
  std::unique_ptr<ColdStore> cold;  // may be null
};

struct StoreFactory {
  std::string name;
  // The store owns whatever it needs to run, TestBackend() apart.
  std::function<std::unique_ptr<MemoryStore>(StoreSetup)> make;
};
inline std::string StoreFactoryName(const ::testing::TestParamInfo<StoreFactory>& info) {
  return info.param.name;
}
inline void PrintTo(const StoreFactory& factory, std::ostream* out) { *out << factory.name; }

class MemoryStoreContract : public ::testing::TestWithParam<StoreFactory> {
 protected:
  // Replaces the store by one with room for so many payloads.
  void Remake(int64_t ram_blocks, std::unique_ptr<ColdStore> cold) {
    store_.reset();
    store_ = GetParam().make(
        {.ram_capacity_bytes = ram_blocks * kPayloadBytes, .cold = std::move(cold)});
  }
  ContextId NewContext(const Geometry& geometry = kGeometry);
  ContextId Forked(const ContextId& parent);
  // A context whose layers all have so many blocks.
  ContextId WithBlocks(int64_t blocks, int64_t published);
  // A context whose layer 0 has blocks with these representatives.
  ContextId Filled(const Geometry& geometry, const std::vector<float>& representatives);
  // Blocks [first, first + count) of a layer: their payloads, and made selectable.
  absl::Status Append(ContextId id, int32_t layer, int64_t first, int64_t count,
                      int64_t flavour = 0);
  absl::Status Publish(ContextId id, int32_t layer, int64_t first, int64_t count,
                       int64_t flavour = 0);
  // Payloads that lie back to back.
  absl::Status AppendAll(ContextId id, int32_t layer, int64_t first,
                         std::span<const std::byte> payloads, const Geometry& geometry = kGeometry);
  // A Select of one query.
  absl::StatusOr<Selection> Select(int32_t layer, const SelectQuery& query,
                                   kernels::Scoring scoring = kernels::Scoring::kMean);
  absl::StatusOr<std::vector<Selection>> SelectAll(
      int32_t layer, const std::vector<SelectQuery>& queries,
      kernels::Scoring scoring = kernels::Scoring::kMean);
  // OK if the store gives back the bytes that Append() stored.
  absl::Status FetchAndCompare(ContextId id, int32_t layer, const std::vector<int64_t>& blocks,
                               int64_t flavour = 0);
  StoreStats Stats();

  std::unique_ptr<MemoryStore> store_ = GetParam().make({});
};

std::vector<int64_t> Indices(const Selection& selection);
// The selections are the same, bit for bit, payloads included.
void ExpectEqual(const Selection& actual, const Selection& expected);
// The k best of blocks [0, count) of Representatives(), ascending, by the mean scoring of
// kernels/ops/select.h.
std::vector<int64_t> BruteForce(int64_t layer, int64_t count, const std::vector<float>& query,
                                int64_t k, int64_t flavour = 0);

}  // namespace infllm::memstore
