#include "services/memstore/wire.h"

#include <algorithm>
#include <bit>
#include <string_view>

#include "kernels/core/status_macros.h"
#include "memstore/crc32c.h"
#include "services/common/errors.h"

namespace infllm::services::wire {
namespace {

namespace pb = infllm::v1;

static_assert(std::endian::native == std::endian::little, "the wire form is little-endian");

uint32_t Extend(uint32_t crc, int64_t value) {
  return memstore::ExtendCrc32c(crc, std::as_bytes(std::span(&value, 1)));
}

uint32_t PlaceChecksum(const BlockPlace& place) {
  uint32_t crc = Extend(0, static_cast<int64_t>(place.context));
  crc = Extend(crc, place.layer);
  return Extend(crc, place.index);
}

// The values of an enum on either side.
template <typename Proto, typename Ours>
struct Pair {
  Proto proto;
  Ours ours;
};
constexpr Pair<pb::DType, kernels::DType> kDTypes[] = {
    {pb::DTYPE_F32, kernels::DType::kF32},
    {pb::DTYPE_BF16, kernels::DType::kBF16},
};
constexpr Pair<pb::RepresentativeKind, kernels::RepresentativeKind> kRepresentatives[] = {
    {pb::REPRESENTATIVE_KIND_MEAN_KEY, kernels::RepresentativeKind::kMeanKey},
    {pb::REPRESENTATIVE_KIND_BOUNDS, kernels::RepresentativeKind::kBounds},
};
constexpr Pair<pb::Scoring, kernels::Scoring> kScorings[] = {
    {pb::SCORING_MEAN, kernels::Scoring::kMean},
    {pb::SCORING_HEAD_VOTE, kernels::Scoring::kHeadVote},
};

template <typename Proto, typename Ours, size_t n>
absl::StatusOr<Ours> EnumFromProto(const Pair<Proto, Ours> (&known)[n], Proto proto,
                                   std::string_view field) {
  for (const auto& pair : known) {
    if (pair.proto == proto) return pair.ours;
  }
  return error::UnknownValue(field, proto);
}

// What the wire has no word for becomes 0, unspecified, for the store to refuse.
template <typename Proto, typename Ours, size_t n>
Proto EnumToProto(const Pair<Proto, Ours> (&known)[n], Ours ours) {
  for (const auto& pair : known) {
    if (pair.ours == ours) return pair.proto;
  }
  return Proto{};
}

}  // namespace

int64_t BlocksPerMessage(size_t block_bytes) {
  return std::max<int64_t>(1, static_cast<int64_t>(kTargetMessageBytes / block_bytes));
}

uint32_t IdsChecksum(std::initializer_list<uint64_t> ids) {
  return memstore::Crc32c(std::as_bytes(std::span(ids)));
}

uint32_t IdsChecksum(std::initializer_list<uint64_t> ids, const pb::Geometry& geometry) {
  const int64_t fields[] = {geometry.layers(),        geometry.q_heads(),      geometry.kv_heads(),
                            geometry.head_dim(),      geometry.block_tokens(), geometry.dtype(),
                            geometry.representative()};
  return memstore::ExtendCrc32c(IdsChecksum(ids), std::as_bytes(std::span(fields)));
}

uint32_t BlockChecksum(const BlockPlace& place, std::span<const std::byte> content) {
  return memstore::ExtendCrc32c(PlaceChecksum(place), content);
}

uint32_t SelectedChecksum(const BlockPlace& place, float score,
                          std::span<const std::byte> payload) {
  const uint32_t crc =
      memstore::ExtendCrc32c(PlaceChecksum(place), std::as_bytes(std::span(&score, 1)));
  return memstore::ExtendCrc32c(crc, payload);
}

uint32_t QueryChecksum(memstore::ContextId context, int32_t layer,
                       const memstore::SelectRequest& request) {
  uint32_t crc = Extend(0, static_cast<int64_t>(context));
  crc = Extend(crc, layer);
  crc = Extend(crc, request.k);
  crc = Extend(crc, static_cast<int64_t>(ToProto(request.scoring)));
  crc = memstore::ExtendCrc32c(crc, std::as_bytes(request.have));
  return memstore::ExtendCrc32c(crc, std::as_bytes(request.query));
}

absl::StatusOr<memstore::Geometry> FromProto(const pb::Geometry& proto) {
  INFLLM_ASSIGN_OR_RETURN(const kernels::DType dtype,
                          EnumFromProto(kDTypes, proto.dtype(), "geometry.dtype"));
  INFLLM_ASSIGN_OR_RETURN(
      const kernels::RepresentativeKind representative,
      EnumFromProto(kRepresentatives, proto.representative(), "geometry.representative"));
  return memstore::Geometry{.layers = proto.layers(),
                            .q_heads = proto.q_heads(),
                            .kv_heads = proto.kv_heads(),
                            .head_dim = proto.head_dim(),
                            .block_tokens = proto.block_tokens(),
                            .dtype = dtype,
                            .representative = representative};
}

pb::Geometry ToProto(const memstore::Geometry& geometry) {
  pb::Geometry proto;
  proto.set_layers(geometry.layers);
  proto.set_q_heads(geometry.q_heads);
  proto.set_kv_heads(geometry.kv_heads);
  proto.set_head_dim(geometry.head_dim);
  proto.set_block_tokens(geometry.block_tokens);
  proto.set_dtype(EnumToProto(kDTypes, geometry.dtype));
  proto.set_representative(EnumToProto(kRepresentatives, geometry.representative));
  return proto;
}

absl::StatusOr<kernels::Scoring> FromProto(pb::Scoring proto) {
  return EnumFromProto(kScorings, proto, "scoring");
}

pb::Scoring ToProto(kernels::Scoring scoring) { return EnumToProto(kScorings, scoring); }

memstore::StoreStats FromProto(const pb::StatsResponse& proto) {
  return {.contexts = proto.contexts(),
          .blocks = proto.blocks(),
          .blocks_ram = proto.blocks_ram(),
          .blocks_cold = proto.blocks_cold(),
          .ram_bytes = proto.ram_bytes(),
          .ram_capacity_bytes = proto.ram_capacity_bytes(),
          .cold_bytes = proto.cold_bytes(),
          .representative_bytes = proto.representative_bytes(),
          .selects = proto.selects(),
          .ram_hits = proto.ram_hits(),
          .cold_hits = proto.cold_hits(),
          .corrupt_blocks = proto.corrupt_blocks()};
}

pb::StatsResponse ToProto(const memstore::StoreStats& stats) {
  pb::StatsResponse proto;
  proto.set_contexts(stats.contexts);
  proto.set_blocks(stats.blocks);
  proto.set_blocks_ram(stats.blocks_ram);
  proto.set_blocks_cold(stats.blocks_cold);
  proto.set_ram_bytes(stats.ram_bytes);
  proto.set_ram_capacity_bytes(stats.ram_capacity_bytes);
  proto.set_cold_bytes(stats.cold_bytes);
  proto.set_representative_bytes(stats.representative_bytes);
  proto.set_selects(stats.selects);
  proto.set_ram_hits(stats.ram_hits);
  proto.set_cold_hits(stats.cold_hits);
  proto.set_corrupt_blocks(stats.corrupt_blocks);
  return proto;
}

}  // namespace infllm::services::wire
