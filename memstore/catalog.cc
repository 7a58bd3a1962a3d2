#include "memstore/catalog.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kernels/core/status_macros.h"
#include "memstore/cold_key.h"
#include "memstore/limits.h"
#include "memstore/validate.h"

namespace infllm::memstore {
namespace {

absl::Status NotCommitted(const ContextId& id) {
  return absl::NotFoundError(absl::StrCat("context ", ToString(id), " does not exist among those committed"));
}

uint64_t NumberOf(std::string_view key) {
  uint64_t number = 0;
  for (const char c : key) number = number << 8 | static_cast<unsigned char>(c);
  return number;
}

CommitRecord::Use ToRecord(const PartUse& use) {
  return {.part = use.part->info(), .blocks = use.blocks};
}

int64_t Total(std::span<const PartUse> uses) {
  int64_t blocks = 0;
  for (const PartUse& use : uses) blocks += use.blocks;
  return blocks;
}

}  // namespace

absl::StatusOr<uint64_t> Catalog::FirstFreeEntry(ColdStore& cold) {
  INFLLM_ASSIGN_OR_RETURN(const std::string last, cold.LastKey());
  return last.empty() ? 1 : NumberOf(last) + 1;
}

absl::StatusOr<std::unique_ptr<Catalog>> Catalog::Open(std::shared_ptr<TieredBlocks> tiers,
                                                       ContextRegistry& registry,
                                                       int64_t idle_representative_bytes) {
  std::unique_ptr<Catalog> catalog(
      new Catalog(std::move(tiers), registry, idle_representative_bytes));
  INFLLM_RETURN_IF_ERROR(catalog->ReadAll());
  INFLLM_RETURN_IF_ERROR(catalog->DeleteNobodys());
  return catalog;
}

absl::Status Catalog::ReadAll() {
  INFLLM_ASSIGN_OR_RETURN(const auto records, tiers_->cold()->ReadRecords());
  std::map<std::pair<std::pair<uint64_t, uint64_t>, uint64_t>, std::shared_ptr<const CommittedPart>>
      parts;  // by maker and first chunk
  const auto share = [&](const std::vector<CommitRecord::Use>& uses) {
    std::vector<PartUse> shared;
    for (const CommitRecord::Use& use : uses) {
      std::shared_ptr<const CommittedPart>& part =
          parts[{{use.part.maker.hi, use.part.maker.lo}, use.part.chunks.front()}];
      if (part == nullptr) part = std::make_shared<const CommittedPart>(tiers_, use.part);
      shared.push_back({.part = part, .blocks = use.blocks});
    }
    return shared;
  };
  const std::lock_guard lock(mu_);
  for (const auto& [key, value] : records) {
    INFLLM_ASSIGN_OR_RETURN(CommitRecord record, DecodeRecord(key, value));
    auto entry = std::make_shared<Entry>();
    entry->payloads = share(record.payloads);
    entry->representatives = share(record.representatives);
    entry->checkpoint = std::make_shared<const CommittedPart>(
        tiers_, PartInfo{.maker = record.info.id,
                         .entries = ToRuns(record.checkpoint),
                         .chunks = record.checkpoint});
    entry->checkpoint_bytes = record.checkpoint_bytes;
    entry->info = std::move(record.info);
    by_name_[{entry->info.options.tenant, entry->info.name}] = entry;
    by_id_[entry->info.id] = std::move(entry);
  }
  return absl::OkStatus();
}

// What a process has written that ended before it was committed, or dropped before it was deleted.
absl::Status Catalog::DeleteNobodys() {
  std::vector<EntryRun> owned;
  const std::lock_guard lock(mu_);
  for (const auto& [id, entry] : by_id_) {
    const auto add = [&](const PartUse& use) {
      const std::vector<EntryRun>& runs = use.part->info().entries;
      owned.insert(owned.end(), runs.begin(), runs.end());
    };
    std::ranges::for_each(entry->payloads, add);
    std::ranges::for_each(entry->representatives, add);
    add({.part = entry->checkpoint});
  }
  std::ranges::sort(owned, {}, &EntryRun::first);
  INFLLM_ASSIGN_OR_RETURN(const uint64_t end, FirstFreeEntry(*tiers_->cold()));
  uint64_t next = 0;
  const auto delete_before = [&](uint64_t limit) {
    if (next >= limit) return absl::OkStatus();
    return tiers_->cold()->DeleteRange(ColdKey(next).view(), ColdKey(limit).view());
  };
  for (const EntryRun& run : owned) {
    INFLLM_RETURN_IF_ERROR(delete_before(std::min(run.first, end)));
    next = std::max(next, run.first + run.count);
  }
  return delete_before(end);
}

Catalog::EntryPtr Catalog::FindEntry(const ContextId& id) const {
  const std::lock_guard lock(mu_);
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : found->second;
}

std::optional<CommittedContext> Catalog::Find(const ContextId& id) const {
  const EntryPtr entry = FindEntry(id);
  if (entry == nullptr) return std::nullopt;
  return entry->info;
}

absl::StatusOr<CommittedContext> Catalog::FindName(std::string_view tenant,
                                                   std::string_view name) const {
  const std::lock_guard lock(mu_);
  const auto found = by_name_.find(std::pair<std::string, std::string>(tenant, name));
  if (found != by_name_.end()) return found->second->info;
  return absl::NotFoundError(absl::StrCat("no context \"", absl::string_view(name.data(), name.size()),
                                          "\" is committed"));
}

std::vector<CommittedContext> Catalog::List(std::string_view tenant) const {
  std::vector<CommittedContext> all;
  const std::lock_guard lock(mu_);
  for (const auto& [key, entry] : by_name_) {
    if (key.first == tenant) all.push_back(entry->info);
  }
  return all;
}

int64_t Catalog::size() const {
  const std::lock_guard lock(mu_);
  return static_cast<int64_t>(by_id_.size());
}

// ---- Committing.

absl::Status Catalog::Repeated(const CommitRequest& request, const Entry& entry) const {
  if (entry.info.name == request.name && entry.info.blocks == request.blocks &&
      entry.info.tokens == static_cast<int64_t>(request.tokens.size())) {
    return absl::OkStatus();
  }
  return absl::AlreadyExistsError(absl::StrCat("context ", ToString(request.id),
                                               " is committed as \"", entry.info.name,
                                               "\": take another id"));
}

absl::Status Catalog::CheckName(const CommitRequest& request, const ContextOptions& options) const {
  const std::lock_guard lock(mu_);
  if (request.replaces == ContextId{} &&
      static_cast<int64_t>(by_id_.size()) >= limits::kMaxContexts) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the store has ", by_id_.size(),
                     " committed contexts, its limit: drop some that are not needed"));
  }
  const auto found = by_name_.find(std::pair(options.tenant, request.name));
  const ContextId has_it = found == by_name_.end() ? ContextId{} : found->second->info.id;
  if (has_it == request.replaces) return absl::OkStatus();
  return absl::AlreadyExistsError(
      absl::StrCat("the name \"", request.name, "\" ",
                   has_it == ContextId{} ? std::string("has been dropped meanwhile")
                                         : absl::StrCat("is that of context ", ToString(has_it)),
                   request.replaces == ContextId{}
                       ? std::string(": take another name or drop it")
                       : absl::StrCat(", not of ", ToString(request.replaces),
                                      ": another has committed under it")));
}

// The blocks of all layers of a snapshot, by layer.
absl::StatusOr<Catalog::Blocks> Catalog::BlocksOf(Context& snapshot, int64_t expected,
                                                  int64_t& published) {
  Blocks blocks(snapshot.layers.size());
  for (size_t i = 0; i < blocks.size(); ++i) {
    Context::Layer& layer = *snapshot.layers[i];
    const std::lock_guard lock(layer.mu);
    if (i == 0) published = layer.index.size();
    if (layer.blocks.size() != expected || layer.index.size() != published) {
      return absl::FailedPreconditionError(
          absl::StrCat("layer ", i, " of the context has ", layer.blocks.size(), " blocks, ",
                       layer.index.size(), " of them published; the commit is of ", expected,
                       ", and layer 0 has published ", published));
    }
    blocks[i].reserve(static_cast<size_t>(expected));
    for (int64_t b = 0; b < expected; ++b) blocks[i].push_back(layer.blocks[b]);
  }
  return blocks;
}

// The parts that hold the first of these blocks, as far as they are committed.
absl::StatusOr<std::vector<PartUse>> Catalog::UsesOf(const Blocks& blocks) const {
  std::vector<PartUse> uses;
  size_t committed = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    std::vector<PartUse> of_layer;
    size_t count = 0;
    for (; count < blocks[i].size(); ++count) {
      std::shared_ptr<const CommittedPart> part = tiers_->CommittedPartOf(*blocks[i][count]);
      if (part == nullptr) break;
      if (of_layer.empty() || of_layer.back().part != part) {
        of_layer.push_back({.part = std::move(part)});
      }
      ++of_layer.back().blocks;
    }
    const auto same = [](const PartUse& a, const PartUse& b) {
      return a.part == b.part && a.blocks == b.blocks;
    };
    if (i == 0) {
      uses = std::move(of_layer);
      committed = count;
    } else if (count != committed || !std::ranges::equal(uses, of_layer, same)) {
      return absl::FailedPreconditionError(
          "the context was forked while its layers had different blocks: it cannot be committed");
    }
  }
  return uses;
}

absl::Status Catalog::Commit(const CommitRequest& request, Context& context) {
  INFLLM_RETURN_IF_ERROR(Validate(request));
  const std::lock_guard committing(commit_mu_);
  if (const EntryPtr existing = FindEntry(request.id)) return Repeated(request, *existing);
  const ContextOptions& options = context.owner->options;
  INFLLM_RETURN_IF_ERROR(CheckName(request, options));
  const std::shared_ptr<Context> snapshot = ContextRegistry::Snapshot(context, request.id);
  const EntryPtr replaced = FindEntry(request.replaces);

  auto entry = std::make_shared<Entry>();
  CommitRecord record{.info = {.id = request.id,
                               .name = request.name,
                               .options = options,
                               .tokens = static_cast<int64_t>(request.tokens.size()),
                               .blocks = request.blocks,
                               .created_ms = absl::ToUnixMillis(absl::Now())}};
  INFLLM_ASSIGN_OR_RETURN(Blocks blocks,
                          BlocksOf(*snapshot, request.blocks, record.info.published));
  INFLLM_ASSIGN_OR_RETURN(entry->payloads, UsesOf(blocks));
  {
    const std::lock_guard lock(snapshot->mu);
    entry->representatives = snapshot->committed_representatives;
    record.info.base = replaced != nullptr && snapshot->base == request.replaces
                           ? replaced->info.base
                           : snapshot->base;
  }
  std::ranges::transform(entry->payloads, std::back_inserter(record.payloads), ToRecord);
  std::ranges::transform(entry->representatives, std::back_inserter(record.representatives),
                         ToRecord);

  // The entries that are new; if they were written in vain they are deleted.
  std::vector<EntryRun> written;
  absl::Cleanup forget = [&] { tiers_->ForgetEntries(written); };
  const int64_t first_block = Total(entry->payloads);
  if (first_block < request.blocks) {
    for (auto& layer : blocks) {
      layer.erase(layer.begin(), layer.begin() + first_block);
      INFLLM_RETURN_IF_ERROR(tiers_->Persist(layer));
    }
    INFLLM_ASSIGN_OR_RETURN(PartInfo part, WriteNumbers(request.id, first_block, blocks));
    const std::vector<EntryRun> chunks = ToRuns(part.chunks);
    written.insert(written.end(), chunks.begin(), chunks.end());
    record.payloads.push_back({.part = std::move(part), .blocks = request.blocks - first_block});
  }
  const int64_t first_published = Total(entry->representatives);
  if (first_published < record.info.published) {
    INFLLM_ASSIGN_OR_RETURN(PartInfo part, WriteRepresentatives(request.id, *snapshot,
                                                                first_published,
                                                                record.info.published));
    written.insert(written.end(), part.entries.begin(), part.entries.end());
    record.representatives.push_back(
        {.part = std::move(part), .blocks = record.info.published - first_published});
  }
  INFLLM_ASSIGN_OR_RETURN(record.checkpoint, WriteCheckpoint(request));
  const std::vector<EntryRun> checkpoint = ToRuns(record.checkpoint);
  written.insert(written.end(), checkpoint.begin(), checkpoint.end());
  record.checkpoint_bytes =
      static_cast<int64_t>(request.tokens.size_bytes() + request.state.size());
  const Geometry& geometry = options.geometry;
  record.info.stored_bytes =
      record.checkpoint_bytes +
      geometry.layers *
          (record.info.blocks * static_cast<int64_t>(geometry.payload_bytes()) +
           record.info.published * static_cast<int64_t>(geometry.representative_bytes()));

  // Then the record, which makes them count.
  std::vector<ColdStore::RecordChange> changes = {
      {.key = RecordKey(request.id), .value = EncodeRecord(record)}};
  if (replaced != nullptr) changes.push_back({.key = RecordKey(request.replaces), .value = {}});
  INFLLM_RETURN_IF_ERROR(tiers_->cold()->ChangeRecords(changes));
  std::move(forget).Cancel();

  if (record.payloads.size() > entry->payloads.size()) {
    const auto part = std::make_shared<const CommittedPart>(tiers_, record.payloads.back().part);
    for (const auto& layer : blocks) {
      tiers_->SetCommitted(layer, part);
      part->present.insert(part->present.end(), layer.begin(), layer.end());
    }
    entry->payloads.push_back({.part = part, .blocks = part->info().blocks});
  }
  if (record.representatives.size() > entry->representatives.size()) {
    const auto part =
        std::make_shared<const CommittedPart>(tiers_, record.representatives.back().part);
    entry->representatives.push_back({.part = part, .blocks = part->info().blocks});
  }
  entry->checkpoint = std::make_shared<const CommittedPart>(
      tiers_, PartInfo{.maker = request.id, .entries = checkpoint, .chunks = record.checkpoint});
  entry->checkpoint_bytes = record.checkpoint_bytes;
  entry->info = std::move(record.info);
  for (Context* one : {&context, snapshot.get()}) {
    const std::lock_guard lock(one->mu);
    one->base = request.id;
    one->committed_representatives = entry->representatives;
  }
  {
    const std::lock_guard loading(load_mu_);
    entry->loaded = snapshot;
    entry->last_use = ++clock_;
    const std::lock_guard lock(mu_);
    by_id_.erase(request.replaces);
    by_name_[{options.tenant, request.name}] = entry;
    by_id_[request.id] = entry;
  }
  LetGoOfIdle();
  return absl::OkStatus();
}

absl::StatusOr<PartInfo> Catalog::WriteNumbers(const ContextId& maker, int64_t first_block,
                                               const Blocks& blocks) {
  PartInfo part{.maker = maker,
                .first_block = first_block,
                .blocks = static_cast<int64_t>(blocks.front().size())};
  std::vector<uint64_t> all;
  const int64_t per_chunk = BlocksPerChunk(sizeof(uint64_t));
  for (size_t layer = 0; layer < blocks.size(); ++layer) {
    std::vector<uint64_t> numbers;
    for (const auto& block : blocks[layer]) numbers.push_back(tiers_->EntryOf(*block));
    all.insert(all.end(), numbers.begin(), numbers.end());
    std::vector<std::string> chunks;
    for (int64_t at = 0; at < part.blocks; at += per_chunk) {
      const auto count = static_cast<size_t>(std::min(per_chunk, part.blocks - at));
      chunks.push_back(EncodeChunk(
          {ChunkKind::kNumbers, maker, static_cast<int32_t>(layer), first_block + at},
          {reinterpret_cast<const char*>(numbers.data() + at), count * sizeof(uint64_t)}));
    }
    INFLLM_ASSIGN_OR_RETURN(const uint64_t first, tiers_->PutEntries(chunks));
    for (size_t i = 0; i < chunks.size(); ++i) part.chunks.push_back(first + i);
  }
  for (const auto& block : blocks.front()) {
    const ContextId& owner = block->owner()->context;
    if (part.owners.empty() || part.owners.back().owner != owner) {
      part.owners.push_back({.owner = owner});
    }
    ++part.owners.back().blocks;
  }
  all.insert(all.end(), part.chunks.begin(), part.chunks.end());
  part.entries = ToRuns(std::move(all));
  return part;
}

absl::StatusOr<PartInfo> Catalog::WriteRepresentatives(const ContextId& maker, Context& snapshot,
                                                       int64_t first_block, int64_t end) {
  PartInfo part{.maker = maker, .first_block = first_block, .blocks = end - first_block};
  const int64_t per_chunk = BlocksPerChunk(snapshot.geometry().representative_bytes());
  for (size_t i = 0; i < snapshot.layers.size(); ++i) {
    Context::Layer& layer = *snapshot.layers[i];
    for (int64_t at = first_block; at < end; at += per_chunk) {
      std::string kept;
      {
        const std::lock_guard lock(layer.mu);
        INFLLM_ASSIGN_OR_RETURN(kept, layer.index.Read(at, std::min(per_chunk, end - at)));
      }
      const std::string chunk = EncodeChunk(
          {ChunkKind::kRepresentatives, maker, static_cast<int32_t>(i), at}, kept);
      INFLLM_ASSIGN_OR_RETURN(const uint64_t number, tiers_->PutEntries({&chunk, 1}));
      part.chunks.push_back(number);
    }
  }
  part.entries = ToRuns(part.chunks);
  return part;
}

absl::StatusOr<std::vector<uint64_t>> Catalog::WriteCheckpoint(const CommitRequest& request) {
  std::string all(reinterpret_cast<const char*>(request.tokens.data()),
                  request.tokens.size_bytes());
  all.append(reinterpret_cast<const char*>(request.state.data()), request.state.size());
  std::vector<std::string> chunks;
  for (size_t at = 0; at < all.size(); at += kCheckpointChunkBytes) {
    chunks.push_back(EncodeChunk(
        {ChunkKind::kCheckpoint, request.id, 0, static_cast<int64_t>(at)},
        std::string_view(all).substr(at, kCheckpointChunkBytes)));
  }
  INFLLM_ASSIGN_OR_RETURN(const uint64_t first, tiers_->PutEntries(chunks));
  std::vector<uint64_t> numbers;
  for (size_t i = 0; i < chunks.size(); ++i) numbers.push_back(first + i);
  return numbers;
}

absl::Status Catalog::Drop(const ContextId& id) {
  const std::lock_guard committing(commit_mu_);
  const EntryPtr entry = FindEntry(id);
  if (entry == nullptr) return NotCommitted(id);
  INFLLM_RETURN_IF_ERROR(
      tiers_->cold()->ChangeRecords({{{.key = RecordKey(id), .value = {}}}}));
  const std::lock_guard lock(mu_);
  by_name_.erase(std::pair(entry->info.options.tenant, entry->info.name));
  by_id_.erase(id);
  return absl::OkStatus();
}

}  // namespace infllm::memstore
