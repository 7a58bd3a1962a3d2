#include "memstore/in_process_store.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "memstore/context_registry.h"
#include "memstore/crc32c.h"
#include "memstore/limits.h"
#include "memstore/tiered_blocks.h"
#include "memstore/validate.h"

namespace infllm::memstore {
namespace {

absl::Status Sealed(ContextId id) {
  return absl::FailedPreconditionError(absl::StrCat("context ", static_cast<uint64_t>(id),
                                                    " is sealed: fork it and go on in the fork"));
}

absl::Status Gap(absl::string_view what, int64_t first_block, int64_t size) {
  return absl::FailedPreconditionError(absl::StrCat(
      what, " of block ", first_block, " would leave a gap: the next block is ", size));
}

// Ascending by index.
std::vector<SelectedBlock> InOrder(const std::vector<ScoredBlock>& best) {
  std::vector<SelectedBlock> blocks;
  blocks.reserve(best.size());
  for (const ScoredBlock& block : best) {
    blocks.push_back({.index = block.index, .score = block.score});
  }
  std::sort(blocks.begin(), blocks.end(),
            [](const SelectedBlock& a, const SelectedBlock& b) { return a.index < b.index; });
  return blocks;
}

class InProcessStore final : public MemoryStore {
 public:
  InProcessStore(const InProcessOptions& options, kernels::Backend& backend,
                 std::unique_ptr<ColdStore> cold)
      : ram_capacity_bytes_(options.ram_capacity_bytes),
        tiers_(TieredBlocks::Create(options.ram_capacity_bytes, std::move(cold))),
        contexts_(backend) {}
  // Handles may outlive the store: their payloads stay, the thread and the cold store do not.
  ~InProcessStore() override { tiers_->Shutdown(); }

  absl::StatusOr<ContextId> Create(const ContextOptions& options) override {
    INFLLM_RETURN_IF_ERROR(Validate(options));
    const size_t payload_bytes = options.geometry.payload_bytes();
    if (static_cast<int64_t>(payload_bytes) > ram_capacity_bytes_) {
      return absl::ResourceExhaustedError(absl::StrCat("one block has ", payload_bytes,
                                                       " bytes, the whole RAM tier ",
                                                       ram_capacity_bytes_, ": raise --ram-bytes"));
    }
    return contexts_.Create(options);
  }

  absl::Status Append(ContextId id, int32_t layer_index, int64_t first_block,
                      std::span<const std::byte> payloads) override {
    INFLLM_ASSIGN_OR_RETURN(const Place place, Find(id, layer_index));
    const size_t payload_bytes = place.context->geometry().payload_bytes();
    if (payloads.size() % payload_bytes != 0) {
      return absl::InvalidArgumentError(absl::StrCat("payloads have ", payloads.size(),
                                                     " bytes, must be a multiple of the ",
                                                     "context's block of ", payload_bytes));
    }
    INFLLM_RETURN_IF_ERROR(CheckIndex(first_block));
    for (int64_t block = first_block; !payloads.empty(); ++block) {
      INFLLM_RETURN_IF_ERROR(AppendOne(place, block, payloads.first(payload_bytes)));
      payloads = payloads.subspan(payload_bytes);
    }
    return absl::OkStatus();
  }

  absl::Status Publish(ContextId id, int32_t layer_index, int64_t first_block,
                       std::span<const float> representatives) override {
    INFLLM_ASSIGN_OR_RETURN(const Place place, Find(id, layer_index));
    const Geometry& geometry = place.context->geometry();
    INFLLM_RETURN_IF_ERROR(ValidateRepresentatives(representatives, geometry));
    INFLLM_RETURN_IF_ERROR(CheckIndex(first_block));
    const size_t floats = geometry.representative_floats();
    const int64_t count = static_cast<int64_t>(representatives.size() / floats);

    const std::lock_guard lock(place.layer->mu);
    BlockIndex& index = *place.layer->index;
    if (place.context->sealed) return Sealed(id);
    if (first_block > index.size()) return Gap("publishing", first_block, index.size());
    if (first_block + count > place.layer->blocks.size()) {
      return absl::FailedPreconditionError(
          absl::StrCat("publishing of blocks up to ", first_block + count - 1, ": only ",
                       place.layer->blocks.size(), " are stored; append their payloads first"));
    }
    const int64_t known = std::min(count, index.size() - first_block);
    for (int64_t i = 0; i < known; ++i) {
      if (!index.Holds(first_block + i, representatives.subspan(i * floats, floats))) {
        return absl::AlreadyExistsError(
            absl::StrCat("block ", first_block + i, " of layer ", layer_index,
                         " has been published with different representatives"));
      }
    }
    return index.Add(representatives.subspan(known * floats));
  }

  absl::StatusOr<Selection> Select(ContextId id, int32_t layer_index,
                                   const SelectRequest& request) override {
    INFLLM_ASSIGN_OR_RETURN(const Place place, Find(id, layer_index));
    INFLLM_RETURN_IF_ERROR(Validate(request, place.context->geometry()));
    ++selects_;

    Selection selection;
    std::vector<std::shared_ptr<StoredBlock>> lacking;
    std::vector<size_t> positions;  // in the selection, of those
    {
      const std::lock_guard lock(place.layer->mu);
      INFLLM_ASSIGN_OR_RETURN(const std::vector<ScoredBlock> best,
                              place.layer->index->TopK(request.query, request.k, request.scoring));
      selection.blocks = InOrder(best);
      auto have = request.have.begin();
      for (size_t i = 0; i < selection.blocks.size(); ++i) {
        const int64_t index = selection.blocks[i].index;
        while (have != request.have.end() && *have < index) ++have;
        if (have == request.have.end() || *have != index) {
          positions.push_back(i);
          lacking.push_back(place.layer->blocks[index]);
        }
      }
    }
    if (lacking.empty()) return selection;
    INFLLM_ASSIGN_OR_RETURN(std::vector<BlockHandle> handles, tiers_->Acquire(lacking));
    for (size_t i = 0; i < handles.size(); ++i) {
      selection.blocks[positions[i]].block = std::move(handles[i]);
    }
    return selection;
  }

  absl::StatusOr<std::vector<BlockHandle>> Fetch(ContextId id, int32_t layer_index,
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

  absl::Status Seal(ContextId id) override {
    INFLLM_ASSIGN_OR_RETURN(const std::shared_ptr<Context> context, contexts_.Find(id));
    context->sealed = true;
    // Whoever holds a layer's lock may have looked before; afterwards nothing changes any more.
    for (const auto& layer : context->layers) const std::lock_guard barrier(layer->mu);
    return absl::OkStatus();
  }

  absl::StatusOr<ContextId> Fork(ContextId id) override {
    INFLLM_ASSIGN_OR_RETURN(const std::shared_ptr<Context> context, contexts_.Find(id));
    return contexts_.Fork(*context);
  }

  absl::Status Drop(ContextId id) override {
    { INFLLM_ASSIGN_OR_RETURN(const std::shared_ptr<Context> context, contexts_.Remove(id)); }
    tiers_->DeleteDropped();
    return absl::OkStatus();
  }

  absl::StatusOr<StoreStats> Stats() override {
    StoreStats stats;
    tiers_->AddTo(stats);
    stats.contexts = contexts_.size();
    stats.representative_bytes = contexts_.representative_bytes();
    stats.selects = selects_;
    return stats;
  }

 private:
  struct Place {
    std::shared_ptr<Context> context;  // keeps `layer` alive while others may drop the context
    int32_t layer_index = 0;
    Context::Layer* layer = nullptr;
  };

  absl::StatusOr<Place> Find(ContextId id, int32_t layer) const {
    Place place;
    INFLLM_ASSIGN_OR_RETURN(place.context, contexts_.Find(id));
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

  absl::Status AppendOne(const Place& place, int64_t block, std::span<const std::byte> payload) {
    const uint32_t crc = Crc32c(payload);
    INFLLM_ASSIGN_OR_RETURN(std::shared_ptr<StoredBlock> stored, StoredOrNext(place, block));
    if (stored != nullptr) return CheckSame(stored, payload, crc);
    INFLLM_ASSIGN_OR_RETURN(
        std::shared_ptr<StoredBlock> fresh,
        tiers_->Store(place.context->owner, place.layer_index, block, payload, crc));
    {
      const std::lock_guard lock(place.layer->mu);
      if (place.context->sealed) return Sealed(place.context->owner->context);
      if (place.layer->blocks.size() == block) {
        place.layer->blocks.Append(std::move(fresh));
        return absl::OkStatus();
      }
      stored = place.layer->blocks[block];  // another call has been faster
    }
    return CheckSame(stored, payload, crc);
  }

  // The block if it is stored, null if it is the next to be.
  absl::StatusOr<std::shared_ptr<StoredBlock>> StoredOrNext(const Place& place, int64_t block) {
    const std::lock_guard lock(place.layer->mu);
    const BlockTable& blocks = place.layer->blocks;
    if (place.context->sealed) return Sealed(place.context->owner->context);
    if (block > blocks.size()) return Gap("appending", block, blocks.size());
    return block < blocks.size() ? blocks[block] : nullptr;
  }

  absl::Status CheckSame(const std::shared_ptr<StoredBlock>& stored,
                         std::span<const std::byte> payload, uint32_t crc) {
    bool same = stored->payload_crc() == crc;
    if (same) {
      INFLLM_ASSIGN_OR_RETURN(const std::vector<BlockHandle> handles,
                              tiers_->Acquire({&stored, 1}, TieredBlocks::Use::kCompare));
      same = std::memcmp(handles[0].payload().data(), payload.data(), payload.size()) == 0;
    }
    if (same) return absl::OkStatus();
    return absl::AlreadyExistsError(absl::StrCat(
        Name(stored->identity()), " is stored with different bytes; a stored block never changes"));
  }

  const int64_t ram_capacity_bytes_;
  const std::shared_ptr<TieredBlocks> tiers_;  // shared with blocks, which handles keep alive
  ContextRegistry contexts_;
  std::atomic<int64_t> selects_ = 0;
};

}  // namespace

std::unique_ptr<MemoryStore> NewInProcessStore(const InProcessOptions& options,
                                               kernels::Backend& backend,
                                               std::unique_ptr<ColdStore> cold) {
  return std::make_unique<InProcessStore>(options, backend, std::move(cold));
}

}  // namespace infllm::memstore
