#include "memstore/catalog.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kernels/core/status_macros.h"
#include "memstore/cold_key.h"
#include "memstore/limits.h"
#include "memstore/validate.h"

namespace infllm::memstore {
namespace {

uint64_t NumberOf(std::string_view key) {
  uint64_t number = 0;
  for (const char c : key) number = number << 8 | static_cast<unsigned char>(c);
  return number;
}

CommitRecord::Use ToRecord(const PartUse& use) {
  return {.part = use.part->info(), .blocks = use.blocks};
}

absl::Status ForkedApart() {
  return absl::FailedPreconditionError(
      "the context was forked while its layers had different blocks: it cannot be committed");
}

// Entries that are being written. They are deleted unless they come to be used.
class FreshEntries {
 public:
  explicit FreshEntries(TieredBlocks& tiers) : tiers_(tiers) {}
  ~FreshEntries() {
    if (!kept_) tiers_.ForgetEntries(ToRuns(numbers_));
  }
  FreshEntries(const FreshEntries&) = delete;
  FreshEntries& operator=(const FreshEntries&) = delete;

  absl::Status Put(const ChunkPlace& place, std::string_view content) {
    numbers_.reserve(numbers_.size() + 1);
    INFLLM_ASSIGN_OR_RETURN(const uint64_t number, tiers_.PutEntry(EncodeChunk(place, content)));
    numbers_.push_back(number);
    return absl::OkStatus();
  }
  const std::vector<uint64_t>& numbers() const { return numbers_; }
  void Keep() { kept_ = true; }

 private:
  TieredBlocks& tiers_;
  std::vector<uint64_t> numbers_;
  bool kept_ = false;
};

int64_t Total(std::span<const PartUse> uses) {
  int64_t blocks = 0;
  for (const PartUse& use : uses) blocks += use.blocks;
  return blocks;
}

}  // namespace

absl::StatusOr<uint64_t> Catalog::FirstFreeEntry(ColdStore& cold) {
  INFLLM_ASSIGN_OR_RETURN(const std::string last, cold.LastKey());
  uint64_t next = last.empty() ? 1 : NumberOf(last) + 1;
  // Also of entries that have been lost: their numbers are not given again.
  INFLLM_ASSIGN_OR_RETURN(const auto records, cold.ReadRecords());
  for (const auto& [key, value] : records) {
    INFLLM_ASSIGN_OR_RETURN(const CommitRecord record, DecodeRecord(key, value));
    const auto after = [&](const CommitRecord::Use& use) {
      const EntryRun& run = use.part.entries.back();
      next = std::max(next, run.first + run.count);
    };
    std::ranges::for_each(record.payloads, after);
    std::ranges::for_each(record.representatives, after);
    for (const uint64_t number : record.checkpoint) next = std::max(next, number + 1);
  }
  return next;
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
  const auto share =
      [&](const std::vector<CommitRecord::Use>& uses) -> absl::StatusOr<std::vector<PartUse>> {
    std::vector<PartUse> shared;
    for (const CommitRecord::Use& use : uses) {
      std::shared_ptr<const CommittedPart>& part =
          parts[{{use.part.maker.hi, use.part.maker.lo}, use.part.chunks.front()}];
      if (part == nullptr) part = std::make_shared<const CommittedPart>(tiers_, use.part);
      if (part->info() != use.part) {
        return absl::DataLossError("the records of two committed contexts contradict each other");
      }
      shared.push_back({.part = part, .blocks = use.blocks});
    }
    return shared;
  };
  const std::lock_guard lock(mu_);
  for (const auto& [key, value] : records) {
    INFLLM_ASSIGN_OR_RETURN(CommitRecord record, DecodeRecord(key, value));
    auto entry = std::make_shared<Entry>();
    INFLLM_ASSIGN_OR_RETURN(entry->payloads, share(record.payloads));
    INFLLM_ASSIGN_OR_RETURN(entry->representatives, share(record.representatives));
    entry->checkpoint =
        std::make_shared<const CommittedPart>(tiers_, PartInfo{.maker = record.info.id,
                                                               .entries = ToRuns(record.checkpoint),
                                                               .chunks = record.checkpoint});
    entry->checkpoint_bytes = record.checkpoint_bytes;
    entry->prefix = std::move(record.prefix);
    entry->info = std::move(record.info);
    if (!by_name_.emplace(std::pair(entry->info.options.tenant, entry->info.name), entry).second) {
      return absl::DataLossError(
          absl::StrCat("two committed contexts have the name \"", entry->info.name, "\""));
    }
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
  if (has_it == ContextId{}) {
    return absl::AlreadyExistsError(absl::StrCat(
        "the name \"", request.name, "\" has no context any more: somebody has dropped it"));
  }
  return absl::AlreadyExistsError(
      absl::StrCat("the name \"", request.name, "\" belongs to another context, ", ToString(has_it),
                   request.replaces == ContextId{} ? ": take another name or drop it"
                                                   : ": somebody else has committed under it"));
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
      return ForkedApart();
    }
  }
  return uses;
}

absl::Status Catalog::Commit(const CommitRequest& request, Context& context) {
  INFLLM_RETURN_IF_ERROR(Validate(request));
  const std::lock_guard committing(commit_mu_);
  if (const EntryPtr existing = FindEntry(request.id)) return Repeated(request, *existing);
  if (context.joined) {
    return absl::FailedPreconditionError(
        "the context begins with several others: it cannot be committed");
  }
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
                               .reusable = request.reusable,
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
  // Entries first. From here on their parts own them: they go if nothing comes to use them.
  const int64_t first_block = Total(entry->payloads);
  if (first_block < request.blocks) {
    for (auto& layer : blocks) {
      layer.erase(layer.begin(), layer.begin() + first_block);
      INFLLM_RETURN_IF_ERROR(tiers_->Persist(layer));
    }
    INFLLM_ASSIGN_OR_RETURN(const std::shared_ptr<const CommittedPart> part,
                            WriteNumbers(request.id, first_block, blocks));
    entry->payloads.push_back({.part = part, .blocks = part->info().blocks});
  }
  const int64_t first_published = Total(entry->representatives);
  if (first_published < record.info.published) {
    INFLLM_ASSIGN_OR_RETURN(
        const std::shared_ptr<const CommittedPart> part,
        WriteRepresentatives(request.id, *snapshot, first_published, record.info.published));
    entry->representatives.push_back({.part = part, .blocks = part->info().blocks});
  }
  if (!context.committed) {
    const std::lock_guard lock(context.mu);
    context.committed_representatives = entry->representatives;
  }
  {
    const std::lock_guard lock(snapshot->mu);
    snapshot->committed_representatives = entry->representatives;
  }
  INFLLM_ASSIGN_OR_RETURN(entry->checkpoint, WriteCheckpoint(request));
  std::ranges::transform(entry->payloads, std::back_inserter(record.payloads), ToRecord);
  std::ranges::transform(entry->representatives, std::back_inserter(record.representatives),
                         ToRecord);
  record.checkpoint = entry->checkpoint->info().chunks;
  record.checkpoint_bytes =
      static_cast<int64_t>(request.tokens.size_bytes() + request.state.size());
  const Geometry& geometry = options.geometry;
  record.info.stored_bytes =
      record.checkpoint_bytes +
      geometry.layers *
          (record.info.blocks * static_cast<int64_t>(geometry.payload_bytes()) +
           record.info.published * static_cast<int64_t>(geometry.representative_bytes()));
  entry->checkpoint_bytes = record.checkpoint_bytes;
  if (const Reusable& reusable = request.reusable; reusable.tokens > 0) {
    record.prefix = PrefixHashes(options, reusable.exec_block,
                                 request.tokens.first(static_cast<size_t>(reusable.tokens)));
  }
  entry->prefix = record.prefix;
  entry->info = record.info;

  // Then the record, which makes them count: one that could not be read again must not be written.
  ColdStore::RecordChange change{.key = RecordKey(request.id), .value = EncodeRecord(record)};
  if (const auto read = DecodeRecord(change.key, *change.value); !read.ok()) {
    return absl::InternalError(
        absl::StrCat("the commit is not one that could be read again: ", read.status().message()));
  }
  std::vector<ColdStore::RecordChange> changes = {std::move(change)};
  if (replaced != nullptr) changes.push_back({.key = RecordKey(request.replaces), .value = {}});
  INFLLM_RETURN_IF_ERROR(ChangeRecords(std::move(changes), {entry, replaced}));

  // The disk has it: an exception now may end the process, but not leave it between the two.
  [&]() noexcept {
    if (!context.committed) {
      const std::lock_guard lock(context.mu);
      context.base = request.id;
    }
    const std::lock_guard lock(mu_);
    entry->loaded = snapshot;
    entry->last_use = ++clock_;
    by_id_.erase(request.replaces);
    by_name_[{options.tenant, request.name}] = entry;
    by_id_[request.id] = entry;
  }();
  LetGoOfIdle();
  return absl::OkStatus();
}

// A change that fails may be on the disk nonetheless. So what it would have named, or forgotten, is
// kept until another change has taken it back.
absl::Status Catalog::ChangeRecords(std::vector<ColdStore::RecordChange> changes,
                                    std::initializer_list<EntryPtr> in_doubt) {
  std::vector<ColdStore::RecordChange> all;  // what is taken back first: it may be tried again
  for (const EntryPtr& entry : in_doubt_) {
    if (!Has(entry->info.id)) all.push_back({.key = RecordKey(entry->info.id), .value = {}});
  }
  std::ranges::move(changes, std::back_inserter(all));
  in_doubt_.reserve(in_doubt_.size() + in_doubt.size());
  absl::Status status = tiers_->cold()->ChangeRecords(all);
  if (status.ok()) {
    in_doubt_.clear();
  } else {
    std::ranges::copy_if(in_doubt, std::back_inserter(in_doubt_),
                         [](const EntryPtr& entry) { return entry != nullptr; });
  }
  return status;
}

absl::StatusOr<std::shared_ptr<const CommittedPart>> Catalog::WriteNumbers(const ContextId& maker,
                                                                           int64_t first_block,
                                                                           const Blocks& blocks) {
  PartInfo info{.maker = maker,
                .first_block = first_block,
                .blocks = static_cast<int64_t>(blocks.front().size())};
  for (const auto& block : blocks.front()) {
    const ContextId& owner = block->owner()->context;
    if (info.owners.empty() || info.owners.back().owner != owner) {
      info.owners.push_back({.owner = owner});
    }
    ++info.owners.back().blocks;
  }
  FreshEntries fresh(*tiers_);
  std::vector<uint64_t> all;
  const int64_t per_chunk = BlocksPerChunk(sizeof(uint64_t));
  for (size_t layer = 0; layer < blocks.size(); ++layer) {
    std::vector<uint64_t> numbers;
    for (size_t i = 0; i < blocks[layer].size(); ++i) {
      const StoredBlock& block = *blocks[layer][i];
      if (block.owner()->context != blocks[0][i]->owner()->context) return ForkedApart();
      numbers.push_back(tiers_->EntryOf(block));
    }
    all.insert(all.end(), numbers.begin(), numbers.end());
    for (int64_t at = 0; at < info.blocks; at += per_chunk) {
      const auto count = static_cast<size_t>(std::min(per_chunk, info.blocks - at));
      const std::string_view content(reinterpret_cast<const char*>(numbers.data() + at),
                                     count * sizeof(uint64_t));
      INFLLM_RETURN_IF_ERROR(fresh.Put(
          {ChunkKind::kNumbers, maker, static_cast<int32_t>(layer), first_block + at}, content));
    }
  }
  info.chunks = fresh.numbers();
  all.insert(all.end(), info.chunks.begin(), info.chunks.end());
  info.entries = ToRuns(std::move(all));
  // The payloads' entries become the part's only when it exists and the blocks hold it.
  const auto part = std::make_shared<CommittedPart>(tiers_, std::move(info));
  for (const auto& layer : blocks) {
    part->present.insert(part->present.end(), layer.begin(), layer.end());
  }
  fresh.Keep();
  for (const auto& layer : blocks) tiers_->SetCommitted(layer, part);
  return part;
}

absl::StatusOr<std::shared_ptr<const CommittedPart>> Catalog::WriteRepresentatives(
    const ContextId& maker, Context& snapshot, int64_t first_block, int64_t end) {
  FreshEntries fresh(*tiers_);
  const int64_t per_chunk = BlocksPerChunk(snapshot.geometry().representative_bytes());
  for (size_t i = 0; i < snapshot.layers.size(); ++i) {
    Context::Layer& layer = *snapshot.layers[i];
    for (int64_t at = first_block; at < end; at += per_chunk) {
      std::string kept;
      {
        const std::lock_guard lock(layer.mu);
        INFLLM_ASSIGN_OR_RETURN(kept, layer.index.Read(at, std::min(per_chunk, end - at)));
      }
      INFLLM_RETURN_IF_ERROR(
          fresh.Put({ChunkKind::kRepresentatives, maker, static_cast<int32_t>(i), at}, kept));
    }
  }
  const auto part =
      std::make_shared<const CommittedPart>(tiers_, PartInfo{.maker = maker,
                                                             .first_block = first_block,
                                                             .blocks = end - first_block,
                                                             .entries = ToRuns(fresh.numbers()),
                                                             .chunks = fresh.numbers()});
  fresh.Keep();
  return part;
}

absl::StatusOr<std::shared_ptr<const CommittedPart>> Catalog::WriteCheckpoint(
    const CommitRequest& request) {
  std::string all(reinterpret_cast<const char*>(request.tokens.data()),
                  request.tokens.size_bytes());
  all.append(reinterpret_cast<const char*>(request.state.data()), request.state.size());
  FreshEntries fresh(*tiers_);
  for (size_t at = 0; at < all.size(); at += kCheckpointChunkBytes) {
    INFLLM_RETURN_IF_ERROR(
        fresh.Put({ChunkKind::kCheckpoint, request.id, 0, static_cast<int64_t>(at)},
                  std::string_view(all).substr(at, kCheckpointChunkBytes)));
  }
  const auto part = std::make_shared<const CommittedPart>(
      tiers_,
      PartInfo{.maker = request.id, .entries = ToRuns(fresh.numbers()), .chunks = fresh.numbers()});
  fresh.Keep();
  return part;
}

absl::Status Catalog::Drop(const ContextId& id) {
  const std::lock_guard committing(commit_mu_);
  const EntryPtr entry = FindEntry(id);
  if (entry == nullptr) return NotCommitted(id);
  INFLLM_RETURN_IF_ERROR(ChangeRecords({{.key = RecordKey(id), .value = {}}}, {entry}));
  const std::lock_guard lock(mu_);
  by_name_.erase(std::pair(entry->info.options.tenant, entry->info.name));
  by_id_.erase(id);
  return absl::OkStatus();
}

}  // namespace infllm::memstore
