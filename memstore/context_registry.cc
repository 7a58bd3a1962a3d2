#include "memstore/context_registry.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "memstore/limits.h"

namespace infllm::memstore {
namespace {

absl::Status NoSuchContext(const ContextId& id) {
  return absl::NotFoundError(
      absl::StrCat("context ", ToString(id),
                   " does not exist: never created, dropped, or the store has restarted"));
}

absl::Status IsSomethingElse(const Context& existing, absl::string_view what) {
  return absl::AlreadyExistsError(absl::StrCat("context ", ToString(existing.owner->context),
                                               " exists already ", what, ": take another id"));
}

bool IsAsForked(Context::Layer& layer) {
  const std::lock_guard lock(layer.mu);
  return layer.blocks.size() == layer.forked_blocks && layer.index.size() == layer.forked_published;
}

// What a table takes to name the blocks of a part; the first part's segments are shared.
int64_t JoinedBytesOf(const ContextRegistry::Part& part) {
  int64_t blocks = 0;
  for (const auto& layer : part.context->layers) {
    const std::lock_guard lock(layer->mu);
    blocks += std::min(part.blocks, layer->blocks.size());
  }
  return blocks * int64_t{sizeof(std::shared_ptr<StoredBlock>)};
}

}  // namespace

const std::shared_ptr<StoredBlock>& BlockTable::operator[](int64_t index) const {
  INFLLM_CHECK(index >= 0 && index < size_);
  const size_t segment = static_cast<size_t>(index / kSegmentBlocks);
  const Segment& blocks = segment < full_.size() ? *full_[segment] : tail_;
  return blocks[static_cast<size_t>(index % kSegmentBlocks)];
}

void BlockTable::Append(std::shared_ptr<StoredBlock> block) {
  tail_.push_back(std::move(block));
  ++size_;
  if (tail_.size() < static_cast<size_t>(kSegmentBlocks)) return;
  full_.push_back(std::make_shared<const Segment>(std::move(tail_)));
  tail_.clear();
}

BlockTable BlockTable::First(int64_t blocks) const {
  INFLLM_CHECK(blocks >= 0 && blocks <= size_);
  BlockTable first;
  const auto whole = static_cast<size_t>(blocks / kSegmentBlocks);
  const auto rest = static_cast<size_t>(blocks % kSegmentBlocks);
  first.full_.assign(full_.begin(), full_.begin() + static_cast<std::ptrdiff_t>(whole));
  const Segment& last = whole < full_.size() ? *full_[whole] : tail_;
  first.tail_.assign(last.begin(), last.begin() + static_cast<std::ptrdiff_t>(rest));
  first.size_ = blocks;
  return first;
}

void BlockTable::Join(const BlockTable& other) {
  for (int64_t i = 0; i < other.size(); ++i) Append(other[i]);
}

Context::Layer::Layer(BlockTable blocks_in, BlockIndex index_in)
    : blocks(std::move(blocks_in)),
      index(std::move(index_in)),
      forked_blocks(blocks.size()),
      forked_published(index.size()) {}

Context::Context(bool is_committed, std::shared_ptr<const BlockOwner> owner_in,
                 IndexMemory& memory_in)
    : owner(std::move(owner_in)),
      committed(is_committed),
      memory(memory_in),
      bytes(BytesOf(owner->options)) {
  memory.contexts += bytes;
}

void Context::CountJoined(int64_t more) {
  joined_bytes += more;
  bytes += more;
  memory.contexts += more;
}

int64_t Context::BytesOf(const ContextOptions& options) {
  constexpr size_t kOthers = 256;  // in tables and the allocator's
  const size_t layers = static_cast<size_t>(options.geometry.layers) * (sizeof(Layer) + 64);
  return static_cast<int64_t>(sizeof(Context) + sizeof(BlockOwner) + options.tenant.size() +
                              options.recipe.size() + layers + kOthers);
}

absl::StatusOr<kernels::Stream> ContextRegistry::WriteStream() {
  const std::lock_guard lock(mu_);
  if (!write_stream_.has_value()) {
    INFLLM_ASSIGN_OR_RETURN(write_stream_, backend_.NewStream());
  }
  return *write_stream_;
}

absl::StatusOr<std::shared_ptr<Context>> ContextRegistry::Insert(std::shared_ptr<Context> context) {
  const ContextId id = context->owner->context;
  const std::lock_guard lock(mu_);
  const auto found = contexts_.find(id);
  if (found != contexts_.end()) return found->second;
  if (static_cast<int64_t>(contexts_.size()) >= limits::kMaxContexts) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the store has ", contexts_.size(), " contexts, its limit: drop some that are not needed"));
  }
  contexts_.emplace(id, std::move(context));
  return nullptr;
}

absl::Status ContextRegistry::Create(const ContextId& id, const ContextOptions& options) {
  auto context = std::make_shared<Context>(
      /*is_committed=*/false,
      std::make_shared<const BlockOwner>(BlockOwner{.context = id, .options = options}), memory_);
  for (int32_t i = 0; i < options.geometry.layers; ++i) {
    INFLLM_ASSIGN_OR_RETURN(BlockIndex index, NewIndex(options.geometry));
    context->layers.push_back(std::make_unique<Context::Layer>(BlockTable(), std::move(index)));
  }
  INFLLM_ASSIGN_OR_RETURN(const std::shared_ptr<Context> existing, Insert(std::move(context)));
  if (existing == nullptr) return absl::OkStatus();
  if (!existing->parents.empty()) {
    return IsSomethingElse(
        *existing, absl::StrCat("as a fork of ", ToString(existing->parents.front().context)));
  }
  if (existing->owner->options != options) return IsSomethingElse(*existing, "with other options");
  return absl::OkStatus();
}

absl::StatusOr<BlockIndex> ContextRegistry::NewIndex(const Geometry& geometry) {
  INFLLM_ASSIGN_OR_RETURN(const kernels::Stream stream, WriteStream());
  return BlockIndex(backend_, stream, geometry, memory_.representatives);
}

std::shared_ptr<Context> ContextRegistry::Copy(Context& from, const ContextId& id, int64_t blocks,
                                               bool committed) {
  auto context = std::make_shared<Context>(
      committed,
      std::make_shared<const BlockOwner>(BlockOwner{.context = id, .options = from.owner->options}),
      from.memory);
  context->parents = {{.context = from.owner->context, .blocks = blocks}};
  context->joined = from.joined;
  context->CountJoined(from.joined_bytes);
  {  // first: by the time that the layers are copied they hold what is committed now
    const std::lock_guard lock(from.mu);
    context->base = from.committed ? from.owner->context : from.base;
    for (const PartUse& use : from.committed_representatives) {
      const int64_t used = std::min(use.blocks, blocks - use.part->info().first_block);
      if (used > 0)
        context->committed_representatives.push_back({.part = use.part, .blocks = used});
    }
  }
  for (const auto& layer : from.layers) {
    const std::lock_guard lock(layer->mu);
    context->layers.push_back(std::make_unique<Context::Layer>(
        layer->blocks.First(std::min(blocks, layer->blocks.size())),
        layer->index.Fork(std::min(blocks, layer->index.size()))));
  }
  return context;
}

std::shared_ptr<Context> ContextRegistry::Snapshot(Context& context, const ContextId& id) {
  return Copy(context, id, kAllBlocks, /*committed=*/true);
}

int64_t ContextRegistry::BytesOf(std::span<const Part> parts) {
  const Context& first = *parts[0].context;
  int64_t bytes = Context::BytesOf(first.owner->options) + first.joined_bytes;
  for (const Part& part : parts.subspan(1)) bytes += JoinedBytesOf(part);
  return bytes;
}

// Adds a part behind what a fork has that nobody else knows yet.
absl::Status ContextRegistry::Join(Context& fork, const Part& part) {
  const int64_t end = fork.layers[0]->blocks.size();
  for (size_t i = 0; i < fork.layers.size(); ++i) {
    BlockTable blocks = fork.layers[i]->blocks;
    BlockIndex index = fork.layers[i]->index;
    if (blocks.size() != end || index.size() != end) {
      return absl::FailedPreconditionError(absl::StrCat(
          "no part can follow one that is not published as a whole: layer ", i, " has ",
          blocks.size(), " blocks, ", index.size(), " of them published, layer 0 has ", end));
    }
    Context::Layer& from = *part.context->layers[i];
    {
      const std::lock_guard lock(from.mu);
      blocks.Join(from.blocks.First(std::min(part.blocks, from.blocks.size())));
      index.Join(from.index.Fork(std::min(part.blocks, from.index.size())));
    }
    fork.layers[i] = std::make_unique<Context::Layer>(std::move(blocks), std::move(index));
  }
  fork.parents.push_back({.context = part.context->owner->context, .blocks = part.blocks});
  fork.joined = true;
  fork.CountJoined(JoinedBytesOf(part));
  return absl::OkStatus();
}

absl::Status ContextRegistry::Fork(std::span<const Part> parts, const ContextId& child) {
  const std::shared_ptr<Context> fork = Copy(*parts[0].context, child, parts[0].blocks,
                                             /*committed=*/false);
  for (const Part& part : parts.subspan(1)) INFLLM_RETURN_IF_ERROR(Join(*fork, part));
  INFLLM_ASSIGN_OR_RETURN(const std::shared_ptr<Context> existing, Insert(fork));
  if (existing == nullptr) return absl::OkStatus();
  if (existing->parents != fork->parents) {
    return IsSomethingElse(
        *existing, absl::StrCat("and is not a fork of ", ToString(fork->parents.front().context),
                                " in these parts"));
  }
  for (size_t i = 0; i < fork->layers.size(); ++i) {
    Context::Layer& layer = *existing->layers[i];
    if (!IsAsForked(layer)) return IsSomethingElse(*existing, "and has grown since it was forked");
    if (layer.forked_blocks != fork->layers[i]->forked_blocks ||
        layer.forked_published != fork->layers[i]->forked_published) {
      return IsSomethingElse(*existing, "and its parent has grown since it was forked");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<Context>> ContextRegistry::Find(const ContextId& id) const {
  const std::shared_lock lock(mu_);
  const auto found = contexts_.find(id);
  if (found == contexts_.end()) return NoSuchContext(id);
  return found->second;
}

absl::StatusOr<std::shared_ptr<Context>> ContextRegistry::Remove(const ContextId& id) {
  const std::lock_guard lock(mu_);
  const auto found = contexts_.find(id);
  if (found == contexts_.end()) return NoSuchContext(id);
  std::shared_ptr<Context> context = std::move(found->second);
  contexts_.erase(found);
  return context;
}

int64_t ContextRegistry::size() const {
  const std::shared_lock lock(mu_);
  return static_cast<int64_t>(contexts_.size());
}

}  // namespace infllm::memstore
