#include "services/memstore/wire.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string_view>

#include "kernels/core/status_macros.h"
#include "memstore/crc32c.h"
#include "services/common/errors.h"

namespace infllm::services::wire {
namespace {

namespace pb = infllm::v1;

static_assert(std::endian::native == std::endian::little, "the wire form is little-endian");

// A checksum as it grows, value by value.
class Sum {
 public:
  Sum& Add(int64_t value) { return Add(std::as_bytes(std::span(&value, 1))); }
  Sum& Add(std::span<const std::byte> bytes) {
    crc_ = memstore::ExtendCrc32c(crc_, bytes);
    return *this;
  }
  Sum& Add(float value) { return Add(std::as_bytes(std::span(&value, 1))); }
  Sum& Add(const memstore::ContextId& context) {
    return Add(static_cast<int64_t>(context.hi)).Add(static_cast<int64_t>(context.lo));
  }
  Sum& Add(const std::string& bytes) { return Add(std::as_bytes(std::span(bytes))); }
  Sum& Add(const pb::Geometry& g) {
    const int64_t fields[] = {g.layers(),       g.q_heads(), g.kv_heads(),      g.head_dim(),
                              g.block_tokens(), g.dtype(),   g.representative()};
    return Add(std::as_bytes(std::span(fields)));
  }
  // How many, then what.
  template <typename Field>
  Sum& AddCounted(const Field& field) {
    return Add(static_cast<int64_t>(field.size())).Add(std::as_bytes(AsSpan(field)));
  }
  uint32_t crc() const { return crc_; }

 private:
  uint32_t crc_ = 0;
};

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

std::string ToProto(const memstore::ContextId& context) {
  const uint64_t words[] = {context.hi, context.lo};
  return std::string(reinterpret_cast<const char*>(words), sizeof(words));
}

absl::StatusOr<memstore::ContextId> ContextFromProto(std::string_view field,
                                                     const std::string& bytes) {
  uint64_t words[2];
  if (bytes.size() != sizeof(words)) {
    return error::WrongSize(field, static_cast<int64_t>(bytes.size()), sizeof(words));
  }
  std::memcpy(words, bytes.data(), sizeof(words));
  return memstore::ContextId{.hi = words[0], .lo = words[1]};
}

uint32_t Checksum(const pb::CreateRequest& request) {
  return Sum()
      .Add(request.context())
      .Add(static_cast<int64_t>(request.fingerprint_hi()))
      .Add(static_cast<int64_t>(request.fingerprint_lo()))
      .AddCounted(request.recipe())
      .Add(request.geometry())
      .Add(request.lease())
      .crc();
}

uint32_t Checksum(const pb::SelectRequest& request) {
  Sum sum;
  sum.Add(int64_t{request.layer()}).Add(int64_t{request.scoring()});
  sum.Add(int64_t{request.queries_size()});
  for (const pb::SelectRequest::Query& query : request.queries()) {
    sum.Add(query.context()).Add(int64_t{query.k()}).Add(int64_t{query.end_block()});
    sum.AddCounted(query.have()).AddCounted(query.query());
  }
  return sum.crc();
}

uint32_t Checksum(const pb::ForkRequest& request) {
  Sum sum;
  sum.Add(int64_t{request.parts_size()});
  for (const pb::ForkRequest::Part& part : request.parts()) {
    sum.Add(part.context()).Add(int64_t{part.blocks()});
  }
  return sum.Add(request.child()).Add(request.lease()).crc();
}

uint32_t Checksum(const pb::CommitRequest& request) {
  return Sum()
      .Add(request.context())
      .Add(request.id())
      .AddCounted(request.name())
      .Add(request.replaces())
      .Add(request.blocks())
      .Add(int64_t{request.exec_block()})
      .Add(request.reusable_tokens())
      .AddCounted(request.tokens())
      .AddCounted(request.state())
      .crc();
}

uint32_t Checksum(const pb::CommittedContext& context) {
  return Sum()
      .Add(context.id())
      .AddCounted(context.name())
      .Add(static_cast<int64_t>(context.fingerprint_hi()))
      .Add(static_cast<int64_t>(context.fingerprint_lo()))
      .AddCounted(context.recipe())
      .Add(context.geometry())
      .Add(context.tokens())
      .Add(context.blocks())
      .Add(context.published())
      .Add(context.base())
      .Add(context.created_ms())
      .Add(context.stored_bytes())
      .Add(int64_t{context.exec_block()})
      .Add(context.reusable_tokens())
      .crc();
}

uint32_t Checksum(const pb::FindPrefixRequest& request) {
  return Sum()
      .Add(static_cast<int64_t>(request.fingerprint_hi()))
      .Add(static_cast<int64_t>(request.fingerprint_lo()))
      .AddCounted(request.recipe())
      .Add(request.geometry())
      .Add(int64_t{request.exec_block()})
      .AddCounted(request.tokens())
      .crc();
}

uint32_t Checksum(const pb::FindPrefixResponse& response) {
  return Sum().Add(int64_t{response.context().crc32c()}).Add(response.tokens()).crc();
}

uint32_t CheckpointChecksum(const memstore::ContextId& id,
                            const pb::ReadCheckpointResponse& response) {
  return Sum().Add(id).AddCounted(response.tokens()).AddCounted(response.state()).crc();
}

uint32_t DescribeChecksum(const memstore::ContextId& context,
                          const pb::DescribeResponse& response) {
  return Sum()
      .Add(context)
      .Add(response.geometry())
      .Add(static_cast<int64_t>(response.fingerprint_hi()))
      .Add(static_cast<int64_t>(response.fingerprint_lo()))
      .AddCounted(response.recipe())
      .crc();
}

uint32_t BlockChecksum(const BlockPlace& place, std::span<const std::byte> content) {
  return Sum().Add(place.context).Add(int64_t{place.layer}).Add(place.index).Add(content).crc();
}

uint32_t AnswerChecksum(const memstore::ContextId& context, int32_t layer, int64_t query,
                        const pb::SelectResponse::Answer& answer) {
  Sum sum;
  sum.Add(context).Add(int64_t{layer}).Add(query).Add(int64_t{answer.code()});
  sum.AddCounted(answer.message()).Add(int64_t{answer.blocks_size()});
  for (const pb::SelectResponse::Block& block : answer.blocks()) {
    sum.Add(int64_t{block.index()}).Add(block.score());
    sum.Add(block.has_payload() ? int64_t{block.payload()} : int64_t{-1});
  }
  return sum.crc();
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

absl::StatusOr<memstore::CommittedContext> FromProto(const pb::CommittedContext& proto) {
  memstore::CommittedContext context{
      .name = proto.name(),
      .tokens = proto.tokens(),
      .blocks = proto.blocks(),
      .published = proto.published(),
      .reusable = {.exec_block = proto.exec_block(), .tokens = proto.reusable_tokens()},
      .created_ms = proto.created_ms(),
      .stored_bytes = proto.stored_bytes()};
  INFLLM_ASSIGN_OR_RETURN(context.id, ContextFromProto("id", proto.id()));
  INFLLM_ASSIGN_OR_RETURN(context.base, ContextFromProto("base", proto.base()));
  INFLLM_ASSIGN_OR_RETURN(context.options, OptionsFromProto(proto));
  return context;
}

pb::CommittedContext ToProto(const memstore::CommittedContext& context) {
  pb::CommittedContext proto;
  proto.set_id(ToProto(context.id));
  proto.set_name(context.name);
  OptionsToProto(context.options, proto);
  proto.set_tokens(context.tokens);
  proto.set_blocks(context.blocks);
  proto.set_published(context.published);
  proto.set_exec_block(context.reusable.exec_block);
  proto.set_reusable_tokens(context.reusable.tokens);
  proto.set_base(ToProto(context.base));
  proto.set_created_ms(context.created_ms);
  proto.set_stored_bytes(context.stored_bytes);
  proto.set_crc32c(Checksum(proto));
  return proto;
}

memstore::StoreStats FromProto(const pb::StatsResponse& proto) {
  return {.contexts = proto.contexts(),
          .committed = proto.committed(),
          .blocks = proto.blocks(),
          .blocks_ram = proto.blocks_ram(),
          .blocks_cold = proto.blocks_cold(),
          .ram_bytes = proto.ram_bytes(),
          .ram_capacity_bytes = proto.ram_capacity_bytes(),
          .pinned_bytes = proto.pinned_bytes(),
          .dirty_bytes = proto.dirty_bytes(),
          .cold_bytes = proto.cold_bytes(),
          .representative_bytes = proto.representative_bytes(),
          .bookkeeping_bytes = proto.bookkeeping_bytes(),
          .selects = proto.selects(),
          .ram_hits = proto.ram_hits(),
          .cold_hits = proto.cold_hits(),
          .demotions = proto.demotions(),
          .evictions = proto.evictions(),
          .corrupt_blocks = proto.corrupt_blocks(),
          .disk_free_bytes = proto.disk_free_bytes()};
}

pb::StatsResponse ToProto(const memstore::StoreStats& stats) {
  pb::StatsResponse proto;
  proto.set_contexts(stats.contexts);
  proto.set_committed(stats.committed);
  proto.set_blocks(stats.blocks);
  proto.set_blocks_ram(stats.blocks_ram);
  proto.set_blocks_cold(stats.blocks_cold);
  proto.set_ram_bytes(stats.ram_bytes);
  proto.set_ram_capacity_bytes(stats.ram_capacity_bytes);
  proto.set_pinned_bytes(stats.pinned_bytes);
  proto.set_dirty_bytes(stats.dirty_bytes);
  proto.set_cold_bytes(stats.cold_bytes);
  proto.set_representative_bytes(stats.representative_bytes);
  proto.set_bookkeeping_bytes(stats.bookkeeping_bytes);
  proto.set_selects(stats.selects);
  proto.set_ram_hits(stats.ram_hits);
  proto.set_cold_hits(stats.cold_hits);
  proto.set_demotions(stats.demotions);
  proto.set_evictions(stats.evictions);
  proto.set_corrupt_blocks(stats.corrupt_blocks);
  proto.set_disk_free_bytes(stats.disk_free_bytes);
  return proto;
}

}  // namespace infllm::services::wire
