// How the catalog finds committed contexts and brings them back.
#include <algorithm>
#include <cstring>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "memstore/catalog.h"
#include "memstore/cold_key.h"

namespace infllm::memstore {
namespace {

// Of chunks that are read together: enough to keep a disk busy.
constexpr size_t kReadTogether = 16;

// Parts that both begin with.
size_t CommonParts(std::span<const PartUse> a, std::span<const PartUse> b) {
  size_t common = 0;
  while (common < a.size() && common < b.size() && a[common].part == b[common].part &&
         a[common].blocks == b[common].blocks) {
    ++common;
  }
  return common;
}

}  // namespace

absl::StatusOr<CommittedContext> Catalog::FindName(std::string_view tenant,
                                                   std::string_view name) const {
  const std::lock_guard lock(mu_);
  const auto found = by_name_.find(std::pair<std::string, std::string>(tenant, name));
  if (found != by_name_.end()) return found->second->info;
  return absl::NotFoundError(absl::StrCat(
      "no context \"", absl::string_view(name.data(), name.size()), "\" is committed"));
}

std::vector<CommittedContext> Catalog::List(std::string_view tenant) const {
  std::vector<CommittedContext> all;
  const std::lock_guard lock(mu_);
  for (const auto& [key, entry] : by_name_) {
    if (key.first == tenant) all.push_back(entry->info);
  }
  return all;
}

absl::StatusOr<Prefix> Catalog::FindPrefix(const ContextOptions& options, int32_t exec_block,
                                           std::span<const int32_t> tokens) const {
  std::vector<EntryPtr> candidates;
  {
    const std::lock_guard lock(mu_);
    for (auto at = by_name_.lower_bound(std::pair(options.tenant, std::string()));
         at != by_name_.end() && at->first.first == options.tenant; ++at) {
      const CommittedContext& info = at->second->info;
      if (info.reusable.tokens == 0 || info.reusable.exec_block != exec_block) continue;
      if (info.options == options) candidates.push_back(at->second);
    }
  }
  // Most begin otherwise: then one hash tells.
  const auto hash = [&](size_t most) {
    return PrefixHashes(options, exec_block, tokens.first(std::min(most, tokens.size())));
  };
  std::vector<PrefixHash> wanted = hash(static_cast<size_t>(exec_block));
  int64_t longest = 0;
  std::erase_if(candidates, [&](const EntryPtr& entry) {
    if (wanted.empty() || entry->prefix.front() != wanted.front()) return true;
    longest = std::max(longest, entry->info.reusable.tokens);
    return false;
  });
  const Entry* best = nullptr;
  size_t blocks = 0;
  wanted = hash(static_cast<size_t>(longest));
  for (const EntryPtr& entry : candidates) {
    // Each hash stands for all tokens before it: those that agree come first.
    const std::span all(entry->prefix.data(), std::min(entry->prefix.size(), wanted.size()));
    const auto end = std::ranges::partition_point(
        all, [&](const PrefixHash& have) { return have == wanted[&have - all.data()]; });
    const auto same = static_cast<size_t>(end - all.begin());
    if (best == nullptr || same > blocks) {
      best = entry.get();
      blocks = same;
    }
  }
  if (best == nullptr) return absl::NotFoundError("no committed context begins with these tokens");
  return Prefix{.context = best->info, .tokens = static_cast<int64_t>(blocks) * exec_block};
}

absl::StatusOr<std::vector<std::string>> Catalog::ReadChunks(
    std::span<const uint64_t> numbers, std::span<const ChunkPlace> places,
    std::span<const size_t> content_bytes) const {
  std::vector<std::string> contents(numbers.size());
  for (size_t begin = 0; begin < numbers.size(); begin += kReadTogether) {
    const size_t count = std::min(kReadTogether, numbers.size() - begin);
    std::vector<ColdKey> keys(numbers.begin() + begin, numbers.begin() + begin + count);
    std::vector<std::string_view> views;
    std::vector<std::span<std::byte>> outs;
    for (size_t i = 0; i < count; ++i) {
      views.push_back(keys[i].view());
      contents[begin + i].resize(kChunkHeaderBytes + content_bytes[begin + i]);
      outs.push_back(std::as_writable_bytes(std::span(contents[begin + i])));
    }
    const std::vector<absl::Status> statuses = tiers_->cold()->Get(views, outs);
    for (size_t i = 0; i < count; ++i) {
      const ChunkPlace& place = places[begin + i];
      if (!statuses[i].ok()) {
        const bool lost = absl::IsNotFound(statuses[i]);
        return absl::Status(lost ? absl::StatusCode::kDataLoss : statuses[i].code(),
                            absl::StrCat("reading a part of committed context ",
                                         ToString(place.maker), ": ", statuses[i].message()));
      }
      INFLLM_RETURN_IF_ERROR(DecodeChunk(place, contents[begin + i]).status());
      contents[begin + i].erase(0, kChunkHeaderBytes);
    }
  }
  return contents;
}

absl::StatusOr<Checkpoint> Catalog::ReadCheckpoint(const ContextId& id) const {
  const EntryPtr entry = FindEntry(id);
  if (entry == nullptr) return NotCommitted(id);
  const std::vector<uint64_t>& numbers = entry->checkpoint->info().chunks;
  std::vector<ChunkPlace> places;
  std::vector<size_t> sizes;
  for (size_t i = 0; i < numbers.size(); ++i) {
    const size_t at = i * kCheckpointChunkBytes;
    places.push_back({ChunkKind::kCheckpoint, id, 0, static_cast<int64_t>(at)});
    sizes.push_back(
        std::min(kCheckpointChunkBytes, static_cast<size_t>(entry->checkpoint_bytes) - at));
  }
  INFLLM_ASSIGN_OR_RETURN(const std::vector<std::string> contents,
                          ReadChunks(numbers, places, sizes));
  std::string all;
  for (const std::string& content : contents) all += content;
  Checkpoint checkpoint;
  checkpoint.tokens.resize(static_cast<size_t>(entry->info.tokens));
  const size_t token_bytes = checkpoint.tokens.size() * sizeof(int32_t);
  std::memcpy(checkpoint.tokens.data(), all.data(), token_bytes);
  const auto state = std::as_bytes(std::span(all)).subspan(token_bytes);
  checkpoint.state.assign(state.begin(), state.end());
  return checkpoint;
}

absl::StatusOr<std::shared_ptr<Context>> Catalog::Load(const ContextId& id) {
  const EntryPtr entry = FindEntry(id);
  if (entry == nullptr) return NotCommitted(id);
  const auto loaded = [&] {
    const std::lock_guard lock(mu_);
    entry->last_use = ++clock_;
    return entry->loaded;
  };
  if (std::shared_ptr<Context> context = loaded()) return context;
  std::shared_ptr<Context> context;
  {
    const std::lock_guard loading(load_mu_);
    if ((context = loaded())) return context;  // another call has been faster
    INFLLM_ASSIGN_OR_RETURN(context, ReadContext(*entry));
    const std::lock_guard lock(mu_);
    entry->loaded = context;
  }
  LetGoOfIdle();
  return context;
}

absl::Status Catalog::NotCommitted(const ContextId& id) {
  return absl::NotFoundError(
      absl::StrCat("context ", ToString(id), " does not exist among those committed"));
}

absl::StatusOr<std::shared_ptr<Context>> Catalog::ReadContext(const Entry& entry) {
  const ContextOptions& options = entry.info.options;
  const Geometry& geometry = options.geometry;
  // At most: some of it may be shared with contexts that are loaded.
  INFLLM_RETURN_IF_ERROR(tiers_->MakeRoom(
      Context::BytesOf(options) +
      geometry.layers *
          (entry.info.blocks * TieredBlocks::kBlockBytes +
           entry.info.published * static_cast<int64_t>(geometry.representative_bytes()))));
  auto context = std::make_shared<Context>(
      /*is_committed=*/true,
      std::make_shared<const BlockOwner>(BlockOwner{.context = entry.info.id, .options = options}),
      registry_.memory());
  std::vector<BlockTable> tables(static_cast<size_t>(options.geometry.layers));
  for (const PartUse& use : entry.payloads) {
    INFLLM_RETURN_IF_ERROR(ReadBlocks(use, options, tables));
  }
  size_t shared = 0;
  INFLLM_ASSIGN_OR_RETURN(std::vector<BlockIndex> indices, SharedIndices(entry, shared));
  for (const PartUse& use : std::span(entry.representatives).subspan(shared)) {
    INFLLM_RETURN_IF_ERROR(ReadRepresentatives(use, options.geometry, indices));
  }
  for (size_t i = 0; i < tables.size(); ++i) {
    context->layers.push_back(
        std::make_unique<Context::Layer>(std::move(tables[i]), std::move(indices[i])));
  }
  const std::lock_guard lock(context->mu);
  context->base = entry.info.base;
  context->committed_representatives = entry.representatives;
  return context;
}

// Blocks that another context has brought back already are the same objects.
absl::Status Catalog::ReadBlocks(const PartUse& use, const ContextOptions& options,
                                 std::vector<BlockTable>& tables) {
  const PartInfo& part = use.part->info();
  const auto layers = static_cast<size_t>(options.geometry.layers);
  use.part->present.resize(layers * static_cast<size_t>(part.blocks));
  std::vector<std::shared_ptr<const BlockOwner>> owners;  // of each block
  for (const OwnerRun& run : part.owners) {
    owners.insert(
        owners.end(), static_cast<size_t>(run.blocks),
        std::make_shared<const BlockOwner>(BlockOwner{.context = run.owner, .options = options}));
  }
  const int64_t per_chunk = BlocksPerChunk(sizeof(uint64_t));
  const size_t chunks = part.chunks.size() / layers;
  for (size_t layer = 0; layer < layers; ++layer) {
    std::vector<ChunkPlace> places;
    std::vector<size_t> sizes;
    for (int64_t at = 0; at < use.blocks; at += per_chunk) {
      places.push_back(
          {ChunkKind::kNumbers, part.maker, static_cast<int32_t>(layer), part.first_block + at});
      sizes.push_back(static_cast<size_t>(std::min(per_chunk, part.blocks - at)) *
                      sizeof(uint64_t));
    }
    INFLLM_ASSIGN_OR_RETURN(
        const std::vector<std::string> contents,
        ReadChunks(std::span(part.chunks).subspan(layer * chunks, places.size()), places, sizes));
    for (int64_t i = 0; i < use.blocks; ++i) {
      std::weak_ptr<StoredBlock>& present =
          use.part->present[layer * static_cast<size_t>(part.blocks) + static_cast<size_t>(i)];
      std::shared_ptr<StoredBlock> block = present.lock();
      if (block == nullptr) {
        uint64_t number = 0;
        std::memcpy(&number,
                    contents[static_cast<size_t>(i / per_chunk)].data() +
                        static_cast<size_t>(i % per_chunk) * sizeof(number),
                    sizeof(number));
        block = tiers_->Restore(owners[static_cast<size_t>(i)], static_cast<int32_t>(layer),
                                part.first_block + i, number, use.part);
        present = block;
      }
      tables[layer].Append(std::move(block));
    }
  }
  return absl::OkStatus();
}

// Indices of all layers with the representatives of the first `shared_parts` parts, those that some
// loaded context has: they need not be there twice.
absl::StatusOr<std::vector<BlockIndex>> Catalog::SharedIndices(const Entry& entry,
                                                               size_t& shared_parts) {
  std::shared_ptr<Context> relative;
  shared_parts = 0;
  {
    const std::lock_guard lock(mu_);
    for (const auto& [id, other] : by_id_) {
      if (other->loaded == nullptr) continue;
      const size_t common = CommonParts(entry.representatives, other->representatives);
      if (common <= shared_parts) continue;
      shared_parts = common;
      relative = other->loaded;
    }
  }
  int64_t blocks = 0;
  for (size_t i = 0; i < shared_parts; ++i) blocks += entry.representatives[i].blocks;
  std::vector<BlockIndex> indices;
  for (int32_t layer = 0; layer < entry.info.options.geometry.layers; ++layer) {
    if (relative != nullptr) {
      Context::Layer& from = *relative->layers[static_cast<size_t>(layer)];
      const std::lock_guard lock(from.mu);
      indices.push_back(from.index.Fork(blocks));
    } else {
      INFLLM_ASSIGN_OR_RETURN(BlockIndex index, registry_.NewIndex(entry.info.options.geometry));
      indices.push_back(std::move(index));
    }
  }
  return indices;
}

absl::Status Catalog::ReadRepresentatives(const PartUse& use, const Geometry& geometry,
                                          std::vector<BlockIndex>& indices) {
  const PartInfo& part = use.part->info();
  const size_t bytes = geometry.representative_bytes();
  const int64_t per_chunk = BlocksPerChunk(bytes);
  const size_t chunks = part.chunks.size() / indices.size();
  for (size_t layer = 0; layer < indices.size(); ++layer) {
    for (int64_t at = 0; at < use.blocks;) {
      std::vector<ChunkPlace> places;
      std::vector<size_t> sizes;
      const int64_t begin = at;
      for (; at < use.blocks && places.size() < kReadTogether; at += per_chunk) {
        places.push_back({ChunkKind::kRepresentatives, part.maker, static_cast<int32_t>(layer),
                          part.first_block + at});
        sizes.push_back(static_cast<size_t>(std::min(per_chunk, part.blocks - at)) * bytes);
      }
      const size_t first = layer * chunks + static_cast<size_t>(begin / per_chunk);
      INFLLM_ASSIGN_OR_RETURN(
          const std::vector<std::string> contents,
          ReadChunks(std::span(part.chunks).subspan(first, places.size()), places, sizes));
      int64_t left = use.blocks - begin;
      for (const std::string& content : contents) {
        const int64_t count = std::min<int64_t>(left, static_cast<int64_t>(content.size() / bytes));
        INFLLM_RETURN_IF_ERROR(indices[layer].AddKept(
            std::as_bytes(std::span(content)).first(static_cast<size_t>(count) * bytes)));
        left -= count;
      }
    }
  }
  return absl::OkStatus();
}

// Forgets the loaded contexts that were used longest ago, until the rest has no more
// representatives than may be kept; the one used last stays. Forks keep what they share.
void Catalog::LetGoOfIdle() {
  std::vector<std::shared_ptr<Context>> let_go;  // they go after the lock
  const std::lock_guard lock(mu_);
  std::vector<EntryPtr> loaded;
  for (const auto& [id, entry] : by_id_) {
    if (entry->loaded != nullptr) loaded.push_back(entry);
  }
  std::ranges::sort(loaded, std::greater(), [](const EntryPtr& e) { return e->last_use; });
  int64_t bytes = 0;
  std::set<const CommittedPart*> counted;  // what several share counts once
  for (const EntryPtr& entry : loaded) {
    const Geometry& geometry = entry->info.options.geometry;
    for (const PartUse& use : entry->representatives) {
      if (!counted.insert(use.part.get()).second) continue;
      bytes += use.blocks * geometry.layers * static_cast<int64_t>(geometry.representative_bytes());
    }
    if (bytes <= idle_representative_bytes_ || entry == loaded.front()) continue;
    let_go.push_back(std::exchange(entry->loaded, nullptr));
  }
}

}  // namespace infllm::memstore
