#include "worker/attention/attention_policy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "worker/attention/checkpoint.h"
#include "worker/attention/mean_key.h"
#include "worker/attention/option_table.h"
#include "worker/attention/publisher.h"
#include "worker/attention/retriever.h"

namespace infllm::worker {
namespace {

using kernels::AttentionSpan;
using kernels::PageEntry;

// Tokens of a page where no memory block asks for another size.
constexpr int64_t kPageTokens = 128;
// Beyond any position, yet safe to add to one.
constexpr int64_t kUnbounded = std::numeric_limits<int64_t>::max() / 4;
// Of policies that select nothing: an interruption waits for a layer of a step.
constexpr int64_t kMostPartTokens = 4096;

// All that a sequence selects in one step must have been published before it, and must fit the
// cache all at once. With mean-key and lru-s what one exec block attends decides what is selected,
// or kept, for the next.
int64_t MaxPartTokens(const AttentionOptions& options) {
  if (options.policy != PolicyKind::kInfLlm) {
    return std::max<int64_t>(kMostPartTokens / options.exec_block, 1) * options.exec_block;
  }
  if (UsesMass(options) || options.cache_policy == CachePolicy::kLruS) return options.exec_block;
  int64_t exec_blocks = options.n_local / options.exec_block + 1;
  if (options.top_k > 0) {
    exec_blocks = std::min(exec_blocks, std::max<int64_t>(options.cache_blocks / options.top_k, 1));
  }
  return exec_blocks * options.exec_block;
}

}  // namespace

WindowRules WindowRules::Of(const ModelConfig& model, const AttentionOptions& options) {
  switch (options.policy) {
    case PolicyKind::kFull:
      return {.window = model.sliding_window.value_or(kUnbounded), .page_tokens = kPageTokens};
    case PolicyKind::kStreamingLlm:
      // Sinks keep the rotation of their place in the cache, and the query stands at its end.
      return {.window = options.n_local,
              .sink_tokens = options.n_init,
              .page_tokens = kPageTokens,
              .far_query_position = options.n_local + options.n_init - 1};
    case PolicyKind::kLmInfinite:
    case PolicyKind::kInfLlm:
      // Far keys are un-rotated, so a query at this position sees them at this distance.
      return {
          .window = options.n_local,
          .sink_tokens = options.n_init,
          .page_tokens = options.policy == PolicyKind::kInfLlm ? options.block_tokens : kPageTokens,
          .raw_keys = true,
          .far_query_position = options.n_local - 1};
  }
  return {};
}

absl::StatusOr<std::unique_ptr<AttentionPolicy>> AttentionPolicy::New(
    const ModelConfig& model, const AttentionOptions& options, const Environment& environment) {
  INFLLM_RETURN_IF_ERROR(options.Validate(model));
  if (options.policy == PolicyKind::kInfLlm && environment.store == nullptr) {
    return absl::InvalidArgumentError("policy infllm needs a memory store");
  }
  const WindowRules rules = WindowRules::Of(model, options);
  const kernels::PageShape page{.kv_heads = model.kv_heads,
                                .head_dim = model.head_dim,
                                .page_tokens = rules.page_tokens,
                                .dtype = environment.kv_dtype,
                                .rotated_behind = rules.raw_keys};
  // Every page with its mass, if it has one.
  const int64_t mass_bytes =
      UsesMass(options) ? model.q_heads * rules.page_tokens * int64_t{sizeof(float)} : 0;
  const int64_t kv_bytes =
      environment.kv_bytes / (page.page_bytes() + mass_bytes) * page.page_bytes();
  INFLLM_ASSIGN_OR_RETURN(PageArena arena,
                          PageArena::New(*environment.backend, page.page_bytes(), model.layers,
                                         mass_bytes > 0 ? kv_bytes : environment.kv_bytes));
  std::unique_ptr<AttentionPolicy> policy(
      new AttentionPolicy(model, options, environment, rules, page, std::move(arena)));
  if (mass_bytes > 0) {
    INFLLM_ASSIGN_OR_RETURN(PageArena mass,
                            PageArena::New(*environment.backend, mass_bytes, model.layers,
                                           environment.kv_bytes - kv_bytes));
    policy->mass_arena_ = std::make_unique<PageArena>(std::move(mass));
  }
  INFLLM_RETURN_IF_ERROR(policy->Prepare());
  return policy;
}

AttentionPolicy::AttentionPolicy(const ModelConfig& model, const AttentionOptions& options,
                                 const Environment& environment, const WindowRules& rules,
                                 const kernels::PageShape& page, PageArena arena)
    : model_(model),
      options_(options),
      environment_(environment),
      rules_(rules),
      page_(page),
      rope_(model, options),
      backend_(*environment.backend),
      stream_(environment.stream),
      arena_(std::move(arena)),
      max_part_tokens_(MaxPartTokens(options)),
      plan_(backend_) {
  if (options.policy != PolicyKind::kInfLlm) return;
  retriever_ = std::make_unique<Retriever>(model_, options_, page_, backend_, stream_,
                                           *environment.store, arena_);
  publisher_ = std::make_unique<Publisher>(model_, options_, page_, backend_, stream_,
                                           *environment.pool, arena_);
  checkpointer_ =
      std::make_unique<Checkpointer>(model_, options_, page_, rope_, backend_, stream_, arena_);
}

AttentionPolicy::~AttentionPolicy() = default;

absl::Status AttentionPolicy::Prepare() {
  if (rules_.far_query_position < 0) return absl::OkStatus();
  std::vector<float> row(static_cast<size_t>(model_.head_dim));
  rope_.Fill(rules_.far_query_position, row);
  const size_t bytes = row.size() * sizeof(float);
  INFLLM_ASSIGN_OR_RETURN(far_angle_, backend_.Allocate(bytes));
  INFLLM_RETURN_IF_ERROR(backend_.Copy(stream_, far_angle_.data(), row.data(), bytes));
  return backend_.Synchronize(stream_);
}

absl::Status AttentionPolicy::Admit(StepPart& part) {
  if (part.tokens > max_part_tokens_) {
    return absl::InvalidArgumentError(absl::StrCat("a step takes at most ", max_part_tokens_,
                                                   " tokens of a sequence, not ", part.tokens));
  }
  KvWindow& window = part.state->window;
  if (const int64_t pages = window.PagesFor(part.tokens); pages > arena_.free_pages()) {
    return arena_.NoRoom(absl::StrCat("the next ", part.tokens, " tokens"), pages);
  }
  if (mass_arena_ == nullptr) {
    window.Append(part.tokens);
    return absl::OkStatus();
  }
  const int64_t masses = MassPagesFor(*part.state, part.tokens, rules_.page_tokens);
  if (masses > mass_arena_->free_pages()) {
    return mass_arena_->NoRoom(absl::StrCat("the scores of the next ", part.tokens, " tokens"),
                               masses);
  }
  window.Append(part.tokens);
  return GrowMass(*part.state, rules_.page_tokens, model_.layers,
                  model_.q_heads * rules_.page_tokens * int64_t{sizeof(float)}, backend_, stream_);
}

absl::Status AttentionPolicy::Plan(std::span<StepPart> parts) {
  plan_.scratch.Reset();
  plan_.parts = parts;
  plan_.blocks.clear();
  plan_.rows = 0;
  for (StepPart& part : parts) {
    part.first_row = plan_.rows;
    const int64_t begin = part.state->window.tokens();
    part.status = Admit(part);
    if (!part.status.ok()) {
      part.tokens = 0;
      continue;
    }
    for (int64_t done = 0; done < part.tokens; done += options_.exec_block) {
      plan_.blocks.push_back({.part = &part,
                              .first_row = plan_.rows + done,
                              .rows = std::min(options_.exec_block, part.tokens - done),
                              .position = begin + done,
                              .end_block = retriever_ == nullptr
                                               ? 0
                                               : part.state->far->mounted_blocks +
                                                     SelectableBlocks(options_, begin + done)});
    }
    if (begin == part.state->whole_tokens) {
      part.state->whole_tokens += part.tokens - part.tokens % options_.exec_block;
    }
    plan_.rows += part.tokens;
  }
  const size_t q_bytes =
      static_cast<size_t>(plan_.rows * model_.q_heads * model_.head_dim) * sizeof(float);
  INFLLM_RETURN_IF_ERROR(Reserve(backend_, q_bytes, q_near_));
  if (rules_.far_query_position >= 0) INFLLM_RETURN_IF_ERROR(Reserve(backend_, q_bytes, q_far_));
  INFLLM_RETURN_IF_ERROR(PlanRows());
  if (retriever_ != nullptr) retriever_->Begin(plan_);
  return PlanSpans();
}

// Where each row's keys and values go, and its angles.
absl::Status AttentionPolicy::PlanRows() {
  const auto rows = static_cast<size_t>(plan_.rows);
  INFLLM_ASSIGN_OR_RETURN(plan_.pages, plan_.scratch.Get<std::byte*>(rows));
  INFLLM_ASSIGN_OR_RETURN(plan_.slots, plan_.scratch.Get<int32_t>(rows));
  INFLLM_ASSIGN_OR_RETURN(plan_.angles,
                          plan_.scratch.Get<float>(rows * static_cast<size_t>(model_.head_dim)));
  for (const ExecBlock& block : plan_.blocks) {
    for (int64_t i = 0; i < block.rows; ++i) {
      const KvWindow::Place place = block.part->state->window.Find(block.position + i);
      plan_.pages[block.first_row + i] = place.page;
      plan_.slots[block.first_row + i] = place.slot;
    }
    rope_.Fill(block.position, {plan_.angles + block.first_row * model_.head_dim,
                                static_cast<size_t>(block.rows * model_.head_dim)});
  }
  return absl::OkStatus();
}

// The page tables of all exec blocks.
absl::Status AttentionPolicy::PlanSpans() {
  near_.clear();
  far_.clear();
  near_mass_.clear();
  near_begins_.clear();
  far_begins_.clear();
  for (const ExecBlock& block : plan_.blocks) {
    const KvWindow& window = block.part->state->window;
    const int64_t end = block.position + block.rows;
    near_begins_.push_back(near_.size());
    far_begins_.push_back(far_.size());
    window.AddEntries(block.position - rules_.window + 1, end, near_);
    if (mass_arena_ != nullptr) {
      AddMassPointers(*block.part->state, rules_.page_tokens,
                      std::span(near_).subspan(near_begins_.back()), near_mass_);
    }
    if (rules_.far_query_position < 0) continue;
    // Tokens that the last query no longer has in its window: sinks, and what is not yet a block.
    const int64_t far_end = end - rules_.window;
    window.AddEntries(0, std::min(far_end, rules_.sink_tokens), far_);
    if (retriever_ == nullptr) continue;
    const int64_t own = block.end_block - block.part->state->far->mounted_blocks;
    window.AddEntries(window.page_begin(own), far_end, far_);
  }
  near_begins_.push_back(near_.size());
  far_begins_.push_back(far_.size());

  INFLLM_ASSIGN_OR_RETURN(const PageEntry* const near, plan_.scratch.Put(near_));
  INFLLM_ASSIGN_OR_RETURN(const PageEntry* const far, plan_.scratch.Put(far_));
  INFLLM_ASSIGN_OR_RETURN(float* const* const near_mass, plan_.scratch.Put(near_mass_));
  INFLLM_ASSIGN_OR_RETURN(plan_.spans, plan_.scratch.Get<AttentionSpan>(plan_.blocks.size()));
  for (size_t i = 0; i < plan_.blocks.size(); ++i) {
    const ExecBlock& block = plan_.blocks[i];
    plan_.spans[i] = {.first_row = block.first_row,
                      .rows = block.rows,
                      .first_position = block.position,
                      .near = near + near_begins_[i],
                      .near_pages = static_cast<int64_t>(near_begins_[i + 1] - near_begins_[i]),
                      .far = far + far_begins_[i],
                      .far_pages = static_cast<int64_t>(far_begins_[i + 1] - far_begins_[i])};
    if (mass_arena_ != nullptr) plan_.spans[i].near_mass = near_mass + near_begins_[i];
  }
  return absl::OkStatus();
}

absl::Status AttentionPolicy::Attend(int64_t layer, const float* qkv, float* out) {
  const bool far = rules_.far_query_position >= 0;
  INFLLM_RETURN_IF_ERROR(
      backend_.RotateAndStore(stream_, {.qkv = qkv,
                                        .angles = plan_.angles,
                                        .far_angle = far ? far_angle_.as<float>() : nullptr,
                                        .q_near = q_near_.data(),
                                        .q_far = far ? q_far_.data() : nullptr,
                                        .pages = plan_.pages,
                                        .slots = plan_.slots,
                                        .layer_offset = arena_.layer_offset(layer),
                                        .rows = plan_.rows,
                                        .q_heads = model_.q_heads,
                                        .page = page_}));
  if (retriever_ != nullptr) {
    // Spans of their own for each layer: attention of the layer before may not have read its own.
    const AttentionSpan* const spans = plan_.spans;
    INFLLM_ASSIGN_OR_RETURN(plan_.spans, plan_.scratch.Get<AttentionSpan>(plan_.blocks.size()));
    std::copy_n(spans, plan_.blocks.size(), plan_.spans);
    INFLLM_RETURN_IF_ERROR(retriever_->Retrieve(plan_, layer, q_far_.as<float>()));
  }
  INFLLM_RETURN_IF_ERROR(backend_.Attention(
      stream_, {.q_near = q_near_.data(),
                .q_far = far ? q_far_.data() : nullptr,
                .out = out,
                .spans = plan_.spans,
                .span_count = static_cast<int64_t>(plan_.blocks.size()),
                .layer_offset = arena_.layer_offset(layer),
                .mass_layer_offset = mass_arena_ == nullptr ? 0 : mass_arena_->layer_offset(layer),
                .q_heads = model_.q_heads,
                .page = page_,
                .window = rules_.window,
                .scale = 1.0f / std::sqrt(static_cast<float>(model_.head_dim)),
                .block_bias = static_cast<float>(options_.far_bias),
                .far_rotated = !rules_.raw_keys,
                .far_unmasked = retriever_ != nullptr && options_.compat_reference}));
  return retriever_ == nullptr ? absl::OkStatus() : retriever_->Attended(layer);
}

absl::Status AttentionPolicy::EnqueueEnd() {
  return publisher_ == nullptr ? absl::OkStatus() : publisher_->Enqueue(plan_);
}

bool AttentionPolicy::may_redo() const { return retriever_ != nullptr && retriever_->optimistic(); }
int64_t AttentionPolicy::FirstMissedLayer() const {
  return retriever_ == nullptr ? -1 : retriever_->FirstMissedLayer();
}
void AttentionPolicy::RedoFrom(int64_t layer) { retriever_->BeWaiting(layer); }

void AttentionPolicy::End() {
  if (retriever_ != nullptr) {
    retriever_->End();
    publisher_->Publish();
  }
  for (StepPart& part : plan_.parts) {
    if (!part.status.ok() || part.tokens == 0) continue;
    KvWindow& window = part.state->window;
    if (retriever_ == nullptr) {
      // The next query sees no further back than tokens - window + 1.
      const int64_t dead = window.tokens() - rules_.window + 1 - rules_.sink_tokens;
      if (dead > 0) window.DropPagesBefore(dead / rules_.page_tokens);
      continue;
    }
    const int64_t end = SelectableBlocks(options_, window.tokens());
    window.DropPagesBefore(end);
    if (mass_arena_ != nullptr) DropMassBefore(*part.state->far, end);
  }
}

}  // namespace infllm::worker
