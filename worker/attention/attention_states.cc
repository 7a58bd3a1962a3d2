// How the states of a policy are made, forked, committed and opened.
#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "memstore/limits.h"
#include "worker/attention/attention_policy.h"
#include "worker/attention/checkpoint.h"
#include "worker/attention/mean_key.h"
#include "worker/attention/option_table.h"
#include "worker/attention/publisher.h"
#include "worker/attention/retriever.h"

namespace infllm::worker {
namespace {

absl::Status OnlyInfLlmCommits(PolicyKind policy) {
  return absl::UnimplementedError(
      absl::StrCat("policy ", std::string(Name(policy)),
                   " keeps nothing in a memory store: only contexts of infllm are committed"));
}

}  // namespace

absl::StatusOr<std::vector<PageNumber>> AttentionPolicy::TakeCacheSlots() {
  std::vector<PageNumber> slots;
  if (backend_.host_accessible() || options_.top_k == 0) return slots;
  if (arena_.free_pages() < options_.cache_blocks) {
    return arena_.NoRoom("the cached blocks of a sequence", options_.cache_blocks);
  }
  for (int64_t i = 0; i < options_.cache_blocks; ++i) slots.push_back(arena_.Take());
  return slots;
}

memstore::ContextOptions AttentionPolicy::StoreOptions() const {
  return {.tenant = "",
          .model = environment_.fingerprint,
          .recipe = Recipe(options_),
          .geometry = {.layers = static_cast<int32_t>(model_.layers),
                       .q_heads = static_cast<int32_t>(model_.q_heads),
                       .kv_heads = static_cast<int32_t>(model_.kv_heads),
                       .head_dim = static_cast<int32_t>(model_.head_dim),
                       .block_tokens = static_cast<int32_t>(options_.block_tokens),
                       .dtype = environment_.kv_dtype,
                       .representative = options_.representative}};
}

absl::StatusOr<std::unique_ptr<FarMemory>> AttentionPolicy::NewFarMemory() {
  INFLLM_ASSIGN_OR_RETURN(std::vector<PageNumber> slots, TakeCacheSlots());
  auto far = std::make_unique<FarMemory>(*environment_.store, memstore::NewContextId(), arena_);
  far->cache_pages = slots;
  far->mass_arena = mass_arena_.get();
  for (int64_t i = 0; i < model_.layers; ++i) {
    far->layers.push_back({.cache = BlockCache({.capacity_blocks = options_.cache_blocks,
                                                .policy = options_.cache_policy,
                                                .decay = options_.score_decay},
                                               slots),
                           .view = {}});
  }
  return far;
}

// What a sequence begins with in the store: the blocks of the mounted contexts, then the first
// `blocks` of `own`, if there is one. Nothing is asked of the store if that is nothing.
absl::Status AttentionPolicy::Mount(std::span<const memstore::CommittedContext> mounted,
                                    const memstore::CommittedContext* own, int64_t blocks,
                                    FarMemory& far) {
  std::vector<memstore::ForkPart> parts;
  for (const memstore::CommittedContext& context : mounted) {
    INFLLM_RETURN_IF_ERROR(checkpointer_->Check(context, StoreOptions(), context.tokens));
    if (context.published < context.blocks) {
      return absl::FailedPreconditionError(absl::StrCat(
          "context \"", context.name,
          "\" cannot be mounted: with mean-key its last blocks have no representatives; read it "
          "with --representatives bounds"));
    }
    parts.push_back({.context = context.id});
    far.mounted_blocks += context.blocks;
  }
  if (own != nullptr) parts.push_back({.context = own->id, .blocks = blocks});
  if (parts.empty()) return environment_.store->Create(far.context, StoreOptions());
  return environment_.store->Fork(parts, far.context);
}

absl::StatusOr<std::unique_ptr<AttentionState>> AttentionPolicy::NewState(
    std::span<const memstore::CommittedContext> mounted) {
  auto state = std::make_unique<AttentionState>(
      AttentionState{.window = KvWindow(arena_, rules_.sink_tokens, rules_.page_tokens)});
  if (retriever_ == nullptr) {
    if (!mounted.empty()) return OnlyInfLlmCommits(options_.policy);
    return state;
  }
  INFLLM_ASSIGN_OR_RETURN(state->far, NewFarMemory());
  INFLLM_RETURN_IF_ERROR(Mount(mounted, nullptr, 0, *state->far));
  return state;
}

absl::StatusOr<std::unique_ptr<AttentionState>> AttentionPolicy::Fork(const AttentionState& state) {
  const int64_t pages = state.window.PagesForFork();
  if (arena_.free_pages() < pages) return arena_.NoRoom("the unfinished pages of a fork", pages);
  INFLLM_ASSIGN_OR_RETURN(KvWindow window, state.window.Fork(backend_, stream_));
  auto fork = std::make_unique<AttentionState>(
      AttentionState{.window = std::move(window), .whole_tokens = state.whole_tokens});
  if (state.far == nullptr) return fork;
  const FarMemory& parent = *state.far;
  if (mass_arena_ != nullptr &&
      mass_arena_->free_pages() < static_cast<int64_t>(parent.mass_pages.size())) {
    return mass_arena_->NoRoom("the scores of a fork's window",
                               static_cast<int64_t>(parent.mass_pages.size()));
  }
  INFLLM_ASSIGN_OR_RETURN(fork->far, NewFarMemory());
  FarMemory& far = *fork->far;
  far.mounted_blocks = parent.mounted_blocks;
  far.stored_blocks = parent.stored_blocks;
  far.published_blocks = parent.published_blocks;
  for (size_t i = 0; i < far.layers.size(); ++i) {
    far.layers[i] = {.cache = parent.layers[i].cache.Fork(far.cache_pages),
                     .view = parent.layers[i].view};
  }
  if (mass_arena_ != nullptr) INFLLM_RETURN_IF_ERROR(ForkMass(parent, far, backend_, stream_));
  INFLLM_RETURN_IF_ERROR(environment_.store->Fork(parent.context, far.context));
  return fork;
}

// With mean-key a context goes on from its end alone.
memstore::Reusable AttentionPolicy::ReusableOf(const AttentionState& state) const {
  const int64_t most = memstore::limits::kMaxReusableExecBlocks * options_.exec_block;
  return {.exec_block = static_cast<int32_t>(options_.exec_block),
          .tokens = UsesMass(options_) ? 0 : std::min(state.whole_tokens, most)};
}

absl::StatusOr<memstore::Prefix> AttentionPolicy::FindPrefix(
    std::span<const int32_t> tokens) const {
  if (checkpointer_ == nullptr || UsesMass(options_)) {
    return absl::NotFoundError("contexts are not gone on from within their tokens");
  }
  return environment_.store->FindPrefix(StoreOptions(), static_cast<int32_t>(options_.exec_block),
                                        tokens);
}

absl::StatusOr<memstore::ContextId> AttentionPolicy::Commit(const AttentionState& state,
                                                            std::string_view name,
                                                            const memstore::ContextId& replaces,
                                                            std::span<const int32_t> tokens) {
  if (checkpointer_ == nullptr) return OnlyInfLlmCommits(options_.policy);
  INFLLM_CHECK(static_cast<int64_t>(tokens.size()) == state.window.tokens());
  if (state.far->mounted_blocks > 0) {
    return absl::FailedPreconditionError(
        "a sequence that mounts contexts cannot be committed: what it has read depends on them");
  }
  INFLLM_ASSIGN_OR_RETURN(const std::vector<std::byte> saved, checkpointer_->Save(state));
  const memstore::ContextId id = memstore::NewContextId();
  INFLLM_RETURN_IF_ERROR(environment_.store->Commit({.context = state.far->context,
                                                     .id = id,
                                                     .name = std::string(name),
                                                     .replaces = replaces,
                                                     .blocks = state.far->stored_blocks,
                                                     .reusable = ReusableOf(state),
                                                     .tokens = tokens,
                                                     .state = saved}));
  return id;
}

absl::StatusOr<std::unique_ptr<AttentionState>> AttentionPolicy::Open(
    const memstore::CommittedContext& committed, std::span<const std::byte> saved, int64_t position,
    std::span<const memstore::CommittedContext> mounted) {
  if (checkpointer_ == nullptr) return OnlyInfLlmCommits(options_.policy);
  INFLLM_RETURN_IF_ERROR(checkpointer_->Check(committed, StoreOptions(), position));
  auto state = std::make_unique<AttentionState>(
      AttentionState{.window = KvWindow(arena_, rules_.sink_tokens, rules_.page_tokens)});
  INFLLM_ASSIGN_OR_RETURN(state->far, NewFarMemory());
  FarMemory& far = *state->far;
  far.stored_blocks = std::max<int64_t>(position - rules_.sink_tokens, 0) / rules_.page_tokens;
  far.published_blocks = std::min(committed.published, far.stored_blocks);
  INFLLM_RETURN_IF_ERROR(Mount(mounted, &committed, far.stored_blocks, far));
  {
    KvWindow needed(arena_, rules_.sink_tokens, rules_.page_tokens);
    needed.SkipPages(SelectableBlocks(options_, position));
    const int64_t pages = needed.PagesFor(position);
    if (pages > arena_.free_pages()) return arena_.NoRoom("the window of a context", pages);
  }
  if (mass_arena_ != nullptr) {
    const int64_t masses =
        MassPagesFor(*state, position, rules_.page_tokens) - SelectableBlocks(options_, position);
    if (masses > mass_arena_->free_pages()) {
      return mass_arena_->NoRoom("the scores of a context's window", masses);
    }
  }
  INFLLM_RETURN_IF_ERROR(checkpointer_->Restore(saved, committed, position, *state));
  state->whole_tokens =
      std::min(position - position % options_.exec_block, committed.reusable.tokens);
  return state;
}

AttentionStats AttentionPolicy::StatsOf(const AttentionState& state) const {
  AttentionStats stats = state.stats;
  stats.device_bytes = state.window.held_pages() * arena_.page_bytes();
  if (state.far == nullptr) return stats;
  stats.blocks = state.far->mounted_blocks + SelectableBlocks(options_, state.window.tokens());
  stats.device_bytes += static_cast<int64_t>(state.far->cache_pages.size()) * arena_.page_bytes();
  if (!retriever_->remote()) return stats;  // what is pinned counts as the store's
  for (const FarMemory::Layer& layer : state.far->layers) {
    stats.device_bytes += layer.cache.size_bytes();
  }
  return stats;
}

}  // namespace infllm::worker
