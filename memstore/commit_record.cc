#include "memstore/commit_record.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "memstore/byte_io.h"
#include "memstore/crc32c.h"
#include "memstore/limits.h"
#include "memstore/validate.h"

namespace infllm::memstore {
namespace {

constexpr std::string_view kKeyPrefix = "context/";
constexpr uint64_t kRecordMagic = 0x43524d4c4c464e49;  // "INFLLMRC"
constexpr uint64_t kChunkMagic = 0x48434d4c4c464e49;   // "INFLLMCH"
// Magic, version, checksum of what follows.
constexpr size_t kRecordHeaderBytes = 16;
constexpr size_t kTargetChunkBytes = size_t{1} << 20;

uint32_t Checksum(std::string_view bytes) { return Crc32c(std::as_bytes(std::span(bytes))); }

void Put(ByteWriter& out, const ContextId& id) {
  out.Put(id.hi);
  out.Put(id.lo);
}
ContextId GetId(ByteReader& in) {
  const auto hi = in.Get<uint64_t>();
  return {.hi = hi, .lo = in.Get<uint64_t>()};
}

void Put(ByteWriter& out, const Geometry& g) {
  for (const int32_t size : {g.layers, g.q_heads, g.kv_heads, g.head_dim, g.block_tokens}) {
    out.Put(size);
  }
  out.Put(static_cast<uint32_t>(g.dtype));
  out.Put(static_cast<uint32_t>(g.representative));
}
Geometry GetGeometry(ByteReader& in) {
  Geometry g;
  for (int32_t* size : {&g.layers, &g.q_heads, &g.kv_heads, &g.head_dim, &g.block_tokens}) {
    *size = in.Get<int32_t>();
  }
  // What no enum has stays so.
  const auto get_enum = [&] { return std::min<uint32_t>(in.Get<uint32_t>(), UINT8_MAX); };
  g.dtype = static_cast<kernels::DType>(get_enum());
  g.representative = static_cast<kernels::RepresentativeKind>(get_enum());
  return g;
}

void Put(ByteWriter& out, const CommitRecord::Use& use) {
  const PartInfo& part = use.part;
  out.Put(use.blocks);
  Put(out, part.maker);
  out.Put(part.first_block);
  out.Put(part.blocks);
  out.Put(uint64_t{part.entries.size()});
  for (const EntryRun& run : part.entries) {
    out.Put(run.first);
    out.Put(run.count);
  }
  out.Put(uint64_t{part.chunks.size()});
  for (const uint64_t number : part.chunks) out.Put(number);
  out.Put(uint64_t{part.owners.size()});
  for (const OwnerRun& run : part.owners) {
    Put(out, run.owner);
    out.Put(run.blocks);
  }
}
CommitRecord::Use GetUse(ByteReader& in) {
  CommitRecord::Use use;
  PartInfo& part = use.part;
  use.blocks = in.Get<int64_t>();
  part.maker = GetId(in);
  part.first_block = in.Get<int64_t>();
  part.blocks = in.Get<int64_t>();
  part.entries.resize(in.GetCount(2 * sizeof(uint64_t)));
  for (EntryRun& run : part.entries) {
    run.first = in.Get<uint64_t>();
    run.count = in.Get<uint64_t>();
  }
  part.chunks.resize(in.GetCount(sizeof(uint64_t)));
  for (uint64_t& number : part.chunks) number = in.Get<uint64_t>();
  part.owners.resize(in.GetCount(3 * sizeof(uint64_t)));
  for (OwnerRun& run : part.owners) {
    run.owner = GetId(in);
    run.blocks = in.Get<int64_t>();
  }
  return use;
}

void Put(ByteWriter& out, const std::vector<CommitRecord::Use>& uses) {
  out.Put(uint64_t{uses.size()});
  for (const CommitRecord::Use& use : uses) Put(out, use);
}
std::vector<CommitRecord::Use> GetUses(ByteReader& in) {
  std::vector<CommitRecord::Use> uses(in.GetCount(8 * sizeof(uint64_t)));
  for (CommitRecord::Use& use : uses) use = GetUse(in);
  return uses;
}

// Whether the uses are one behind the other, `blocks` in all, each with all its chunks.
bool AreWhole(std::span<const CommitRecord::Use> uses, int64_t blocks, int32_t layers,
              size_t bytes_per_block, bool payloads) {
  int64_t next = 0;
  for (const CommitRecord::Use& use : uses) {
    const PartInfo& part = use.part;
    if (part.first_block != next || use.blocks < 1 || use.blocks > part.blocks) return false;
    if (part.blocks > (int64_t{1} << 40)) return false;
    next += use.blocks;
    const int64_t chunks = ChunksOf(part.blocks, bytes_per_block) * layers;
    if (static_cast<int64_t>(part.chunks.size()) != chunks) return false;
    int64_t owned = 0;
    for (const OwnerRun& run : part.owners) {
      if (run.blocks < 1 || run.blocks > part.blocks) return false;
      owned += run.blocks;
    }
    if (owned != (payloads ? part.blocks : 0)) return false;
    if (part.entries.empty()) return false;
    uint64_t after = 0;  // the run before
    for (const EntryRun& run : part.entries) {
      if (run.count == 0 || run.first < after || run.first + run.count < run.first) return false;
      after = run.first + run.count;
    }
    const auto owned_entry = [&](uint64_t number) {
      const auto next_run = std::ranges::upper_bound(part.entries, number, {}, &EntryRun::first);
      return next_run != part.entries.begin() &&
             number - std::prev(next_run)->first < std::prev(next_run)->count;
    };
    if (!std::ranges::all_of(part.chunks, owned_entry)) return false;
  }
  return next == blocks;
}

absl::Status Damaged(std::string_view what) {
  return absl::DataLossError(absl::StrCat("the record of a committed context is damaged: ",
                                          absl::string_view(what.data(), what.size())));
}

std::string ChunkHeader(const ChunkPlace& place, std::string_view content) {
  ByteWriter out;
  out.Put(kChunkMagic);
  out.Put(kCommitFormatVersion);
  out.Put(static_cast<uint32_t>(place.kind));
  Put(out, place.maker);
  out.Put(place.first);
  out.Put(place.layer);
  out.Put(uint32_t{0});
  out.Put(uint64_t{content.size()});
  out.Put(uint32_t{0});
  std::string header = out.Take();
  const uint32_t crc = ExtendCrc32c(Checksum(header), std::as_bytes(std::span(content)));
  header.append(reinterpret_cast<const char*>(&crc), sizeof(crc));
  INFLLM_CHECK(header.size() == kChunkHeaderBytes);
  return header;
}

}  // namespace

std::string RecordKey(const ContextId& id) {
  ByteWriter out;
  Put(out, id);
  return std::string(kKeyPrefix) + out.Take();
}

std::string EncodeRecord(const CommitRecord& record) {
  ByteWriter body;
  const CommittedContext& info = record.info;
  Put(body, info.id);
  body.PutText(info.name);
  body.PutText(info.options.tenant);
  body.Put(info.options.model.hi);
  body.Put(info.options.model.lo);
  body.PutText(info.options.recipe);
  Put(body, info.options.geometry);
  for (const int64_t value :
       {info.tokens, info.blocks, info.published, info.created_ms, info.stored_bytes}) {
    body.Put(value);
  }
  Put(body, info.base);
  Put(body, record.payloads);
  Put(body, record.representatives);
  body.Put(uint64_t{record.checkpoint.size()});
  for (const uint64_t number : record.checkpoint) body.Put(number);
  body.Put(record.checkpoint_bytes);
  body.Put(info.reusable.exec_block);
  body.Put(info.reusable.tokens);
  body.Put(uint64_t{record.prefix.size()});
  for (const PrefixHash& hash : record.prefix) body.Put(hash);
  const std::string bytes = body.Take();

  ByteWriter out;
  out.Put(kRecordMagic);
  out.Put(kCommitFormatVersion);
  out.Put(Checksum(bytes));
  return out.Take() + bytes;
}

absl::StatusOr<CommitRecord> DecodeRecord(std::string_view key, std::string_view value) {
  ByteReader header(value);
  if (header.Get<uint64_t>() != kRecordMagic) return Damaged("it does not begin like one");
  const auto version = header.Get<uint32_t>();
  const auto crc = header.Get<uint32_t>();
  if (!header.ok()) return Damaged("it is too short");
  if (version != kCommitFormatVersion) {
    return Damaged(absl::StrCat("its version is ", version, ", not ", kCommitFormatVersion));
  }
  value.remove_prefix(kRecordHeaderBytes);
  if (Checksum(value) != crc) return Damaged("its checksum does not fit");

  ByteReader in(value);
  CommitRecord record;
  CommittedContext& info = record.info;
  info.id = GetId(in);
  info.name = in.GetText();
  info.options.tenant = in.GetText();
  info.options.model.hi = in.Get<uint64_t>();
  info.options.model.lo = in.Get<uint64_t>();
  info.options.recipe = in.GetText();
  info.options.geometry = GetGeometry(in);
  for (int64_t* number :
       {&info.tokens, &info.blocks, &info.published, &info.created_ms, &info.stored_bytes}) {
    *number = in.Get<int64_t>();
  }
  info.base = GetId(in);
  record.payloads = GetUses(in);
  record.representatives = GetUses(in);
  record.checkpoint.resize(in.GetCount(sizeof(uint64_t)));
  for (uint64_t& number : record.checkpoint) number = in.Get<uint64_t>();
  record.checkpoint_bytes = in.Get<int64_t>();
  info.reusable.exec_block = in.Get<int32_t>();
  info.reusable.tokens = in.Get<int64_t>();
  record.prefix.resize(in.GetCount(sizeof(PrefixHash)));
  for (PrefixHash& hash : record.prefix) hash = in.Get<PrefixHash>();
  if (!in.AtEnd()) return Damaged("its fields do not fill it");

  if (key != RecordKey(info.id)) return Damaged("it is that of another context");
  if (!Validate(info.options).ok() || !ValidateName(info.name).ok()) {
    return Damaged("its name or options are none");
  }
  const Geometry& g = info.options.geometry;
  const int64_t bytes = record.checkpoint_bytes;
  if (info.tokens < 0 || bytes < 0 || bytes > static_cast<int64_t>(limits::kMaxCheckpointBytes) ||
      info.tokens > bytes / int64_t{sizeof(int32_t)} ||
      record.checkpoint.size() != (bytes + kCheckpointChunkBytes - 1) / kCheckpointChunkBytes) {
    return Damaged("its checkpoint has not the size of its tokens");
  }
  const Reusable& reusable = info.reusable;
  if (!Validate(reusable, info.tokens).ok() ||
      static_cast<int64_t>(record.prefix.size()) !=
          (reusable.tokens == 0 ? 0 : reusable.tokens / reusable.exec_block)) {
    return Damaged("it has not one hash for each exec block");
  }
  if (!AreWhole(record.payloads, info.blocks, g.layers, sizeof(uint64_t), true) ||
      info.published > info.blocks ||
      !AreWhole(record.representatives, info.published, g.layers, g.representative_bytes(),
                false)) {
    return Damaged("its parts are not whole");
  }
  return record;
}

int64_t BlocksPerChunk(size_t bytes_per_block) {
  return static_cast<int64_t>(std::max<size_t>(1, kTargetChunkBytes / bytes_per_block));
}

std::string EncodeChunk(const ChunkPlace& place, std::string_view content) {
  return ChunkHeader(place, content).append(content);
}

absl::StatusOr<std::string_view> DecodeChunk(const ChunkPlace& place, std::string_view encoded) {
  if (encoded.size() >= kChunkHeaderBytes) {
    const std::string_view content = encoded.substr(kChunkHeaderBytes);
    if (encoded.starts_with(ChunkHeader(place, content))) return content;
  }
  return absl::DataLossError(absl::StrCat("a part of committed context ", ToString(place.maker),
                                          " (layer ", place.layer, ", from ", place.first,
                                          ") is damaged"));
}

std::vector<EntryRun> ToRuns(std::vector<uint64_t> numbers) {
  std::sort(numbers.begin(), numbers.end());
  std::vector<EntryRun> runs;
  for (const uint64_t number : numbers) {
    if (!runs.empty() && runs.back().first + runs.back().count == number) {
      ++runs.back().count;
    } else {
      runs.push_back({.first = number, .count = 1});
    }
  }
  return runs;
}

}  // namespace infllm::memstore
