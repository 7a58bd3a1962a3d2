#include "memstore/in_process_store.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "memstore/catalog.h"
#include "memstore/context_registry.h"
#include "memstore/limits.h"
#include "memstore/selector.h"
#include "memstore/tiered_blocks.h"
#include "memstore/validate.h"

namespace infllm::memstore {
namespace {

absl::Status NeverChanges(const ContextId& id) {
  return absl::FailedPreconditionError(
      absl::StrCat("context ", ToString(id), " is committed: fork it and go on in the fork"));
}

absl::Status IsCommitted(const ContextId& id) {
  return absl::AlreadyExistsError(
      absl::StrCat("context ", ToString(id), " exists already and is committed: take another id"));
}

absl::Status NotDurable() {
  return absl::FailedPreconditionError(
      "the memory store keeps nothing on disk, so it has no committed contexts: give it a "
      "--data-dir");
}

absl::Status Gap(absl::string_view what, int64_t first_block, int64_t size) {
  return absl::FailedPreconditionError(absl::StrCat(
      what, " of block ", first_block, " would leave a gap: the next block is ", size));
}

// The blocks below `end`.
IndexView Clipped(const IndexView& view, int64_t end) {
  IndexView clipped{.pin = view.pin};
  for (const kernels::RepresentativeChunk& chunk : view.chunks) {
    if (clipped.blocks >= end) break;
    const int64_t blocks = std::min(chunk.blocks, end - clipped.blocks);
    clipped.chunks.push_back({.data = chunk.data, .blocks = blocks});
    clipped.blocks += blocks;
  }
  return clipped;
}

class InProcessStore final : public MemoryStore {
 public:
  static absl::StatusOr<std::unique_ptr<InProcessStore>> Open(const InProcessOptions& options,
                                                              kernels::Backend& backend,
                                                              std::unique_ptr<ColdStore> cold) {
    uint64_t first_entry = 1;
    const bool durable = cold != nullptr && cold->durable();
    if (durable) {
      INFLLM_ASSIGN_OR_RETURN(first_entry, Catalog::FirstFreeEntry(*cold));
    }
    std::unique_ptr<InProcessStore> store(
        new InProcessStore(options, backend, std::move(cold), first_entry));
    if (durable) {
      INFLLM_ASSIGN_OR_RETURN(store->catalog_, Catalog::Open(store->tiers_, store->contexts_,
                                                             options.ram_capacity_bytes / 2));
    }
    return store;
  }
  // Handles may outlive the store: their payloads stay, the thread and the cold store do not.
  ~InProcessStore() override { tiers_->Shutdown(); }

  absl::Status Create(const ContextId& id, const ContextOptions& options) override {
    INFLLM_RETURN_IF_ERROR(Validate(id));
    INFLLM_RETURN_IF_ERROR(Validate(options));
    const size_t payload_bytes = options.geometry.payload_bytes();
    if (RamTier::SlotBytes(payload_bytes) > ram_capacity_bytes_) {
      return absl::ResourceExhaustedError(absl::StrCat("one block has ", payload_bytes,
                                                       " bytes, the whole RAM tier ",
                                                       ram_capacity_bytes_, ": raise --ram-bytes"));
    }
    if (catalog_ != nullptr && catalog_->Has(id)) return IsCommitted(id);
    INFLLM_RETURN_IF_ERROR(tiers_->MakeRoom(Context::BytesOf(options)));
    return contexts_.Create(id, options);
  }

  absl::StatusOr<ContextOptions> Describe(const ContextId& id) override {
    const absl::StatusOr<std::shared_ptr<Context>> context = contexts_.Find(id);
    if (context.ok()) return (*context)->owner->options;
    if (catalog_ == nullptr) return context.status();
    const std::optional<CommittedContext> committed = catalog_->Find(id);
    if (!committed.has_value()) return context.status();
    return committed->options;
  }

  absl::Status Append(const ContextId& id, int32_t layer_index, int64_t first_block,
                      std::span<const std::span<const std::byte>> payloads) override {
    INFLLM_ASSIGN_OR_RETURN(const Place place, Find(id, layer_index));
    const size_t payload_bytes = place.context->geometry().payload_bytes();
    for (size_t i = 0; i < payloads.size(); ++i) {
      if (payloads[i].size() == payload_bytes) continue;
      return absl::InvalidArgumentError(absl::StrCat("payload ", i, " has ", payloads[i].size(),
                                                     " bytes, a block of the context has ",
                                                     payload_bytes));
    }
    INFLLM_RETURN_IF_ERROR(CheckIndex(first_block));
    for (size_t i = 0; i < payloads.size(); ++i) {
      INFLLM_RETURN_IF_ERROR(AppendOne(place, first_block + static_cast<int64_t>(i), payloads[i]));
    }
    return absl::OkStatus();
  }

  absl::Status Publish(const ContextId& id, int32_t layer_index, int64_t first_block,
                       std::span<const float> representatives) override {
    INFLLM_ASSIGN_OR_RETURN(const Place place, Find(id, layer_index));
    const Geometry& geometry = place.context->geometry();
    INFLLM_RETURN_IF_ERROR(ValidateRepresentatives(representatives, geometry));
    INFLLM_RETURN_IF_ERROR(CheckIndex(first_block));
    const size_t floats = geometry.representative_floats();
    const int64_t count = static_cast<int64_t>(representatives.size() / floats);
    INFLLM_RETURN_IF_ERROR(
        tiers_->MakeRoom(count * static_cast<int64_t>(geometry.representative_bytes())));

    const std::lock_guard lock(place.layer->mu);
    BlockIndex& index = place.layer->index;
    if (place.context->committed) return NeverChanges(id);
    if (first_block > index.size()) return Gap("publishing", first_block, index.size());
    if (first_block + count > place.layer->blocks.size()) {
      return absl::FailedPreconditionError(
          absl::StrCat("publishing of blocks up to ", first_block + count - 1, ": only ",
                       place.layer->blocks.size(), " are stored; append their payloads first"));
    }
    const int64_t known = std::min(count, index.size() - first_block);
    for (int64_t i = 0; i < known; ++i) {
      INFLLM_ASSIGN_OR_RETURN(
          const bool same,
          index.Holds(first_block + i, representatives.subspan(i * floats, floats)));
      if (!same) {
        return absl::AlreadyExistsError(
            absl::StrCat("block ", first_block + i, " of layer ", layer_index,
                         " has been published with different representatives"));
      }
    }
    return index.Add(representatives.subspan(known * floats));
  }

  absl::StatusOr<std::vector<Selection>> Select(const SelectRequest& request) override {
    INFLLM_RETURN_IF_ERROR(Validate(request));
    ++selects_;
    std::vector<Selection> selections(request.queries.size());
    std::vector<Place> places(request.queries.size());
    std::vector<RankQuery> ranked;
    std::vector<size_t> positions;  // in the request, of those
    Views views;
    int64_t selected = 0;
    for (size_t i = 0; i < request.queries.size(); ++i) {
      const SelectQuery& query = request.queries[i];
      selections[i].status = Prepare(query, request.layer, places[i]);
      if (!selections[i].status.ok()) continue;
      ranked.push_back({.query = query.query,
                        .geometry = &places[i].context->geometry(),
                        .view = views.Of(*places[i].layer, query.end_block),
                        .k = query.k});
      positions.push_back(i);
      selected += std::min<int64_t>(query.k, ranked.back().view->blocks);
    }
    INFLLM_RETURN_IF_ERROR(CheckField("number of blocks that all queries select", selected, 0,
                                      limits::kMaxSelectedBlocks));
    INFLLM_ASSIGN_OR_RETURN(const auto best, selector_.Rank(request.scoring, ranked));
    for (size_t i = 0; i < best.size(); ++i) {
      Selection& selection = selections[positions[i]];
      auto blocks =
          Payloads(*places[positions[i]].layer, best[i], request.queries[positions[i]].have);
      selection.status = blocks.status();
      if (blocks.ok()) selection.blocks = *std::move(blocks);
    }
    return selections;
  }

  absl::StatusOr<IndexView> View(const ContextId& id, int32_t layer_index) override {
    INFLLM_ASSIGN_OR_RETURN(const Place place, Find(id, layer_index));
    const std::lock_guard lock(place.layer->mu);
    return place.layer->index.View();
  }

  absl::StatusOr<std::vector<BlockHandle>> Fetch(const ContextId& id, int32_t layer_index,
                                                 std::span<const int64_t> indices) override {
    INFLLM_ASSIGN_OR_RETURN(const Place place, Find(id, layer_index));
    INFLLM_RETURN_IF_ERROR(
        CheckField("number of blocks to fetch", indices.size(), 0, limits::kMaxSelect));
    std::vector<std::shared_ptr<StoredBlock>> blocks;
    blocks.reserve(indices.size());
    {
      const std::lock_guard lock(place.layer->mu);
      for (int64_t index : indices) {
        if (index < 0 || index >= place.layer->blocks.size()) {
          return absl::OutOfRangeError(absl::StrCat("block ", index, " of layer ", layer_index,
                                                    " is not stored: there are ",
                                                    place.layer->blocks.size()));
        }
        blocks.push_back(place.layer->blocks[index]);
      }
    }
    return tiers_->Acquire(blocks);
  }

  absl::Status Fork(std::span<const ForkPart> parts, const ContextId& child) override {
    INFLLM_RETURN_IF_ERROR(Validate(child));
    INFLLM_RETURN_IF_ERROR(CheckField("number of parts", static_cast<int64_t>(parts.size()), 1,
                                      limits::kMaxForkParts));
    std::vector<ContextRegistry::Part> found;
    for (const ForkPart& part : parts) {
      INFLLM_RETURN_IF_ERROR(CheckField("blocks", part.blocks, 0, kAllBlocks));
      INFLLM_ASSIGN_OR_RETURN(std::shared_ptr<Context> context, FindContext(part.context));
      if (!found.empty() && context->owner->options != found[0].context->owner->options) {
        return absl::InvalidArgumentError(
            absl::StrCat("context ", ToString(part.context), " has other options than ",
                         ToString(parts[0].context), ": one context cannot begin with both"));
      }
      if (parts.size() > 1 && context->joined) {
        return absl::FailedPreconditionError(
            absl::StrCat("context ", ToString(part.context),
                         " begins with several others: give these as parts instead"));
      }
      if (std::ranges::count(parts, part.context, &ForkPart::context) > 1) {
        return absl::InvalidArgumentError(
            absl::StrCat("context ", ToString(part.context), " is twice among the parts"));
      }
      found.push_back({.context = std::move(context), .blocks = part.blocks});
    }
    if (catalog_ != nullptr && catalog_->Has(child)) return IsCommitted(child);
    INFLLM_RETURN_IF_ERROR(tiers_->MakeRoom(ContextRegistry::BytesOf(found)));
    return contexts_.Fork(found, child);
  }

  absl::Status Drop(const ContextId& id) override {
    if (catalog_ != nullptr && catalog_->Has(id)) {
      INFLLM_RETURN_IF_ERROR(catalog_->Drop(id));
    } else {
      INFLLM_ASSIGN_OR_RETURN(const std::shared_ptr<Context> context, contexts_.Remove(id));
    }
    tiers_->DeleteDropped();
    return absl::OkStatus();
  }

  absl::Status Commit(const CommitRequest& request) override {
    if (catalog_ == nullptr) return NotDurable();
    INFLLM_ASSIGN_OR_RETURN(const std::shared_ptr<Context> context, FindContext(request.context));
    if (contexts_.Find(request.id).ok()) {
      return absl::AlreadyExistsError(
          absl::StrCat("context ", ToString(request.id), " exists already: take another id"));
    }
    absl::Status status = catalog_->Commit(request, *context);
    tiers_->DeleteDropped();  // what was replaced, or written in vain
    return status;
  }

  absl::StatusOr<CommittedContext> FindCommitted(std::string_view tenant,
                                                 std::string_view name) override {
    if (catalog_ == nullptr) return NotDurable();
    return catalog_->FindName(tenant, name);
  }

  absl::StatusOr<std::vector<CommittedContext>> ListCommitted(std::string_view tenant) override {
    if (catalog_ == nullptr) return NotDurable();
    return catalog_->List(tenant);
  }

  absl::StatusOr<Prefix> FindPrefix(const ContextOptions& options, int32_t exec_block,
                                    std::span<const int32_t> tokens) override {
    INFLLM_RETURN_IF_ERROR(Validate(options));
    INFLLM_RETURN_IF_ERROR(CheckField("exec_block", exec_block, 1, limits::kMaxExecBlock));
    INFLLM_RETURN_IF_ERROR(
        CheckField("number of tokens", tokens.size(), 0, limits::kMaxPrefixTokens));
    if (catalog_ == nullptr) return absl::NotFoundError("nothing is committed");
    return catalog_->FindPrefix(options, exec_block, tokens);
  }

  absl::StatusOr<Checkpoint> ReadCheckpoint(const ContextId& committed) override {
    if (catalog_ == nullptr) return NotDurable();
    return catalog_->ReadCheckpoint(committed);
  }

  absl::StatusOr<StoreStats> Stats() override {
    StoreStats stats = tiers_->Stats();
    stats.contexts = contexts_.size();
    if (catalog_ != nullptr) stats.committed = catalog_->size();
    stats.selects = selects_;
    return stats;
  }

 private:
  struct Place {
    std::shared_ptr<Context> context;  // keeps `layer` alive while others may drop the context
    int32_t layer_index = 0;
    Context::Layer* layer = nullptr;
  };

  InProcessStore(const InProcessOptions& options, kernels::Backend& backend,
                 std::unique_ptr<ColdStore> cold, uint64_t first_entry)
      : ram_capacity_bytes_(options.ram_capacity_bytes),
        tiers_(TieredBlocks::Create(options, std::move(cold), first_entry)),
        contexts_(backend, tiers_->index_memory()),
        selector_(backend) {}

  absl::StatusOr<std::shared_ptr<Context>> FindContext(const ContextId& id) const {
    absl::StatusOr<std::shared_ptr<Context>> context = contexts_.Find(id);
    if (context.ok() || catalog_ == nullptr || !catalog_->Has(id)) return context;
    return catalog_->Load(id);
  }

  absl::StatusOr<Place> Find(const ContextId& id, int32_t layer) const {
    Place place;
    INFLLM_ASSIGN_OR_RETURN(place.context, FindContext(id));
    const int32_t layers = place.context->geometry().layers;
    if (layer < 0 || layer >= layers) {
      return absl::OutOfRangeError(
          absl::StrCat("layer is ", layer, ", the context has layers 0 to ", layers - 1));
    }
    place.layer_index = layer;
    place.layer = place.context->layers[layer].get();
    return place;
  }

  static absl::Status CheckIndex(int64_t first_block) {
    if (first_block >= 0) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("first_block is ", first_block, ", must not be negative"));
  }

  // A payload that is new is read once, while it is copied.
  absl::Status AppendOne(const Place& place, int64_t block, std::span<const std::byte> payload) {
    INFLLM_ASSIGN_OR_RETURN(std::shared_ptr<StoredBlock> stored, StoredOrNext(place, block));
    if (stored != nullptr) return CheckSame(stored, payload);
    INFLLM_ASSIGN_OR_RETURN(std::shared_ptr<StoredBlock> fresh,
                            tiers_->Store(place.context->owner, place.layer_index, block, payload));
    {
      const std::lock_guard lock(place.layer->mu);
      if (place.layer->blocks.size() == block) {
        place.layer->blocks.Append(std::move(fresh));
        return absl::OkStatus();
      }
      stored = place.layer->blocks[block];  // another call has been faster
    }
    return CheckSame(stored, payload);
  }

  // The block if it is stored, null if it is the next to be.
  absl::StatusOr<std::shared_ptr<StoredBlock>> StoredOrNext(const Place& place, int64_t block) {
    const std::lock_guard lock(place.layer->mu);
    const BlockTable& blocks = place.layer->blocks;
    if (place.context->committed) return NeverChanges(place.context->owner->context);
    if (block > blocks.size()) return Gap("appending", block, blocks.size());
    return block < blocks.size() ? blocks[block] : nullptr;
  }

  absl::Status CheckSame(const std::shared_ptr<StoredBlock>& stored,
                         std::span<const std::byte> payload) {
    INFLLM_ASSIGN_OR_RETURN(const std::vector<BlockHandle> handles,
                            tiers_->Acquire({&stored, 1}, TieredBlocks::Use::kCompare));
    if (std::memcmp(handles[0].payload().data(), payload.data(), payload.size()) == 0) {
      return absl::OkStatus();
    }
    return absl::AlreadyExistsError(absl::StrCat(
        ToString(stored->key()), " is stored with different bytes; a stored block never changes"));
  }

  // What the queries of one Select see of the indices: one view of each, however many queries
  // it serves.
  class Views {
   public:
    std::shared_ptr<const IndexView> Of(Context::Layer& layer, int64_t end_block) {
      std::shared_ptr<const IndexView>& whole = views_[{&layer, INT64_MAX}];
      if (whole == nullptr) {
        const std::lock_guard lock(layer.mu);
        whole = std::make_shared<const IndexView>(layer.index.View());
      }
      if (end_block >= whole->blocks) return whole;
      std::shared_ptr<const IndexView>& clipped = views_[{&layer, end_block}];
      if (clipped == nullptr) {
        clipped = std::make_shared<const IndexView>(Clipped(*whole, end_block));
      }
      return clipped;
    }

   private:
    std::map<std::pair<Context::Layer*, int64_t>, std::shared_ptr<const IndexView>> views_;
  };

  absl::Status Prepare(const SelectQuery& query, int32_t layer_index, Place& place) const {
    INFLLM_ASSIGN_OR_RETURN(place, Find(query.context, layer_index));
    return Validate(query, place.context->geometry());
  }

  // The blocks that a query has selected, with payload unless it has them.
  absl::StatusOr<std::vector<SelectedBlock>> Payloads(Context::Layer& layer,
                                                      std::span<const RankedBlock> best,
                                                      std::span<const int64_t> have) {
    std::vector<SelectedBlock> selected;
    std::vector<std::shared_ptr<StoredBlock>> lacking;
    std::vector<size_t> positions;  // among the selected, of those
    selected.reserve(best.size());
    {
      const std::lock_guard lock(layer.mu);
      auto next = have.begin();
      for (const auto& [index, score] : best) {
        while (next != have.end() && *next < index) ++next;
        if (next == have.end() || *next != index) {
          positions.push_back(selected.size());
          lacking.push_back(layer.blocks[index]);
        }
        selected.push_back({.index = index, .score = score});
      }
    }
    if (lacking.empty()) return selected;
    INFLLM_ASSIGN_OR_RETURN(std::vector<BlockHandle> handles, tiers_->Acquire(lacking));
    for (size_t i = 0; i < handles.size(); ++i) {
      selected[positions[i]].block = std::move(handles[i]);
    }
    return selected;
  }

  const int64_t ram_capacity_bytes_;
  const std::shared_ptr<TieredBlocks> tiers_;  // shared with blocks, which handles keep alive
  ContextRegistry contexts_;
  std::unique_ptr<Catalog> catalog_;  // null without a durable cold store
  Selector selector_;
  std::atomic<int64_t> selects_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<MemoryStore>> NewInProcessStore(const InProcessOptions& options,
                                                               kernels::Backend& backend,
                                                               std::unique_ptr<ColdStore> cold) {
  return InProcessStore::Open(options, backend, std::move(cold));
}

}  // namespace infllm::memstore
