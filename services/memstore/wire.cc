#include "services/memstore/wire.h"

#include <algorithm>
#include <bit>

#include "memstore/crc32c.h"
#include "services/common/errors.h"

namespace infllm::services::wire {
namespace {

static_assert(std::endian::native == std::endian::little, "the wire form is little-endian");

uint32_t Extend(uint32_t crc, int64_t value) {
  return memstore::ExtendCrc32c(crc, std::as_bytes(std::span(&value, 1)));
}

uint32_t PlaceChecksum(const BlockPlace& place) {
  uint32_t crc = Extend(0, static_cast<int64_t>(place.context));
  crc = Extend(crc, place.layer);
  return Extend(crc, place.index);
}

}  // namespace

int64_t BlocksPerMessage(size_t block_bytes) {
  return std::max<int64_t>(1, static_cast<int64_t>(kTargetMessageBytes / block_bytes));
}

uint32_t IdsChecksum(std::initializer_list<uint64_t> ids) {
  return memstore::Crc32c(std::as_bytes(std::span(ids)));
}

uint32_t IdsChecksum(std::initializer_list<uint64_t> ids, const infllm::v1::Geometry& geometry) {
  const int64_t fields[] = {geometry.layers(),   geometry.q_heads(),      geometry.kv_heads(),
                            geometry.head_dim(), geometry.block_tokens(), geometry.dtype()};
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

absl::StatusOr<memstore::Geometry> FromProto(const infllm::v1::Geometry& proto) {
  memstore::Geometry geometry{.layers = proto.layers(),
                              .q_heads = proto.q_heads(),
                              .kv_heads = proto.kv_heads(),
                              .head_dim = proto.head_dim(),
                              .block_tokens = proto.block_tokens()};
  switch (proto.dtype()) {
    case infllm::v1::DTYPE_F32:
      geometry.dtype = kernels::DType::kF32;
      return geometry;
    case infllm::v1::DTYPE_BF16:
      geometry.dtype = kernels::DType::kBF16;
      return geometry;
    case infllm::v1::DTYPE_F16:
      geometry.dtype = kernels::DType::kF16;
      return geometry;
    default:
      return error::FieldMissing("geometry.dtype");
  }
}

infllm::v1::Geometry ToProto(const memstore::Geometry& geometry) {
  infllm::v1::Geometry proto;
  proto.set_layers(geometry.layers);
  proto.set_q_heads(geometry.q_heads);
  proto.set_kv_heads(geometry.kv_heads);
  proto.set_head_dim(geometry.head_dim);
  proto.set_block_tokens(geometry.block_tokens);
  switch (geometry.dtype) {
    case kernels::DType::kF32:
      proto.set_dtype(infllm::v1::DTYPE_F32);
      break;
    case kernels::DType::kBF16:
      proto.set_dtype(infllm::v1::DTYPE_BF16);
      break;
    case kernels::DType::kF16:
      proto.set_dtype(infllm::v1::DTYPE_F16);
      break;
  }
  return proto;
}

absl::StatusOr<kernels::Scoring> FromProto(infllm::v1::Scoring proto) {
  switch (proto) {
    case infllm::v1::SCORING_MEAN:
      return kernels::Scoring::kMean;
    case infllm::v1::SCORING_HEAD_VOTE:
      return kernels::Scoring::kHeadVote;
    default:
      return error::FieldMissing("scoring");
  }
}

infllm::v1::Scoring ToProto(kernels::Scoring scoring) {
  switch (scoring) {
    case kernels::Scoring::kMean:
      return infllm::v1::SCORING_MEAN;
    case kernels::Scoring::kHeadVote:
      return infllm::v1::SCORING_HEAD_VOTE;
  }
  return infllm::v1::SCORING_UNSPECIFIED;  // for the store to refuse
}

memstore::StoreStats FromProto(const infllm::v1::StatsResponse& proto) {
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

infllm::v1::StatsResponse ToProto(const memstore::StoreStats& stats) {
  infllm::v1::StatsResponse proto;
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
