// What both ends of infllm.v1.MemoryStore must agree on: limits, enums, checksums.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>

#include "absl/status/statusor.h"
#include "infllm/v1/memory_store.pb.h"
#include "memstore/block.h"
#include "memstore/limits.h"
#include "memstore/memory_store.h"

namespace infllm::services::wire {

// One block of the largest size and what is said about it; gRPC's own default is 4 MiB.
inline constexpr int kMaxMessageBytes =
    static_cast<int>(memstore::limits::kMaxPayloadBytes) + (1 << 20);
// Senders put blocks in a message until it holds this much: larger gains nothing, and both ends
// keep a whole message in memory.
inline constexpr size_t kTargetMessageBytes = size_t{4} << 20;
// How many blocks of `block_bytes` go in one message; at least one.
int64_t BlocksPerMessage(size_t block_bytes);

// The index `n` blocks on. Wraps where the sum has no place: the store refuses such indices.
inline int64_t Later(int64_t index, size_t n) {
  return static_cast<int64_t>(static_cast<uint64_t>(index) + n);
}

// Where a block is; part of every checksum, so that a good block in the wrong place is noticed.
struct BlockPlace {
  memstore::ContextId context{};
  int32_t layer = 0;
  int64_t index = 0;
};

// Of a repeated field or bytes.
template <typename Field>
auto AsSpan(const Field& field) {
  return std::span(field.data(), static_cast<size_t>(field.size()));
}

// The checksums that memory_store.proto states.
uint32_t IdsChecksum(std::initializer_list<uint64_t> ids);
uint32_t IdsChecksum(std::initializer_list<uint64_t> ids, const infllm::v1::Geometry& geometry);
uint32_t BlockChecksum(const BlockPlace& place, std::span<const std::byte> content);
uint32_t SelectedChecksum(const BlockPlace& place, float score, std::span<const std::byte> payload);
uint32_t QueryChecksum(memstore::ContextId context, int32_t layer,
                       const memstore::SelectRequest& request);

// INVALID_ARGUMENT: an enum has no known value. Sizes are the store's to judge.
absl::StatusOr<memstore::Geometry> FromProto(const infllm::v1::Geometry& proto);
infllm::v1::Geometry ToProto(const memstore::Geometry& geometry);
absl::StatusOr<kernels::Scoring> FromProto(infllm::v1::Scoring proto);
infllm::v1::Scoring ToProto(kernels::Scoring scoring);
memstore::StoreStats FromProto(const infllm::v1::StatsResponse& proto);
infllm::v1::StatsResponse ToProto(const memstore::StoreStats& stats);

}  // namespace infllm::services::wire
