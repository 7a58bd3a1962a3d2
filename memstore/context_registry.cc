#include "memstore/context_registry.h"

#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "memstore/limits.h"

namespace infllm::memstore {
namespace {

absl::Status NoSuchContext(ContextId id) {
  return absl::NotFoundError(
      absl::StrCat("context ", static_cast<uint64_t>(id),
                   " does not exist: never created, dropped, or the store has restarted"));
}

// SplitMix64's finalizer: a bijection, so distinct states give distinct ids.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t RandomState() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
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

// Ids start anywhere, so that an id that a client kept from before a restart is not the id of
// another's context now.
ContextRegistry::ContextRegistry(kernels::Backend& backend)
    : backend_(backend), id_state_(RandomState()) {}

std::shared_ptr<Context> ContextRegistry::NewContext(const ContextOptions& options) {
  ContextId id{};
  while (id == ContextId{}) id = ContextId{Mix(++id_state_)};  // 0 is nobody's
  auto context = std::make_shared<Context>();
  context->owner =
      std::make_shared<const BlockOwner>(BlockOwner{.context = id, .options = options});
  return context;
}

absl::StatusOr<ContextId> ContextRegistry::Insert(std::shared_ptr<Context> context) {
  const ContextId id = context->owner->context;
  const std::lock_guard lock(mu_);
  if (static_cast<int64_t>(contexts_.size()) >= limits::kMaxContexts) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the store has ", contexts_.size(), " contexts, its limit: drop some that are not needed"));
  }
  contexts_.emplace(id, std::move(context));
  return id;
}

absl::StatusOr<ContextId> ContextRegistry::Create(const ContextOptions& options) {
  std::shared_ptr<Context> context = NewContext(options);
  for (int32_t i = 0; i < options.geometry.layers; ++i) {
    auto layer = std::make_unique<Context::Layer>();
    layer->index = NewBlockIndex(backend_, options.geometry, representative_bytes_);
    context->layers.push_back(std::move(layer));
  }
  return Insert(std::move(context));
}

absl::StatusOr<ContextId> ContextRegistry::Fork(Context& parent) {
  std::shared_ptr<Context> context = NewContext(parent.owner->options);
  for (const auto& parent_layer : parent.layers) {
    auto layer = std::make_unique<Context::Layer>();
    const std::lock_guard lock(parent_layer->mu);
    layer->blocks = parent_layer->blocks;
    layer->index = parent_layer->index->Fork();
    context->layers.push_back(std::move(layer));
  }
  return Insert(std::move(context));
}

absl::StatusOr<std::shared_ptr<Context>> ContextRegistry::Find(ContextId id) const {
  const std::shared_lock lock(mu_);
  const auto found = contexts_.find(id);
  if (found == contexts_.end()) return NoSuchContext(id);
  return found->second;
}

absl::StatusOr<std::shared_ptr<Context>> ContextRegistry::Remove(ContextId id) {
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
