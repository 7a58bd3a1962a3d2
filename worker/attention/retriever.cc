#include "worker/attention/retriever.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "worker/attention/mean_key.h"

namespace infllm::worker {
namespace {

absl::Status NotFinite(int64_t layer, const ExecBlock& block) {
  return absl::InvalidArgumentError(
      absl::StrCat("the mean query of layer ", layer, " at position ", block.position,
                   " is not finite: the model's activations overflow in this dtype"));
}

}  // namespace

using kernels::PageEntry;
using memstore::BlockHandle;

Retriever::Retriever(const ModelConfig& model, const AttentionOptions& options,
                     const kernels::PageShape& page, kernels::Backend& backend,
                     kernels::Stream stream, memstore::MemoryStore& store, PageArena& arena)
    : model_(model),
      options_(options),
      page_(page),
      backend_(backend),
      stream_(stream),
      store_(store),
      arena_(arena),
      layers_(static_cast<size_t>(model.layers)) {}

void Retriever::Begin(const StepPlan& plan) {
  in_flight_.clear();
  // A step that reads selects blocks that no step before has. lru-s looks at the attention of each
  // layer, and attention adds to the mass of mean-key: neither can be done again.
  const bool decodes = plan.rows == static_cast<int64_t>(plan.blocks.size());
  optimistic_ = !backend_.host_accessible() && !remote_ && !missed_ && decodes &&
                options_.cache_policy == CachePolicy::kLru && !UsesMass(options_);
  for (OptimisticLayer& layer : layers_) {
    layer.selected.clear();
    layer.misses = nullptr;
  }
}

absl::Status Retriever::Retrieve(StepPlan& plan, int64_t layer, const float* q_far) {
  selected_.clear();
  for (size_t i = 0; i < plan.blocks.size(); ++i) {
    ExecBlock& block = plan.blocks[i];
    kernels::AttentionSpan& span = plan.spans[i];
    span.block_count = 0;
    span.block_mass = nullptr;
    if (!block.part->status.ok() || block.end_block == 0 || options_.top_k == 0) continue;
    Selected selected{
        .block = &block, .span = &span, .count = std::min(options_.top_k, block.end_block)};
    const auto count = static_cast<size_t>(selected.count);
    INFLLM_ASSIGN_OR_RETURN(selected.index, plan.scratch.Get<int64_t>(count));
    INFLLM_ASSIGN_OR_RETURN(selected.score, plan.scratch.Get<float>(count));
    selected_.push_back(selected);
  }
  if (!remote_) RefreshViews(layer);
  if (selected_.empty()) return absl::OkStatus();
  INFLLM_RETURN_IF_ERROR(FindMeanQueries(plan, q_far));
  if (remote_) return SelectRemotely(plan, layer);
  INFLLM_RETURN_IF_ERROR(EnqueueSelect(plan, layer));
  return optimistic_ ? EnqueueLookUp(plan, layer) : FetchMissing(plan, layer);
}

// Looks anew at the index of each part that has published since. Finds out whether the store is
// remote. A part whose index cannot be had fails, and its exec blocks go.
void Retriever::RefreshViews(int64_t layer) {
  for (const Selected& selected : selected_) {
    StepPart& part = *selected.block->part;
    FarMemory::Layer& memory = part.state->far->layers[static_cast<size_t>(layer)];
    if (!part.status.ok() || memory.view.blocks >= selected.block->end_block) continue;
    absl::StatusOr<memstore::IndexView> view =
        store_.View(part.state->far->context, static_cast<int32_t>(layer));
    if (absl::IsUnimplemented(view.status())) {
      remote_ = true;
      optimistic_ = false;
      return;
    }
    if (!view.ok()) {
      part.status = view.status();
      continue;
    }
    memory.view = *std::move(view);
    INFLLM_CHECK(memory.view.blocks >= selected.block->end_block);
  }
  std::erase_if(selected_, [](const Selected& s) { return !s.block->part->status.ok(); });
}

absl::Status Retriever::FindMeanQueries(StepPlan& plan, const float* q_far) {
  ranges_.clear();
  for (const Selected& selected : selected_) {
    ranges_.push_back({.first = selected.block->first_row, .rows = selected.block->rows});
  }
  const size_t bytes =
      selected_.size() * static_cast<size_t>(model_.q_heads * model_.head_dim) * sizeof(float);
  if (mean_queries_.size_bytes() < bytes) {
    mean_queries_ = kernels::Buffer();
    INFLLM_ASSIGN_OR_RETURN(mean_queries_, backend_.AllocateHost(bytes));
  }
  INFLLM_ASSIGN_OR_RETURN(const kernels::RowRange* const ranges, plan.scratch.Put(ranges_));
  return backend_.MeanQueries(stream_, {.q = q_far,
                                        .ranges = ranges,
                                        .count = static_cast<int64_t>(ranges_.size()),
                                        .out = mean_queries_.as<float>(),
                                        .q_heads = model_.q_heads,
                                        .head_dim = model_.head_dim});
}

absl::Status Retriever::EnqueueSelect(StepPlan& plan, int64_t layer) {
  const int64_t query_floats = model_.q_heads * model_.head_dim;
  chunks_.clear();
  chunk_begins_.clear();
  int64_t blocks = 0;
  for (const Selected& selected : selected_) {
    const FarMemory::Layer& memory =
        selected.block->part->state->far->layers[static_cast<size_t>(layer)];
    chunk_begins_.push_back(chunks_.size());
    int64_t left = selected.block->end_block;
    for (size_t i = 0; left > 0; ++i) {
      kernels::RepresentativeChunk chunk = memory.view.chunks[i];
      chunk.blocks = std::min(chunk.blocks, left);
      left -= chunk.blocks;
      chunks_.push_back(chunk);
    }
    blocks += selected.block->end_block;
  }
  chunk_begins_.push_back(chunks_.size());
  if (const size_t bytes = static_cast<size_t>(blocks) * sizeof(float);
      scores_.size_bytes() < bytes) {
    INFLLM_RETURN_IF_ERROR(backend_.Synchronize(stream_));  // earlier layers may use it still
    INFLLM_RETURN_IF_ERROR(Reserve(backend_, bytes + bytes / 4, scores_));
  }
  INFLLM_ASSIGN_OR_RETURN(const kernels::RepresentativeChunk* const chunks,
                          plan.scratch.Put(chunks_));
  score_items_.clear();
  top_items_.clear();
  float* scores = scores_.as<float>();
  for (size_t i = 0; i < selected_.size(); ++i) {
    const Selected& selected = selected_[i];
    score_items_.push_back(
        {.query = mean_queries_.as<float>() + static_cast<int64_t>(i) * query_floats,
         .chunks = chunks + chunk_begins_[i],
         .chunk_count = static_cast<int64_t>(chunk_begins_[i + 1] - chunk_begins_[i]),
         .out = scores});
    top_items_.push_back({.scores = scores,
                          .n = selected.block->end_block,
                          .k = selected.count,
                          .out_index = selected.index,
                          .out_score = selected.score});
    scores += selected.block->end_block;
  }
  INFLLM_ASSIGN_OR_RETURN(const kernels::ScoreItem* const score_items,
                          plan.scratch.Put(score_items_));
  INFLLM_ASSIGN_OR_RETURN(const kernels::TopKItem* const top_items, plan.scratch.Put(top_items_));
  const auto count = static_cast<int64_t>(score_items_.size());
  return backend_.SelectBlocks(
      stream_, {.score = {.items = score_items,
                          .count = count,
                          .kind = options_.representative,
                          .dtype = page_.dtype,
                          .q_heads = model_.q_heads,
                          .kv_heads = model_.kv_heads,
                          .head_dim = model_.head_dim,
                          .scale = 1.0f / std::sqrt(static_cast<float>(model_.head_dim)),
                          .scoring = options_.scoring},
                .best = {.items = top_items, .count = count}});
}

absl::Status Retriever::EnqueueLookUp(StepPlan& plan, int64_t layer) {
  OptimisticLayer& optimistic = layers_[static_cast<size_t>(layer)];
  optimistic.selected = selected_;
  INFLLM_ASSIGN_OR_RETURN(optimistic.misses, plan.scratch.Get<int32_t>(selected_.size()));
  std::fill_n(optimistic.misses, selected_.size(), 0);
  look_ups_.clear();
  const AttentionState* state = nullptr;
  int64_t* cached = nullptr;
  const std::byte** records = nullptr;
  for (size_t i = 0; i < selected_.size(); ++i) {
    const Selected& selected = selected_[i];
    const BlockCache& cache =
        selected.block->part->state->far->layers[static_cast<size_t>(layer)].cache;
    if (selected.block->part->state != state) {
      state = selected.block->part->state;
      INFLLM_ASSIGN_OR_RETURN(cached, plan.scratch.Get<int64_t>(cache.indices().size()));
      std::copy(cache.indices().begin(), cache.indices().end(), cached);
      INFLLM_ASSIGN_OR_RETURN(records, plan.scratch.Get<const std::byte*>(cache.records().size()));
      std::copy(cache.records().begin(), cache.records().end(), records);
    }
    INFLLM_ASSIGN_OR_RETURN(PageEntry* const entries,
                            plan.scratch.Get<PageEntry>(static_cast<size_t>(selected.count)));
    look_ups_.push_back({.index = selected.index,
                         .count = selected.count,
                         .cached = cached,
                         .pages = records,
                         .cached_count = static_cast<int64_t>(cache.indices().size()),
                         .first_position = PositionOf(*selected.block, 0),
                         .out = entries,
                         .misses = optimistic.misses + i});
    selected.span->blocks = entries;
    selected.span->block_count = selected.count;
  }
  INFLLM_ASSIGN_OR_RETURN(const kernels::LookUpItem* const items, plan.scratch.Put(look_ups_));
  return backend_.LookUpBlocks(stream_, {.items = items,
                                         .count = static_cast<int64_t>(look_ups_.size()),
                                         .page_tokens = page_.page_tokens});
}

// Of a block's first token in the sequence; mounted ones lie before it.
int64_t Retriever::PositionOf(const ExecBlock& of, int64_t index) const {
  const int64_t own = index - of.part->state->far->mounted_blocks;
  return options_.n_init + own * page_.page_tokens;
}

// The exec blocks of one part, which follow each other.
std::span<Retriever::Selected> Retriever::PartFrom(size_t first) {
  size_t last = first + 1;
  while (last < selected_.size() && selected_[last].block->part == selected_[first].block->part) {
    ++last;
  }
  return std::span(selected_).subspan(first, last - first);
}

void Retriever::Fail(std::span<Selected> of_part, absl::Status status) {
  of_part[0].block->part->status = std::move(status);
  for (Selected& selected : of_part) {
    selected.span->block_count = 0;
    selected.count = 0;
  }
}

absl::Status Retriever::FetchMissing(StepPlan& plan, int64_t layer) {
  INFLLM_RETURN_IF_ERROR(backend_.Synchronize(stream_));
  const int64_t query_floats = model_.q_heads * model_.head_dim;
  for (size_t at = 0; at < selected_.size();) {
    const std::span<Selected> of_part = PartFrom(at);
    const float* queries = mean_queries_.as<float>() + static_cast<int64_t>(at) * query_floats;
    at += of_part.size();
    FarMemory& far = *of_part[0].block->part->state->far;
    const int64_t floats = static_cast<int64_t>(of_part.size()) * query_floats;
    if (!std::all_of(queries, queries + floats, [](float q) { return std::isfinite(q); })) {
      Fail(of_part, NotFinite(layer, *of_part[0].block));
      continue;
    }
    wanted_.clear();
    const BlockCache& cache = far.layers[static_cast<size_t>(layer)].cache;
    for (const Selected& selected : of_part) {
      for (int64_t i = 0; i < selected.count; ++i) {
        if (cache.Find(selected.index[i]) == nullptr) wanted_.push_back(selected.index[i]);
      }
    }
    std::sort(wanted_.begin(), wanted_.end());
    wanted_.erase(std::unique(wanted_.begin(), wanted_.end()), wanted_.end());
    std::vector<BlockHandle> handles;
    if (!wanted_.empty()) {
      missed_in_step_ = true;
      absl::StatusOr<std::vector<BlockHandle>> fetched =
          store_.Fetch(far.context, static_cast<int32_t>(layer), wanted_);
      if (!fetched.ok()) {
        Fail(of_part, fetched.status());
        continue;
      }
      handles = *std::move(fetched);
    }
    INFLLM_RETURN_IF_ERROR(Admit(plan, layer, of_part, [&](int64_t index) -> const BlockHandle& {
      const auto found = std::lower_bound(wanted_.begin(), wanted_.end(), index);
      static const BlockHandle kNone;  // another exec block of the part evicts it: it is retired
      return found == wanted_.end() || *found != index
                 ? kNone
                 : handles[static_cast<size_t>(found - wanted_.begin())];
    }));
  }
  return absl::OkStatus();
}

absl::Status Retriever::SelectRemotely(StepPlan& plan, int64_t layer) {
  INFLLM_RETURN_IF_ERROR(backend_.Synchronize(stream_));
  const auto query_floats = static_cast<size_t>(model_.q_heads * model_.head_dim);
  queries_.clear();
  for (size_t i = 0; i < selected_.size(); ++i) {
    const FarMemory& far = *selected_[i].block->part->state->far;
    queries_.push_back({.context = far.context,
                        .query = {mean_queries_.as<float>() + i * query_floats, query_floats},
                        .k = static_cast<int32_t>(options_.top_k),
                        .end_block = selected_[i].block->end_block,
                        .have = far.layers[static_cast<size_t>(layer)].cache.indices()});
  }
  INFLLM_ASSIGN_OR_RETURN(const std::vector<memstore::Selection> selections,
                          store_.Select({.layer = static_cast<int32_t>(layer),
                                         .scoring = options_.scoring,
                                         .queries = queries_}));
  INFLLM_CHECK(selections.size() == selected_.size());
  for (size_t at = 0; at < selected_.size();) {
    const std::span<Selected> of_part = PartFrom(at);
    const std::span<const memstore::Selection> answers =
        std::span(selections).subspan(at, of_part.size());
    at += of_part.size();
    absl::Status status;
    for (size_t i = 0; i < of_part.size(); ++i) {
      status.Update(answers[i].status);
      const std::vector<memstore::SelectedBlock>& blocks = answers[i].blocks;
      if (status.ok() && static_cast<int64_t>(blocks.size()) != of_part[i].count) {
        status = absl::InternalError(absl::StrCat("the memory store selected ", blocks.size(),
                                                  " blocks of ", of_part[i].count));
      }
      if (!status.ok()) break;
      for (size_t b = 0; b < blocks.size(); ++b) {
        of_part[i].index[b] = blocks[b].index;
        of_part[i].score[b] = blocks[b].score;
      }
    }
    if (!status.ok()) {
      Fail(of_part, std::move(status));
      continue;
    }
    INFLLM_RETURN_IF_ERROR(Admit(plan, layer, of_part, [&](int64_t index) -> const BlockHandle& {
      static const BlockHandle kNone;
      for (const memstore::Selection& answer : answers) {
        const auto found = std::lower_bound(
            answer.blocks.begin(), answer.blocks.end(), index,
            [](const memstore::SelectedBlock& block, int64_t i) { return block.index < i; });
        if (found != answer.blocks.end() && found->index == index && found->block) {
          return found->block;
        }
      }
      return kNone;
    }));
  }
  return absl::OkStatus();
}

template <typename HandleOf>
absl::Status Retriever::Admit(StepPlan& plan, int64_t layer, std::span<Selected> of_part,
                              const HandleOf& handle_of) {
  StepPart& part = *of_part[0].block->part;
  BlockCache& cache = part.state->far->layers[static_cast<size_t>(layer)].cache;
  // A slot must not be written again before the attention that reads it, so where blocks are copied
  // none that the part has selected is evicted. A pin stays as long as it is retired.
  std::vector<int64_t>& all = selected_of_part_;
  all.clear();
  for (const Selected& selected : of_part) {
    all.insert(all.end(), selected.index, selected.index + selected.count);
  }
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  retired_of_part_.clear();
  for (Selected& selected : of_part) {
    const std::span<const int64_t> indices(selected.index, static_cast<size_t>(selected.count));
    cache.Evict(indices, backend_.host_accessible() ? indices : all, retired_of_part_);
    for (const int64_t index : indices) {
      if (cache.Find(index) != nullptr) {
        ++part.state->stats.cache_hits;
        continue;
      }
      BlockHandle handle = handle_of(index);
      for (size_t i = 0; !handle && i < retired_of_part_.size(); ++i) {
        if (retired_of_part_[i].first == index) handle = retired_of_part_[i].second;
      }
      if (!handle || handle.payload().size() != static_cast<size_t>(page_.record_bytes())) {
        Fail(of_part, absl::InternalError(absl::StrCat("the memory store returned block ", index,
                                                       " of layer ", layer, " without its bytes")));
        return absl::OkStatus();
      }
      ++part.state->stats.cache_misses;
      const std::byte* record = handle.payload().data();
      const PageNumber slot = cache.TakeSlot();
      if (slot >= 0) {
        std::byte* const copy = arena_.address(slot) + arena_.layer_offset(layer);
        INFLLM_RETURN_IF_ERROR(backend_.Copy(stream_, copy, record, handle.payload().size()));
        in_flight_.push_back(std::exchange(handle, {}));
        record = copy;
      }
      cache.Insert(index, slot, record, std::move(handle));
    }
    const auto count = static_cast<size_t>(selected.count);
    INFLLM_ASSIGN_OR_RETURN(PageEntry* const entries, plan.scratch.Get<PageEntry>(count));
    for (size_t i = 0; i < count; ++i) {
      entries[i] = {.page = cache.Find(selected.index[i]),
                    .position = PositionOf(*selected.block, selected.index[i]),
                    .first = 0,
                    .tokens = static_cast<int32_t>(page_.page_tokens)};
    }
    selected.span->blocks = entries;
    selected.span->block_count = selected.count;
    if (options_.cache_policy == CachePolicy::kLruS) {
      INFLLM_ASSIGN_OR_RETURN(selected.span->block_mass, plan.scratch.Get<float>(count));
    }
    Use(layer, selected);
  }
  for (auto& [index, pin] : retired_of_part_) retired_.push_back(std::move(pin));
  return absl::OkStatus();
}

void Retriever::Use(int64_t layer, const Selected& selected) {
  AttentionState& state = *selected.block->part->state;
  ++state.stats.selections;
  state.far->layers[static_cast<size_t>(layer)].cache.Touch(
      {selected.index, static_cast<size_t>(selected.count)});
  if (!state.observer) return;
  observed_.clear();
  for (int64_t i = 0; i < selected.count; ++i) {
    observed_.push_back({.index = selected.index[i], .score = selected.score[i], .block = {}});
  }
  state.observer(layer, selected.block->position, observed_);
}

absl::Status Retriever::Attended(int64_t layer) {
  retired_.clear();  // pins are retired only where operations are done when their call returns
  if (options_.cache_policy != CachePolicy::kLruS || selected_.empty()) return absl::OkStatus();
  INFLLM_RETURN_IF_ERROR(backend_.Synchronize(stream_));
  for (const Selected& selected : selected_) {
    if (!selected.block->part->status.ok()) continue;
    const auto count = static_cast<size_t>(selected.count);
    selected.block->part->state->far->layers[static_cast<size_t>(layer)].cache.Score(
        {selected.index, count}, {selected.span->block_mass, count});
  }
  return absl::OkStatus();
}

int64_t Retriever::FirstMissedLayer() const {
  if (!optimistic_) return -1;
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    const OptimisticLayer& optimistic = layers_[layer];
    for (size_t i = 0; i < optimistic.selected.size(); ++i) {
      if (optimistic.misses[i] > 0) return static_cast<int64_t>(layer);
    }
  }
  return -1;
}

void Retriever::BeWaiting(int64_t first_layer) {
  for (size_t layer = static_cast<size_t>(first_layer); layer < layers_.size(); ++layer) {
    layers_[layer].selected.clear();  // nothing from here on counts
  }
  optimistic_ = false;
}

void Retriever::End() {
  missed_ = missed_in_step_;
  missed_in_step_ = false;
  in_flight_.clear();
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    for (const Selected& selected : layers_[layer].selected) {
      if (!selected.block->part->status.ok()) continue;
      if (!std::isfinite(selected.score[0])) {
        selected.block->part->status = NotFinite(static_cast<int64_t>(layer), *selected.block);
        continue;
      }
      selected.block->part->state->stats.cache_hits += selected.count;
      Use(static_cast<int64_t>(layer), selected);
    }
  }
}

}  // namespace infllm::worker
