// What both ends of infllm.v1.MemoryStore must agree on: limits, enums, checksums.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "infllm/v1/memory_store.pb.h"
#include "kernels/core/status_macros.h"
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
  memstore::ContextId context;
  int32_t layer = 0;
  int64_t index = 0;
};

// Of a repeated field or bytes.
template <typename Field>
auto AsSpan(const Field& field) {
  return std::span(field.data(), static_cast<size_t>(field.size()));
}

// The 16 bytes of a context.
std::string ToProto(const memstore::ContextId& context);
// INVALID_ARGUMENT: names `field`, which has another size.
absl::StatusOr<memstore::ContextId> ContextFromProto(std::string_view field,
                                                     const std::string& bytes);

// The checksums that memory_store.proto states. Those of a whole message take it as it is, so that
// damage is told from nonsense.
uint32_t Checksum(const infllm::v1::CreateRequest& request);
uint32_t Checksum(const infllm::v1::SelectRequest& request);
uint32_t Checksum(const infllm::v1::ForkRequest& request);
uint32_t Checksum(const infllm::v1::CommitRequest& request);
uint32_t Checksum(const infllm::v1::CommittedContext& context);
uint32_t Checksum(const infllm::v1::FindPrefixRequest& request);
uint32_t Checksum(const infllm::v1::FindPrefixResponse& response);
// Of the answer about `id`.
uint32_t CheckpointChecksum(const memstore::ContextId& id,
                            const infllm::v1::ReadCheckpointResponse& response);
uint32_t DescribeChecksum(const memstore::ContextId& context,
                          const infllm::v1::DescribeResponse& response);
uint32_t BlockChecksum(const BlockPlace& place, std::span<const std::byte> content);
// Of the answer to query number `query`.
uint32_t AnswerChecksum(const memstore::ContextId& context, int32_t layer, int64_t query,
                        const infllm::v1::SelectResponse::Answer& answer);

// INVALID_ARGUMENT: an enum has no known value. Sizes are the store's to judge.
absl::StatusOr<memstore::Geometry> FromProto(const infllm::v1::Geometry& proto);
infllm::v1::Geometry ToProto(const memstore::Geometry& geometry);
// Between options, but for the tenant, and the messages that have them. As for a geometry.
template <typename Message>
absl::StatusOr<memstore::ContextOptions> OptionsFromProto(const Message& proto) {
  INFLLM_ASSIGN_OR_RETURN(const memstore::Geometry geometry, FromProto(proto.geometry()));
  return memstore::ContextOptions{
      .model = {.hi = proto.fingerprint_hi(), .lo = proto.fingerprint_lo()},
      .recipe = proto.recipe(),
      .geometry = geometry};
}
template <typename Message>
void OptionsToProto(const memstore::ContextOptions& options, Message& proto) {
  proto.set_fingerprint_hi(options.model.hi);
  proto.set_fingerprint_lo(options.model.lo);
  proto.set_recipe(options.recipe);
  *proto.mutable_geometry() = ToProto(options.geometry);
}
absl::StatusOr<kernels::Scoring> FromProto(infllm::v1::Scoring proto);
infllm::v1::Scoring ToProto(kernels::Scoring scoring);
absl::StatusOr<memstore::CommittedContext> FromProto(const infllm::v1::CommittedContext& proto);
infllm::v1::CommittedContext ToProto(const memstore::CommittedContext& context);
memstore::StoreStats FromProto(const infllm::v1::StatsResponse& proto);
infllm::v1::StatsResponse ToProto(const memstore::StoreStats& stats);

}  // namespace infllm::services::wire
